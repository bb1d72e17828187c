"""Options of the verbs that make new shards from shards: encode, losers, teacher."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from af.cli.devices import add_device_argument, device_of
from af.cli.options import add_share, count, out_folder, seed
from af.data.parts import clear
from af.data.stores import location

#: Message after Ctrl-C.
WHEN_INTERRUPTED = "finished shards are kept, and the same command makes the others"


def add_derived_arguments(parser: argparse.ArgumentParser, data: str, workers: int = 1) -> None:
    """Add arguments for input, output and the division of the work."""
    parser.add_argument("--data", type=location, required=True, help=f"folder or URL of {data}")
    parser.add_argument("--out", type=out_folder, required=True, help="folder for the new shards")
    parser.add_argument("--workers", type=count, default=workers, help=f"processes (default {workers})")
    add_device_argument(parser)
    add_share(parser)
    parser.add_argument("--overwrite", action="store_true", help="delete the content of --out first")


def derived_options(args: argparse.Namespace, *read: Path | None) -> dict[str, Any]:
    """The common arguments of the verbs' functions; deletes the content of --out if requested (not of `read`)."""
    device = device_of(args)
    clear(args.out, args.overwrite, args.share, [args.data, *(place for place in read if place is not None)])
    return {"device": device, "workers": args.workers, "share": args.share}


def add_rolling_arguments(parser: argparse.ArgumentParser, denoiser: str) -> None:
    """`add_derived_arguments`, and those of roll-outs by a denoiser."""
    add_derived_arguments(parser, "what `af encode` wrote")
    parser.add_argument("--denoiser", type=Path, metavar="MODEL", help=f"model folder, run or checkpoint of {denoiser}")
    parser.add_argument("--splits", default="train,val", help="splits of the data (default train,val)")
    parser.add_argument(
        "--seed", type=seed, default=0, help="seed of the noise and of the choice of other users (default 0)"
    )
    parser.add_argument("--batch", type=count, default=32, help="clips rolled out together (default 32)")


def rolling_options(args: argparse.Namespace) -> dict[str, Any]:
    """`derived_options` with those of `add_rolling_arguments`."""
    splits = [name.strip() for name in args.splits.split(",")]
    return {**derived_options(args, args.denoiser), "seed": args.seed, "batch": args.batch, "splits": splits}
