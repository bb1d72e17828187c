"""Make a model folder of a stopped run or of a checkpoint, with averaged weights as a finished run exports them.

af export runs/denoiser --out runs/denoiser/export
  af export runs/denoiser/checkpoints/best-00004000.ckpt --out models/best

Every verb also takes run folders and checkpoints; model folders are for keeping, copying and sharing.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from af.cli.options import out_folder
from af.errors import UserError


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `af export`."""
    parser.add_argument("source", type=Path, help="run folder (its newest checkpoint), or a checkpoint")
    parser.add_argument("--out", type=out_folder, required=True, metavar="FOLDER", help="model folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace another model there")


def run(args: argparse.Namespace) -> int:
    """Read, check, write."""
    from af.models.artifact import DESCRIPTION, load_model, model_info, save_model
    from af.models.checkpoint import FOLDER, checkpoint_files

    if checkpoint_files(args.out) or checkpoint_files(args.out / FOLDER):
        raise UserError(
            f"--out {args.out} is the folder of a run or of its checkpoints, which would count as that model from then on: "
            f"choose another one, {args.out / 'export'}, say"
        )
    artifact = load_model(args.source)
    if (args.out / DESCRIPTION).is_file() and not args.overwrite and model_info(args.out)["sha256"] != artifact.digest:
        raise UserError(f"--out {args.out} holds another model; choose another folder, or give --overwrite")
    info = {key: value for key, value in artifact.info.items() if key not in ("format", "model", "sha256")}
    digest = save_model(args.out, artifact.model, artifact.info["model"], info)
    print(f"{artifact.folder} -> {args.out} (step {info.get('steps', '?')}, sha256 {digest[:12]}…)")
    return 0
