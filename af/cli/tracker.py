"""Train or check the small face tracker of the synthetic faces (its weights come with the package).

  af tracker check                                  R² of every parameter on people never seen in training
  af tracker check --weights my.safetensors
  af tracker train --out my.safetensors --steps 4000 --seed 0

The tracker reads the 13 face parameters from images, so that generated videos can be compared with true ones. It is
trained on freshly drawn people, on images blurred, recoloured and compressed as generated ones may be. It knows
synthetic faces only; for real videos use a tracker of real faces.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from af.cli.kinds import Count, Device, OutFile, Seed

if TYPE_CHECKING:
    from torch import Tensor


def train(
    *,
    out: Annotated[OutFile, "file for the weights (.safetensors)"],
    steps: Annotated[Count, "default 4000: some ten minutes on one free core"] = 4000,
    seed: Seed = 0,
    version: Annotated[str, "named in the tags of all numbers made with it"] = "1",
    device: Device = "auto",
    threads: Annotated[Count, "CPU threads"] = 1,
) -> None:
    """Train new weights."""
    import torch
    from rich.progress import TextColumn

    from af.console import progress_bar
    from af.files import require_suffix
    from af.training.tracker import train_tracker

    require_suffix(out, (".safetensors",), "--out")
    torch.set_num_threads(threads)
    with progress_bar(TextColumn("{task.fields[loss]}")) as progress:
        task = progress.add_task("training the tracker", total=steps, loss="")
        mean: Tensor | float = 1.0
        done = 0

        def advance(loss: Tensor) -> None:
            nonlocal mean, done
            mean, done = mean + 0.02 * (loss - mean), done + 1
            progress.update(task, advance=1)
            if done % 20 == 0:  # to read it waits for the device
                progress.update(task, loss=f"loss {float(mean):.4f}")

        train_tracker(out, steps=steps, seed=seed, version=version, device=device, advance=advance)
    print(f"{out}: {out.stat().st_size / 1e6:.2f} MB; `af tracker check --weights {out}` measures it")


def check(
    *,
    weights: Annotated[Path | None, "weights to check (default: the shipped ones)"] = None,
    people: Annotated[Count, "held-out people"] = 100,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Print R² per parameter on held-out people."""
    from rich.table import Table

    from af.console import show
    from af.models.tracker import load_tracker
    from af.training.tracker import check_tracker

    tracker = load_tracker(weights, device)
    found = check_tracker(tracker, people=people, seed=seed, frames_each=20)
    said = f"{people} people not seen in training, {20 * people} frames each kind"
    kinds = {"clean": "conversation", "degraded": "degraded", "wide": "all ranges"}
    title = f"{tracker.face_spec.tracker}: {said}"
    table = Table("parameter", *(f"R² {kind}" for kind in kinds.values()), title=title)
    for name, *values in zip(tracker.face_spec.names, *(found[kind] for kind in kinds), strict=True):
        table.add_row(name, *(f"{value:.3f}" for value in values))
    show(table)


VERBS = (train, check)
