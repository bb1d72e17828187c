"""Train or check the small face tracker of the synthetic faces (its weights come with the package).

  af tracker check                                  R² of every parameter on people never seen in training
  af tracker check --weights my.safetensors
  af tracker train --out my.safetensors --steps 4000 --seed 0

The tracker reads the 13 face parameters from images, so that generated videos can be compared with true ones. It is
trained on freshly drawn people, on images blurred, recoloured and compressed as generated ones may be. It knows
synthetic faces only; for real videos use a tracker of real faces.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from af.cli.devices import add_device_argument, device_of

if TYPE_CHECKING:
    from torch import Tensor

from af.cli.options import count, out_file, seed


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `af tracker`."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="train | check")
    train = actions.add_parser("train", help="train new weights")
    train.add_argument("--out", type=out_file, required=True, help="file for the weights (.safetensors)")
    train.add_argument("--steps", type=count, default=4000, help="default 4000: some ten minutes on one free core")
    train.add_argument("--seed", type=seed, default=0)
    train.add_argument("--version", default="1", help="named in the tags of all numbers made with it (default 1)")
    add_device_argument(train)
    train.add_argument("--threads", type=count, default=1, help="CPU threads (default 1)")
    check = actions.add_parser("check", help="print R² per parameter on held-out people")
    check.add_argument("--weights", type=Path, help="weights to check (default: the shipped ones)")
    check.add_argument("--people", type=count, default=100, help="held-out people (default 100)")
    check.add_argument("--seed", type=seed, default=0)
    add_device_argument(check)


def run(args: argparse.Namespace) -> int:
    """Train or check."""
    import torch

    device_of(args)
    if args.action == "train":
        torch.set_num_threads(args.threads)
        return _train(args)
    return _check(args)


def _train(args: argparse.Namespace) -> int:
    from rich.progress import TextColumn

    from af.console import progress_bar
    from af.files import require_suffix
    from af.training.tracker import train_tracker

    require_suffix(args.out, (".safetensors",), "--out")
    with progress_bar(TextColumn("{task.fields[loss]}")) as progress:
        task = progress.add_task("training the tracker", total=args.steps, loss="")
        mean: Tensor | float = 1.0
        done = 0

        def advance(loss: Tensor) -> None:
            nonlocal mean, done
            mean, done = mean + 0.02 * (loss - mean), done + 1
            progress.update(task, advance=1)
            if done % 20 == 0:  # to read it waits for the device
                progress.update(task, loss=f"loss {float(mean):.4f}")

        train_tracker(
            args.out, steps=args.steps, seed=args.seed, version=args.version, device=device_of(args), advance=advance
        )
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.2f} MB; `af tracker check --weights {args.out}` measures it")
    return 0


def _check(args: argparse.Namespace) -> int:
    from rich.table import Table

    from af.console import show
    from af.models.tracker import load_tracker
    from af.training.tracker import check_tracker

    tracker = load_tracker(args.weights, device_of(args))
    found = check_tracker(tracker, people=args.people, seed=args.seed, frames_each=20)
    said = f"{args.people} people not seen in training, {20 * args.people} frames each kind"
    kinds = {"clean": "conversation", "degraded": "degraded", "wide": "all ranges"}
    title = f"{tracker.face_spec.tracker}: {said}"
    table = Table("parameter", *(f"R² {kind}" for kind in kinds.values()), title=title)
    for name, *values in zip(tracker.face_spec.names, *(found[kind] for kind in kinds), strict=True):
        table.add_row(name, *(f"{value:.3f}" for value in values))
    show(table)
    return 0
