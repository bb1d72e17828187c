"""Add motion latents and audio features to shards: what the denoiser trains on.

af encode --data data/demo --autoencoder runs/demo/vae/export --out data/demo-latents
  af encode --data data/mine --autoencoder runs/vae/export --out data/mine-latents features=wav2vec2

Each input shard becomes one output shard; existing shards are skipped, so a stopped job continues where it was. Many
machines can share the work with --share, for instance as a job array (--array=1-16):

af encode --data data/mine --autoencoder runs/vae/export --out data/mine-latents --share $SLURM_ARRAY_TASK_ID/16

`features=` picks a configuration of conf/features (logmel, wav2vec2); its values can be overridden, e.g.
`features.mode=utterance` or `features.checkpoint=/path/to/wav2vec2`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from af.cli.config import add_config_arguments, compose, resolve
from af.cli.derived import WHEN_INTERRUPTED, add_derived_arguments, derived_options
from af.cli.typed import require_types

__all__ = ["WHEN_INTERRUPTED", "configure", "run"]


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `af encode`."""
    add_derived_arguments(parser, "shards (with train/, val/, test/)", workers=2)
    parser.add_argument(
        "--autoencoder", type=Path, required=True, help="model folder, run or checkpoint of a motion VAE"
    )
    parser.add_argument("--no-video", action="store_true", help="leave the face videos out of the new shards")
    parser.add_argument(
        "--precision",
        default="fp32",
        help="precision of the autoencoder: fp32 (default), bf16 (latents within 1 %%), or auto: bf16 where it is fast",
    )
    add_config_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Encode every split."""
    features = resolve(compose("encode", args.overrides, args.config_dir))["features"]
    require_types(features, "features")
    options = derived_options(args, args.autoencoder)
    from af.pipeline.encode import encode

    how = {"keep_video": not args.no_video, "precision": args.precision, **options}
    for index in encode(args.data, args.out, args.autoencoder, features, **how):
        print(f"{index.folder}: {len(index.samples)} clips, {index.frames} frames")
    return 0
