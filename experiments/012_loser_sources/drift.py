"""Can losers be told from the truth for another reason than missing reactions? See README.md.

Errors of the model that made them, on winners and losers of the validation conversations, by time since the roll-out
began; the model at its best (`guided`, no loser at all) is the control.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from af.cli.main import main as af
from af.clock import frames_to_seconds
from af.data.index import Index
from af.data.plan import fixed_windows
from af.data.windows import WindowDataset
from af.evaluation.plots import save_figures
from af.files import write_json
from af.forcing.noise import FlowTimes
from af.forcing.path import interpolate, target_velocity
from af.losses.velocity import VelocityLoss
from af.models.artifact import load_as
from af.models.denoiser import MotionDenoiser
from af.pipeline.losers import WeakUser
from af.pipeline.teacher import teacher_noise
from af.training.denoiser import conditioned
from af.training.preference import OnlineLosers
from af.training.randomness import Draws, step_generator
from af.types import DyadBatch

SOURCES = {
    "guided": ["teacher", "--guidance-audio", "1"],
    "drop_user": ["losers"],
    "drop_user, w_a = 1": ["losers", "losers.audio=1"],
    "weak": ["losers", "losers=weak"],
    "shuffled": ["losers", "losers=shuffled"],
}


def main() -> None:
    """Make losers of the validation split, measure, write drift.json and plots/drift.png."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--latents", type=Path, default=Path("data/demo-latents"))
    parser.add_argument("--start", type=Path, default=Path("runs/demo/denoiser/export"), help="model folder")
    parser.add_argument("--runs", type=Path, default=Path("runs/experiments/loser_drift"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    args = parser.parse_args()
    model = load_as(args.start, MotionDenoiser)[0].eval()
    layout, split = model.layout, args.latents / "val"
    items = fixed_windows(Index.load(split), frames=layout.window_frames, block=layout.block_frames)
    seconds = torch.tensor([frames_to_seconds(item.start) for item in items])
    found = {}
    for name, options in SOURCES.items():
        folder = args.runs / name.replace(" ", "")
        if not (folder / "val" / "index.json").is_file():
            data = ["--data", str(args.latents), "--denoiser", str(args.start), "--splits", "val"]
            if code := af([*options, *data, "--out", str(folder)]):
                raise SystemExit(code)
        made = {"teacher" if name == "guided" else "losers": folder / "val"}
        data = WindowDataset(split, frames=layout.window_frames, noise_of=teacher_noise, **made)
        batch = data.collate([data[item] for item in items])
        found[name] = measured(model, batch, batch.teacher if name == "guided" else batch.loser, seconds)
    online = OnlineLosers(WeakUser())(model, model, batch, Draws(step_generator(0, 0), len(items)))
    found["drop_user on line"] = measured(model, batch, online, seconds)
    write_json(args.out / "drift.json", found)
    save_figures(args.out / "plots", {"drift": picture(found)})
    for name, row in found.items():
        first, *_, last = row["loser"]
        print(f"{name:20} winner {row['winner_mean']:.3f} loser {row['loser_mean']:.3f} ({first:.2f} to {last:.2f})")


@torch.no_grad()
def measured(model: MotionDenoiser, batch: DyadBatch, loser: Tensor | None, seconds: Tensor) -> dict:
    """Mean L1 errors under one draw of noise and flow times: of all windows, and by the second they begin at."""
    assert loser is not None
    condition, reference = conditioned(model, batch)
    winner, loser = (model.motion_space.to_model(x) for x in (batch.avatar_motion, loser))
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(winner.shape, generator=generator)
    t = FlowTimes(model.layout.block_frames)(*winner.shape[:2], generator=generator)
    valid, errors = batch.valid, {}
    for name, clean in (("winner", winner), ("loser", loser)):
        velocity = model(interpolate(noise, clean, t), t, condition, reference)
        errors[name] = VelocityLoss("l1")(velocity, target_velocity(noise, clean))
    begins = seconds.unique().tolist()
    by_time = {name: [e[seconds == s][valid[seconds == s]].mean().item() for s in begins] for name, e in errors.items()}
    means = {f"{name}_mean": e[valid].mean().item() for name, e in errors.items()}
    harder = (errors["loser"] > errors["winner"])[valid].float().mean().item()
    return {**means, "share_of_frames_where_loser_is_harder": harder, "seconds": begins, **by_time}


def picture(found: dict) -> Figure:
    """Error against the time since the roll-out began."""
    figure = Figure(figsize=(6.5, 3.6), layout="constrained")
    axes = figure.subplots()
    for name, row in found.items():
        axes.plot(row["seconds"], row["loser"], marker=".", label=name)
    axes.plot(row["seconds"], row["winner"], color="#222222", lw=2, label="true motion (winner)")
    axes.set_xlabel("window begins, s after the start")
    axes.set_ylabel("the model's L1 error")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    return figure


if __name__ == "__main__":
    main()
