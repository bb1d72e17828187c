"""Masks, block sizes, look-ahead; and forcing, autoregressive, bidirectional over minutes. See README.md."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from af.evaluation.plots import save_figures
from experiments.grid import TAGS, arguments, evaluate, train, write_table

TITLE = "Causal diffusion forcing: mask, block size and look-ahead, one factor at a time"
DRIFT_TITLE = "Roll-outs of four minutes"
COMMON = ["features.block_frames=5", "trainer.max_steps=800", "trainer.val_check_interval=800"]
GUIDED = ["--guidance-user", "2"]

FORCING = (
    "forcing"  # block_lookahead, blocks of 10, 2 frames ahead in every layer, cross-attention to 2 frames each side
)
TRAININGS = {
    FORCING: [],
    "autoregressive": ["scheme=autoregressive"],
    "bidirectional": ["scheme=bidirectional"],
    "block 5": ["model.block_frames=5"],
    "block 25": ["model.block_frames=25"],
    "reach 0": ["model.condition_reach=0"],
    "look-ahead 0 and reach 0": ["model.look_ahead=0"],
    "look-ahead 4 and reach 4": ["model.look_ahead=4"],
    "look-ahead 2 in the first layer": ["model.look_ahead_layers=first"],
    "mask block_causal": ["model.mask=block_causal"],
    "mask frame_lookahead": ["model.mask=frame_lookahead"],
}
LONG = {
    "forcing": (FORCING, []),
    "forcing, 10 frames of the portrait kept": (FORCING, ["--anchor-sink", "10"]),
    "forcing, pulled by 0.1": (FORCING, ["--anchor-pull", "0.1"]),
    "autoregressive": ("autoregressive", []),
    "bidirectional": ("bidirectional", []),
}
LONG_TAGS = ("drift/distance/first", "drift/distance/last", "reaction_gain", "mouth/corr", "var_ratio/pitch")


def main() -> None:
    """Run what is not done; two tables."""
    args = arguments(Path(__file__).parent, TITLE)
    for seed in () if args.table else args.seeds:
        for name, overrides in TRAININGS.items():
            run = args.runs / f"{name}-{seed}"
            model = train(run, "denoiser_demo", args.latents, seed, [*COMMON, *overrides, *args.overrides])
            evaluate(run / "evaluation" / "short", model, args.latents, GUIDED)
        for name, (trained, options) in LONG.items():
            run = args.runs / f"{trained}-{seed}"
            evaluate(run / "evaluation" / name, run / "export", args.latents, [*GUIDED, "--drift", *options])
    short = {n: [args.runs / f"{n}-{seed}" / "evaluation" / "short" for seed in args.seeds] for n in TRAININGS}
    write_table(args.out, TITLE, short, (*TAGS, "latency/waiting/mean_ms"))
    long = {n: [args.runs / f"{t}-{seed}" / "evaluation" / n for seed in args.seeds] for n, (t, _) in LONG.items()}
    write_table(args.out / "drift", DRIFT_TITLE, long, LONG_TAGS)
    save_figures(args.out / "drift" / "plots", {"distance_over_time": over_time(long)})


def over_time(folders: Mapping[str, Sequence[Path]]) -> Figure:
    """Distance of 20 s windows to the training motion along the roll-outs, mean and range over seeds."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots()
    true: list[list[float]] = []
    for name, evaluations in folders.items():
        files = [folder / "drift.json" for folder in evaluations if (folder / "drift.json").is_file()]
        if not files:
            continue
        found = [json.loads(file.read_text()) for file in files]
        seconds, distance = found[0]["start_s"], np.array([f["distance"] for f in found])
        true = [f["true"] for f in found]
        (line,) = axes.plot(seconds, distance.mean(0), marker=".", label=name)
        axes.fill_between(seconds, distance.min(0), distance.max(0), color=line.get_color(), alpha=0.15, lw=0)
    if true:
        axes.plot(seconds, np.mean(true, 0), color="#222222", ls="--", label="true motion")
    axes.set(xlabel="start of the window, s", ylabel="Fréchet distance to the training motion", ylim=(0, None))
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    axes.grid(alpha=0.25)
    return figure


if __name__ == "__main__":
    main()
