"""Make a model folder of a run or checkpoint, or graphs of an avatar that run without torch.

  af export runs/denoiser --out runs/denoiser/export
  af export runs/denoiser/checkpoints/best-00004000.ckpt --out models/best
  af export shared/demo --to onnx --out exports/demo

A model folder has averaged weights, as a finished run exports them. Every verb also takes run folders and checkpoints; model
folders are for keeping, copying and sharing. With --to the source is a hub folder (docs/sharing.md).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from af.cli.kinds import OutFolder
from af.errors import UserError


def run(
    source: Annotated[Path, "run folder (its newest checkpoint), or a checkpoint; with --to a hub folder"],
    *,
    out: Annotated[OutFolder, "folder to write"],
    overwrite: Annotated[bool, "replace another model there"] = False,
    to: Annotated[Literal["onnx", "torch"] | None, "graphs of ONNX, or programs of torch.export"] = None,
    dtype: Annotated[Literal["fp32", "fp16"], "of the other weights as they are stored (ONNX)"] = "fp32",
    int8: Annotated[bool, "store large weights of denoiser and decoder in 8 bits (ONNX)"] = False,
) -> None:
    """Read, check, write."""
    if to is not None:
        from af.share.export import export_avatar

        about = export_avatar(source, out, to=to, dtype=dtype, int8=int8)
        size = sum(graph["bytes"] for graph in about["graphs"].values())
        print(f"{source} -> {out} ({', '.join(about['graphs'])}; {size / 2**20:.1f} MB)")
        return
    if dtype != "fp32" or int8:
        raise UserError("--dtype and --int8 are for graphs: give --to onnx")
    from af.models.artifact import DESCRIPTION, load_model, model_info, save_model
    from af.models.checkpoint import FOLDER, checkpoint_files

    if checkpoint_files(out) or checkpoint_files(out / FOLDER):
        raise UserError(
            f"--out {out} is the folder of a run or of its checkpoints, which would count as that model from then on: "
            f"choose another one, {out / 'export'}, say"
        )
    artifact = load_model(source)
    if (out / DESCRIPTION).is_file() and not overwrite and model_info(out)["sha256"] != artifact.digest:
        raise UserError(f"--out {out} holds another model; choose another folder, or give --overwrite")
    info = artifact.info
    digest = save_model(out, artifact.model, info["model"], info)
    print(f"{artifact.folder} -> {out} (step {info.get('steps', '?')}, sha256 {digest[:12]}…)")
