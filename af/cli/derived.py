"""Options of the verbs that make new shards from shards: encode, losers, teacher."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from af.cli.devices import add_device_argument, device_of
from af.cli.options import add_share, count, out_folder, seed
from af.data.parts import clear
from af.data.stores import location

#: What is said after Ctrl-C.
WHEN_INTERRUPTED = "shards that are done are kept, the same command makes the others"


def add_derived_arguments(parser: argparse.ArgumentParser, data: str, workers: int = 1) -> None:
    """Where from, where to, and how the work is divided."""
    parser.add_argument("--data", type=location, required=True, help=f"folder or URL of {data}")
    parser.add_argument("--out", type=out_folder, required=True, help="folder for the new shards")
    parser.add_argument("--workers", type=count, default=workers, help=f"processes (default {workers})")
    add_device_argument(parser)
    add_share(parser)
    parser.add_argument("--overwrite", action="store_true", help="delete what --out holds first")


def derived_options(args: argparse.Namespace, *read: Path | None) -> dict[str, Any]:
    """What the functions behind the verbs take; deletes what --out holds when asked to (nothing of what is `read`)."""
    device = device_of(args)
    clear(args.out, args.overwrite, args.share, [args.data, *(place for place in read if place is not None)])
    return {"device": device, "workers": args.workers, "share": args.share}


def add_rolling_arguments(parser: argparse.ArgumentParser, denoiser: str) -> None:
    """`add_derived_arguments` for what a denoiser makes, and from which noise."""
    add_derived_arguments(parser, "what `af encode` wrote")
    parser.add_argument("--denoiser", type=Path, metavar="MODEL", help=f"model folder, run or checkpoint of {denoiser}")
    parser.add_argument("--splits", default="train,val", help="splits of the data (default train,val)")
    parser.add_argument("--seed", type=seed, default=0, help="of the noise and of whose user is taken (default 0)")
    parser.add_argument("--batch", type=count, default=32, help="clips rolled out together (default 32)")


def rolling_options(args: argparse.Namespace) -> dict[str, Any]:
    """`derived_options` with those of `add_rolling_arguments`."""
    splits = [name.strip() for name in args.splits.split(",")]
    return {**derived_options(args, args.denoiser), "seed": args.seed, "batch": args.batch, "splits": splits}
