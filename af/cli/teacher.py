"""Make a teacher's motion for distillation: what a guided denoiser, with all of its steps, makes of known noise.

  af teacher --data data/demo-latents --denoiser runs/demo/denoiser/export --guidance-user 2 --out data/demo-teacher
  af train experiment=distill_demo start=runs/demo/denoiser/export data.teacher=data/demo-teacher

Each shard of the data becomes one of the teacher; shards that exist are skipped, so a stopped job goes on where it was,
and --share divides the work among the jobs of an array.
"""

from __future__ import annotations

import argparse

from af.cli.derived import WHEN_INTERRUPTED, add_rolling_arguments, rolling_options
from af.cli.options import count, scale
from af.errors import UserError

__all__ = ["WHEN_INTERRUPTED", "configure", "run"]


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `af teacher`."""
    add_rolling_arguments(parser, "the teacher")
    parser.add_argument("--guidance-audio", type=scale, default=2.0, help="scale of the avatar's audio (default 2)")
    parser.add_argument("--guidance-user", type=scale, default=1.0, help="scale of the user's signals (default 1)")
    parser.add_argument("--steps", type=count, default=8, help="Euler steps a block (default 8)")


def run(args: argparse.Namespace) -> int:
    """Make the teacher's motion for every split asked for."""
    if args.denoiser is None:
        raise UserError("--denoiser is needed: the model that teaches")
    options = rolling_options(args)
    from af.forcing.guidance import Guidance
    from af.pipeline.teacher import make_teacher

    guidance = Guidance(audio=args.guidance_audio, user=args.guidance_user)
    for index in make_teacher(args.data, args.out, args.denoiser, guidance=guidance, steps=args.steps, **options):
        print(f"{index.folder}: a teacher's motion for {len(index.samples)} clips, {index.frames} frames")
    return 0
