"""Make a model folder of a stopped run or of a checkpoint, with averaged weights as a finished run exports them.

  af export runs/denoiser --out runs/denoiser/export
  af export runs/denoiser/checkpoints/best-00004000.ckpt --out models/best

Every verb also takes run folders and checkpoints; model folders are for keeping, copying and sharing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from af.cli.kinds import OutFolder
from af.errors import UserError


def run(
    source: Annotated[Path, "run folder (its newest checkpoint), or a checkpoint"],
    *,
    out: Annotated[OutFolder, "model folder to write"],
    overwrite: Annotated[bool, "replace another model there"] = False,
) -> None:
    """Read, check, write."""
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
