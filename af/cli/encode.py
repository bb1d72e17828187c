"""Add motion latents and audio features to shards: what the denoiser trains on.

  af encode --data data/demo --autoencoder runs/demo/vae/export --out data/demo-latents
  af encode --data data/mine --autoencoder runs/vae/export --out data/mine-latents features=wav2vec2

Each input shard becomes one output shard; shards that exist are skipped, so a stopped job goes on where it was. Many
machines do it together with --share, for instance as a job array (--array=1-16):

  af encode --data data/mine --autoencoder runs/vae/export --out data/mine-latents --share $SLURM_ARRAY_TASK_ID/16

`features=` picks a configuration of conf/features (logmel, wav2vec2); its values can be overridden, e.g.
`features.mode=utterance` or `features.checkpoint=/path/to/wav2vec2`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from af.cli.config import add_config_arguments, compose, resolve
from af.cli.devices import add_device_argument, device_of
from af.cli.options import add_share, count, out_folder
from af.data.parts import clear
from af.data.stores import location

#: What is said after Ctrl-C.
WHEN_INTERRUPTED = "shards that are done are kept, the same command makes the others"


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `af encode`."""
    parser.add_argument(
        "--data", type=location, required=True, help="folder or URL of shards (with train/, val/, test/)"
    )
    parser.add_argument(
        "--autoencoder", type=Path, required=True, help="model folder, run or checkpoint of a motion VAE"
    )
    parser.add_argument("--out", type=out_folder, required=True, help="folder for the new shards")
    parser.add_argument("--workers", type=count, default=2, help="processes (default 2)")
    parser.add_argument("--no-video", action="store_true", help="leave the face videos out of the new shards")
    parser.add_argument(
        "--precision",
        default="fp32",
        help="of the autoencoder: fp32 (default), bf16 (latents within 1 %%), or auto: bf16 where it is fast",
    )
    add_device_argument(parser)
    add_share(parser)
    parser.add_argument("--overwrite", action="store_true", help="delete what --out holds first")
    add_config_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Encode every split."""
    device = device_of(args)
    features = resolve(compose("encode", args.overrides, args.config_dir))["features"]
    from af.pipeline.encode import encode

    clear(args.out, args.overwrite, args.share, (args.data, args.autoencoder))
    indices = encode(
        args.data,
        args.out,
        args.autoencoder,
        features,
        keep_video=not args.no_video,
        precision=args.precision,
        device=device,
        workers=args.workers,
        share=args.share,
    )
    for index in indices:
        print(f"{index.folder}: {len(index.samples)} clips, {index.frames} frames")
    return 0
