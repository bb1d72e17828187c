"""How far roll-outs of four minutes drift: python drift.py runs/forcing writes runs/forcing/report/plots/drift.png."""

import json
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from af.evaluation.plots import save_figures


def over_time(runs: Path) -> Figure:
    """Distance of 20 s windows to the training motion along the roll-outs, mean and range over seeds."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots()
    found: dict[str, list[dict]] = {}
    for file in sorted(runs.glob("*/evaluation/long*/drift.json")):
        name = f"{file.parents[2].name.partition(',')[0]}, {file.parent.name}"
        found.setdefault(name, []).append(json.loads(file.read_text()))
    for name, seeds in found.items():
        distance = np.array([seed["distance"] for seed in seeds])
        (line,) = axes.plot(seeds[0]["start_s"], distance.mean(0), marker=".", label=name)
        axes.fill_between(
            seeds[0]["start_s"], distance.min(0), distance.max(0), color=line.get_color(), alpha=0.15, lw=0
        )
        true = np.mean([seed["true"] for seed in seeds], 0)
    axes.plot(seeds[0]["start_s"], true, color="#222222", ls="--", label="true motion")
    axes.set(xlabel="start of the window, s", ylabel="Fréchet distance to the training motion", ylim=(0, None))
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


if __name__ == "__main__":
    save_figures(Path(sys.argv[1]) / "report" / "plots", {"drift": over_time(Path(sys.argv[1]))})
