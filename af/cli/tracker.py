"""Train or check the small face tracker of the synthetic faces (its weights come with the package).

  af tracker check                                  R² of every parameter on people never seen in training
  af tracker check --weights my.safetensors
  af tracker train --out my.safetensors --minutes 15 --seed 0

The tracker reads the 13 face parameters from pictures, so that generated videos can be compared with true ones. It is
trained on freshly drawn people, on pictures blurred, recoloured and compressed as generated ones may be. It knows
synthetic faces only; for real videos use a tracker of real faces.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `af tracker`."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="train | check")
    train = actions.add_parser("train", help="train new weights")
    train.add_argument("--out", type=Path, required=True, help="file for the weights (.safetensors)")
    train.add_argument("--minutes", type=float, default=15.0, help="how long (default 15)")
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--version", default="1", help="named in the tags of all numbers made with it (default 1)")
    train.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    check = actions.add_parser("check", help="print R² per parameter on held-out people")
    check.add_argument("--weights", type=Path, help="weights to check (default: the shipped ones)")
    check.add_argument("--people", type=int, default=100, help="held-out people (default 100)")
    check.add_argument("--seed", type=int, default=0)


def run(args: argparse.Namespace) -> int:
    """Train or check."""
    import torch

    if args.action == "train":
        torch.set_num_threads(args.threads)
        return _train(args)
    return _check(args)


def _train(args: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from af.errors import UserError
    from af.training.tracker import train_tracker

    if args.minutes <= 0:
        raise UserError(f"--minutes must be positive, got {args.minutes}")
    columns = (TextColumn("training the tracker"), BarColumn(), TextColumn("loss {task.fields[loss]:.4f}"))
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=1.0, loss=float("nan"))
        mean = 1.0

        def advance(done: float, loss: float) -> None:
            nonlocal mean
            mean += 0.02 * (loss - mean)
            progress.update(task, completed=done, loss=mean)

        steps = train_tracker(args.out, minutes=args.minutes, seed=args.seed, version=args.version, advance=advance)
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.2f} MB after {steps} steps; `af tracker check` measures it")
    return 0


def _check(args: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    from af.models.tracker import load_tracker
    from af.training.tracker import check_tracker

    tracker = load_tracker(args.weights)
    result = check_tracker(tracker, people=args.people, seed=args.seed)
    table = Table(
        "parameter",
        *(f"R² {kind}" for kind in ("conversation", "degraded", "all ranges")),
        title=f"{tracker.face_spec.tracker}: {args.people} people not seen in training, {result.frames} frames each kind",
    )
    for row in zip(result.names, result.clean, result.degraded, result.wide, strict=True):
        table.add_row(row[0], *(f"{value:.3f}" for value in row[1:]))
    Console().print(table)
    return 0
