"""Make losers for the preference stage: the same avatars in the same conversations, moving worse.

  af losers --data data/demo-latents --denoiser runs/demo/denoiser/export --source drop_user --out data/demo-losers
  af losers --data data/demo-latents --denoiser runs/demo/denoiser/export --source weak --user 0.5 --out data/weak
  af losers --data data/demo-latents --files my_motions --source file --out data/my-losers

Sources:
  drop_user  the denoiser itself, rolled out without the user's signals
  talking    another denoiser, trained on the avatar's audio alone (experiment=denoiser_demo module.dropout.user=1)
  weak       the denoiser with a guidance scale for the user between 0 and 1 (--user, default 0.5)
  guided     the denoiser at its best (--user, default 1): not a loser but the teacher of experiment=distill_demo
  shuffled   the denoiser reacting to the user of another conversation (--user, default 1)
  file       arrays KEY.a.npy and KEY.b.npy (frames x motion latent) from a folder (--files)

Each shard of the data becomes one of losers; shards that exist are skipped, so a stopped job goes on where it was, and
--part divides the work among the jobs of an array. Give the folder to the stage as data.losers=FOLDER.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from af.cli.devices import add_device_argument, device_of
from af.cli.options import count, out_folder, scale, seed
from af.data.parts import PART_HELP, WHOLE, Share, clear
from af.data.stores import location
from af.errors import UserError

#: What is said after Ctrl-C.
WHEN_INTERRUPTED = "shards that are done are kept, the same command makes the others"
_USER = {"weak": 0.5, "shuffled": 1.0, "guided": 1.0}


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `af losers`."""
    parser.add_argument("--data", type=location, required=True, help="folder or URL of what `af encode` wrote")
    parser.add_argument(
        "--denoiser", type=Path, metavar="MODEL", help="model folder, run or checkpoint of the denoiser that makes them"
    )
    parser.add_argument("--files", type=Path, metavar="FOLDER", help="arrays, with --source file")
    parser.add_argument(
        "--source", default="drop_user", help="drop_user (default), talking, weak, shuffled, guided or file"
    )
    parser.add_argument("--out", type=out_folder, required=True, help="folder for the losers")
    parser.add_argument("--splits", default="train,val", help="splits to make losers for (default train,val)")
    parser.add_argument("--guidance-audio", type=scale, default=2.0, help="scale of the avatar's audio (default 2)")
    parser.add_argument("--user", type=scale, help="scale of the user's signals (weak: 0.5, shuffled: 1)")
    parser.add_argument("--steps", type=count, default=8, help="Euler steps a block (default 8)")
    parser.add_argument("--seed", type=seed, default=0, help="of the noise and of whose user is taken (default 0)")
    parser.add_argument("--batch", type=count, default=32, help="clips rolled out together (default 32)")
    parser.add_argument("--workers", type=count, default=1, help="processes (default 1)")
    add_device_argument(parser)
    parser.add_argument("--part", type=Share.parse, default=WHOLE, metavar="I/N", help=PART_HELP)
    parser.add_argument("--overwrite", action="store_true", help="delete what --out holds first")


def run(args: argparse.Namespace) -> int:
    """Make the losers of every split asked for."""
    from af.pipeline.losers import LoserSettings, make_losers

    device = device_of(args)
    model = args.files if args.source == "file" else args.denoiser
    if model is None:
        raise UserError(f"--source {args.source} needs {'--files' if args.source == 'file' else '--denoiser'}")
    settings = LoserSettings(
        source=args.source,
        audio=args.guidance_audio,
        user=_USER.get(args.source, 0.0) if args.user is None else args.user,
        steps=args.steps,
        seed=args.seed,
        batch=args.batch,
    )
    clear(args.out, args.overwrite, args.part, (args.data, model))
    splits = [name.strip() for name in args.splits.split(",")]
    for index in make_losers(
        args.data, args.out, model, settings, splits=splits, device=device, workers=args.workers, share=args.part
    ):
        print(f"{index.folder}: losers of {len(index.samples)} clips, {index.frames} frames")
    return 0
