"""Options of the verbs that make new shards with a denoiser: losers and teachers."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from af.cli.devices import add_device_argument, device_of
from af.cli.options import add_share, count, out_folder, seed
from af.data.parts import clear
from af.data.stores import location


def add_derived_arguments(parser: argparse.ArgumentParser, denoiser: str) -> None:
    """Where from, where to, with which noise, and how the work is divided."""
    parser.add_argument("--data", type=location, required=True, help="folder or URL of what `af encode` wrote")
    parser.add_argument("--denoiser", type=Path, metavar="MODEL", help=f"model folder, run or checkpoint of {denoiser}")
    parser.add_argument("--out", type=out_folder, required=True, help="folder for the new shards")
    parser.add_argument("--splits", default="train,val", help="splits of the data (default train,val)")
    parser.add_argument("--seed", type=seed, default=0, help="of the noise and of whose user is taken (default 0)")
    parser.add_argument("--batch", type=count, default=32, help="clips rolled out together (default 32)")
    parser.add_argument("--workers", type=count, default=1, help="processes (default 1)")
    add_device_argument(parser)
    add_share(parser)
    parser.add_argument("--overwrite", action="store_true", help="delete what --out holds first")


def derived_options(args: argparse.Namespace) -> dict[str, Any]:
    """What the functions behind the verbs take; deletes what --out holds when asked to."""
    device = device_of(args)
    clear(args.out, args.overwrite, args.share, [place for place in (args.data, args.denoiser) if place is not None])
    return {
        "seed": args.seed,
        "batch": args.batch,
        "splits": [name.strip() for name in args.splits.split(",")],
        "device": device,
        "workers": args.workers,
        "share": args.share,
    }
