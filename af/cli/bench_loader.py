"""`af bench loader`: speeds of reading, by workers and by what the time goes into, as numbers and as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from af.data.stores import Location


def bench(folder: Location, workers: Sequence[int]) -> dict[str, Any]:
    """Speeds of a split folder: those of one process (`af.data.bench`), and `loader`: by kind of samples and workers."""
    from af.data.bench import bench as one_process
    from af.data.bench_workers import loader_speeds

    speeds = loader_speeds(folder, workers=workers)
    return {**one_process(folder), "loader": {name: speed.to_json() for name, speed in speeds.items()}}


def plot(loader: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Samples and megabytes a second by workers, and the shares of a process's time, one row a kind of samples."""
    from matplotlib.figure import Figure

    from af.files import atomic_path

    figure = Figure(figsize=(9, 2.6 * len(loader)), layout="constrained")
    rows = figure.subplots(len(loader), 2, squeeze=False, width_ratios=(3, 2))
    for (speed, shares), (name, found) in zip(rows, loader.items(), strict=True):
        labels = [f"{row['workers']:g}" for row in found["by_workers"]]
        bars = speed.bar(labels, [row["samples_per_s"] for row in found["by_workers"]], color="C0")
        speed.bar_label(bars, [f"{row['bytes_per_s'] / 1e6:.1f} MB/s" for row in found["by_workers"]])
        speed.margins(y=0.15)
        speed.set(xlabel="workers (0: the training process)", ylabel=f"{name} / s")
        parts = [(part, found[part]) for part in ("read", "decode", "collate")]
        bars = shares.barh([part for part, _ in parts], [share for _, share in parts], color="C1")
        shares.bar_label(bars, [f"{share:.0%}" for _, share in parts], padding=2)
        shares.invert_yaxis()
        shares.set(xlim=(0, 1.15), xlabel="share of one process's time")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
