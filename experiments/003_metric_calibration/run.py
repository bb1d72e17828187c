"""Which metric sees which fault: controlled degradations of synthetic conversations against every metric.

    python experiments/003_metric_calibration/run.py

A perfect model is another sample, not a copy: every condition is built on "another sample", which has the true lips and
the true reactions but blinks, gaze and sway of somebody else. A fault is seen when a metric moves from that sample's
value by at least three bootstrap standard errors of the difference (same sessions drawn on both sides). The row "a third
sample" has no fault: what it triggers is a false alarm. Stopped? The same command goes on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.progress import track
from scipy.ndimage import gaussian_filter1d

from af.data.synth.face import FACE_INDEX, FACE_RANGES, FACE_SPEC
from af.data.synth.render import render
from af.data.synth.session import Session, SessionConfig, simulate
from af.metrics.arrays import as_array
from af.metrics.bootstrap import bootstrap_values, finish_mean, mean_sums
from af.metrics.evaluation import EvaluationClip, Protocol
from af.metrics.extractors import thumbnail
from af.metrics.functional import csim, fd
from af.metrics.plots import COLOURS
from af.metrics.rows import write_text
from af.metrics.table import parameter_report

LIPS = [FACE_INDEX["mouth_open"], FACE_INDEX["mouth_width"]]
METRICS = (
    "rpcc/exp", "rpcc/pose", "rpcc/exp/clip", "rpcc/pose/clip", "tlcc/exp/peak", "tlcc/exp/lag", "tlcc/pose/peak",
    "tlcc/pose/lag", "pfd/exp", "pfd/pose", "reaction_gain", "react/smile", "react/tilt", "react/nod", "lip/corr",
    "lip/lag", "mouth/corr", "mouth/lag", "sid/exp", "sid/pose", "var/exp", "var/pose", "var_ratio/exp",
    "var_ratio/pose", "fd/exp", "fd/pose", "border_ratio/exp", "border_ratio/pose", "jerk/exp", "jerk/pose",
    "fd_img/thumbnail4-1", "csim/thumbnail8-1", "l1",
)  # fmt: skip
RENDERED, RENDERED_FRAMES, SIZE = 24, 100, 64


@dataclass(frozen=True)
class Material:
    """Sessions, the avatar's motion without reactions, and the reactions alone."""

    sessions: list[Session]
    alone: list[np.ndarray]
    reactions: list[np.ndarray]

    @classmethod
    def make(cls, count: int, seed: int) -> Material:
        """Simulate `count` conversations twice: as they are, and with nobody answering."""
        silent = SessionConfig(smile_answer=0, tilt_answer=0, nod_answer=0)
        sessions, alone = [], []
        for i in track(range(count), description="conversations"):
            sessions.append(simulate(seed + i))
            alone.append(as_array(simulate(seed + i, silent, sound=False).b.face))
        reactions = [as_array(s.b.face) - a for s, a in zip(sessions, alone, strict=True)]
        return cls(sessions, alone, reactions)

    def other(self, i: int, step: int = 1) -> int:
        """Another session's number."""
        return (i + step) % len(self.sessions)

    def talker(self, i: int, step: int = 1) -> np.ndarray:
        """A blind talking avatar: the true lips, everything else of somebody else who reacts to nobody."""
        motion = self.alone[self.other(i, step)].copy()
        motion[:, LIPS] = self.alone[i][:, LIPS]
        return motion

    def sample(self, i: int, step: int = 1) -> np.ndarray:
        """Another perfect sample: the blind talker plus the true reactions."""
        return self.talker(i, step) + self.reactions[i]


Condition = Callable[[Material, int, np.random.Generator], np.ndarray]


def late(motion: np.ndarray, frames: int) -> np.ndarray:
    """Motion `frames` later, its first frame repeated."""
    return motion[np.maximum(np.arange(len(motion)) - frames, 0)]


def late_lips(m: Material, i: int, frames: int) -> np.ndarray:
    """The sample with its lips late."""
    motion = m.sample(i)
    motion[:, LIPS] = late(motion[:, LIPS], frames)
    return motion


def noisy(m: Material, i: int, share: float, rng: np.random.Generator, block: int | None = None) -> np.ndarray:
    """The sample with noise of `share` of each parameter's deviation: every frame, or one offset a block."""
    motion = m.sample(i)
    frames = len(motion)
    count = frames if block is None else -(-frames // block)
    noise = rng.standard_normal((count, motion.shape[1]))
    return motion + share * motion.std(0) * (noise if block is None else np.repeat(noise, block, axis=0)[:frames])


def copied(m: Material, i: int) -> np.ndarray:
    """The user's own motion at once, with the avatar's lips: mirrors everything and understands nothing."""
    motion = as_array(m.sessions[i].a.face).copy()
    motion[:, LIPS] = m.alone[i][:, LIPS]
    return motion


def stranger_lips(m: Material, i: int) -> np.ndarray:
    """The sample with the lips of another conversation."""
    motion = m.sample(i)
    motion[:, LIPS] = m.alone[m.other(i, 3)][:, LIPS]
    return motion


def scaled(m: Material, i: int, share: float) -> np.ndarray:
    """The sample with its motion scaled about its mean."""
    motion = m.sample(i)
    return motion.mean(0) + share * (motion - motion.mean(0))


BASE = "another sample"
CONDITIONS: dict[str, Condition] = {
    "the truth itself": lambda m, i, _: as_array(m.sessions[i].b.face),
    BASE: lambda m, i, _: m.sample(i),
    "a third sample": lambda m, i, _: m.sample(i, 2),
    **{
        f"reactions {d / 25:.1f} s late": lambda m, i, _, d=d: m.talker(i) + late(m.reactions[i], d)
        for d in (5, 10, 15, 20, 25)
    },
    "reactions halved": lambda m, i, _: m.talker(i) + 0.5 * m.reactions[i],
    "reactions removed (blind talker)": lambda m, i, _: m.talker(i),
    "reactions of another session": lambda m, i, _: m.talker(i) + m.reactions[m.other(i, 3)],
    "copies the user": lambda m, i, _: copied(m, i),
    **{f"lips {n} frames late": lambda m, i, _, n=n: late_lips(m, i, n) for n in (1, 2, 3, 5, 10)},
    "lips of another session": lambda m, i, _: stranger_lips(m, i),
    **{f"smoothed σ {s} frames": lambda m, i, _, s=s: gaussian_filter1d(m.sample(i), s, axis=0) for s in (1, 2, 4)},
    **{f"noise {s:.0%}": lambda m, i, rng, s=s: noisy(m, i, s, rng) for s in (0.05, 0.1, 0.3)},
    **{f"jumps at blocks {s:.0%}": lambda m, i, rng, s=s: noisy(m, i, s, rng, 10) for s in (0.05, 0.1, 0.3)},
    "half the motion": lambda m, i, _: scaled(m, i, 0.5),
    "frozen": lambda m, i, _: scaled(m, i, 0.0),
    "identity swapped": lambda m, i, _: m.sample(i),  # only the pictures differ
}  # fmt: skip


def measure(name: str, material: Material, seed: int, resamples: int) -> dict:
    """Values and bootstrap draws of every metric under one condition."""
    low, high = (np.array([FACE_RANGES[n][k] for n in FACE_SPEC.names]) for k in (0, 1))
    clips = []
    for i, session in enumerate(material.sessions):
        rng = np.random.default_rng([seed, i])
        motion = np.clip(CONDITIONS[name](material, i, rng), low, high)
        clips.append(
            EvaluationClip(
                f"{i:03d}",
                f"{i:03d}",
                as_array(session.a.face),
                as_array(session.b.face),
                motion,
                FACE_SPEC,
                session.b.audio,
                session.a.audio,
                session.a.phrase_ends,
            )
        )
    report = parameter_report(clips, Protocol(block=10, clusters=((40, 20),), resamples=resamples, seed=seed))
    values = {row.tag: row.value for row in report.rows}
    nulls = {row.tag: row.null for row in report.rows if row.null is not None}
    truths = {row.tag: row.ground_truth for row in report.rows if row.ground_truth is not None}
    draws = {tag: report.draws[tag] for tag in METRICS if tag in report.draws}
    values_of_pictures, draws_of_pictures = picture_metrics(
        clips, material, name == "identity swapped", resamples, seed
    )
    values |= values_of_pictures
    draws |= draws_of_pictures
    rows = {
        tag: {"value": values[tag], "draws": draws[tag].tolist(), "null": nulls.get(tag), "truth": truths.get(tag)}
        for tag in METRICS
        if tag in draws
    }
    lag = report.curves.get("reaction_gain")
    return {"metrics": rows, "gain_by_lag": None if lag is None else [lag[0].tolist(), lag[1]["generated"].tolist()]}


def picture_metrics(
    clips: list[EvaluationClip], material: Material, swap: bool, resamples: int, seed: int
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Distances of rendered frames; the embedder of `csim` is a stand-in (centred thumbnails), not a face network."""
    coarse, fine = thumbnail(4), thumbnail(8)
    rows: dict[str, list[float]] = {"fd_img/thumbnail4-1": [], "csim/thumbnail8-1": [], "l1": []}
    for i, clip in enumerate(clips[:RENDERED]):
        own = material.sessions[i].b.appearance
        shown = material.sessions[material.other(i)].b.appearance if swap else own
        part = slice(0, RENDERED_FRAMES)
        true = render(clip.true[part].astype(np.float32), own, SIZE)
        generated = render(clip.generated[part].astype(np.float32), shown, SIZE)
        rows["fd_img/thumbnail4-1"].append(fd([coarse(true)], [coarse(generated)]))
        rows["csim/thumbnail8-1"].append(float(np.mean(csim(fine(generated) - 0.5, fine(true[:1]) - 0.5))))
        rows["l1"].append(float(np.abs(generated.astype(float) - true).mean() / 255))
    sums = {tag: mean_sums(np.array(values)) for tag, values in rows.items()}
    values = {tag: float(finish_mean(s.sum(0))) for tag, s in sums.items()}
    return values, {tag: bootstrap_values(s, finish_mean, None, resamples, seed) for tag, s in sums.items()}


def difference(base: dict, other: dict) -> tuple[float, float]:
    """(difference in bootstrap standard errors, two-sided bootstrap p) of a metric between two conditions."""
    change = other["value"] - base["value"]
    draws = np.array(other["draws"]) - np.array(base["draws"])
    error = float(np.nanstd(draws, ddof=1))
    if not np.isfinite(change):
        return float("nan"), float("nan")
    p = 2 * min(np.mean(draws <= 0), np.mean(draws >= 0))
    score = 0.0 if change == 0 else change / error if error > 1e-12 else np.sign(change) * 99.0
    return float(np.clip(score, -99, 99)), float(max(min(p, 1.0), 1 / len(draws)))


def tables(results: dict[str, dict]) -> tuple[str, dict]:
    """The Markdown report and everything as JSON."""
    base, summary = results[BASE]["metrics"], {}
    tags = [t for t in METRICS if t in base]
    lines = ["| condition | " + " | ".join(f"`{t}`" for t in tags) + " |", "| --- |" + " ---: |" * len(tags)]
    seen: dict[str, list[str]] = {t: [] for t in tags}
    false_alarms: dict[str, float] = {}
    for name, result in results.items():
        cells, summary[name] = [], {}
        for tag in tags:
            row = result["metrics"].get(tag)
            if row is None:
                cells.append("–")
                continue
            score, p = difference(base[tag], row)
            summary[name][tag] = {"value": row["value"], "z": score, "p": p, "null": row["null"]}
            moved = abs(score) >= 3 and name != BASE
            cells.append(f"**{row['value']:.3g}** ({score:+.0f})" if moved else f"{row['value']:.3g}")
            if name == "a third sample":
                false_alarms[tag] = score
            elif moved and name not in (BASE, "the truth itself"):
                seen[tag].append(name)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    faults = [n for n in results if n not in (BASE, "the truth itself", "a third sample")]
    reading = ["| metric | faults seen | blind to | false alarm on a third sample |", "| --- | --- | --- | ---: |"]
    for tag in tags:
        blind = [n for n in faults if n not in seen[tag]]
        alarm = false_alarms.get(tag, float("nan"))
        mark = f"**{alarm:+.1f}**" if abs(alarm) >= 3 else f"{alarm:+.1f}"
        reading.append(f"| `{tag}` | {', '.join(seen[tag]) or '–'} | {', '.join(blind) or '–'} | {mark} |")
    legend = (
        "Bold: at least 3 standard errors from “another sample” (in brackets how many, with the sign of the change)."
    )
    text = "\n".join([legend, "", *lines, "", "## By metric", "", *reading, ""])
    return text, {"conditions": summary, "false_alarms": false_alarms}


def plot(results: dict[str, dict], folder: Path) -> None:
    """A map of all z scores and the dose-response of reactions and lips."""
    from matplotlib.figure import Figure

    base = results[BASE]["metrics"]
    tags, names = [t for t in METRICS if t in base], [n for n in results if n != BASE]
    scores = np.array(
        [
            [difference(base[t], results[n]["metrics"][t])[0] if t in results[n]["metrics"] else np.nan for t in tags]
            for n in names
        ]
    )
    figure = Figure(figsize=(0.42 * len(tags) + 3.4, 0.3 * len(names) + 2.4), layout="constrained")
    axes = figure.subplots()
    shown = np.sign(scores) * np.where(np.abs(scores) >= 3, np.log2(np.maximum(np.abs(scores), 1e-9) / 1.5), 0)
    image = axes.imshow(shown, cmap="RdBu_r", vmin=-6, vmax=6, aspect="auto")
    for (r, c), score in np.ndenumerate(scores):
        if abs(score) >= 3:
            colour = "white" if abs(shown[r, c]) > 3 else "black"
            axes.text(c, r, f"{score:+.0f}", ha="center", va="center", fontsize=6, color=colour)
    axes.set_xticks(range(len(tags)), tags, rotation=70, ha="right", rotation_mode="anchor", fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_title("change from another perfect sample, in standard errors (white: under 3)", fontsize=10)
    bar = figure.colorbar(image, ax=axes, shrink=0.5, ticks=[-5.06, -2.74, -1, 1, 2.74, 5.06])
    bar.ax.set_yticklabels(["−50", "−10", "−3", "+3", "+10", "+50"], fontsize=7)
    figure.savefig(folder / "map.png", dpi=130)
    doses = Figure(figsize=(10, 3.6), layout="constrained")
    left, middle, right = doses.subplots(1, 3)
    delays = [(0.0, BASE), *[(d / 25, f"reactions {d / 25:.1f} s late") for d in (5, 10, 15, 20, 25)]]
    for tag, colour in (("reaction_gain", "#d1495b"), ("react/smile", "#3d7ea6"), ("tlcc/exp/peak", "#66a182")):
        values = [results[n]["metrics"][tag]["value"] / base[tag]["value"] for _, n in delays]
        left.plot([d for d, _ in delays], values, "o-", color=colour, label=tag)
        removed = results["reactions removed (blind talker)"]["metrics"][tag]["value"] / base[tag]["value"]
        left.axhline(removed, color=colour, ls=":", lw=1)
    left.set_xlabel("reactions late by (s); dotted: removed")
    left.set_ylabel("value / value of a perfect sample")
    shifts = [(0, BASE), *[(n, f"lips {n} frames late") for n in (1, 2, 3, 5, 10)]]
    for tag, style in (("lip/lag", "o-"), ("mouth/lag", "s--")):
        middle.plot([s for s, _ in shifts], [results[n]["metrics"][tag]["value"] for _, n in shifts], style, label=tag)
    middle.set_xlabel("lips late by (frames)")
    middle.set_ylabel("measured lag (frames)")
    for name, colour in ((BASE, COLOURS["true"]), ("reactions 0.4 s late", COLOURS["user"]),
                         ("reactions removed (blind talker)", COLOURS["generated"])):  # fmt: skip
        x, y = results[name]["gain_by_lag"]
        right.plot(x, y, "o-", ms=3, color=colour, label=name)
    right.set_xlabel("lag of the user's signal (s)")
    right.set_ylabel("reaction gain (nats)")
    for axes in (left, middle, right):
        axes.legend(frameon=False, fontsize=7)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    doses.savefig(folder / "doses.png", dpi=130)


def main() -> None:
    """Run what is missing, then write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--cache", type=Path, default=Path("runs/metric_calibration"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    args.cache.mkdir(parents=True, exist_ok=True)
    setting = f"{args.sessions}-{args.seed}-{args.resamples}"
    paths = {name: args.cache / f"{setting}-{n:02d}.json" for n, name in enumerate(CONDITIONS)}
    missing = [name for name, path in paths.items() if not path.is_file()]
    if missing:
        material = Material.make(args.sessions, args.seed)
        for name in track(missing, description="conditions"):
            write_text(paths[name], json.dumps({"name": name, **measure(name, material, args.seed, args.resamples)}))
    results = {name: json.loads(path.read_text()) for name, path in paths.items()}
    text, summary = tables(results)
    args.out.mkdir(parents=True, exist_ok=True)
    gain = summary["conditions"]["reactions removed (blind talker)"]["reaction_gain"]
    head = (
        f"# Metric calibration\n\n{args.sessions} conversations of 16 s, seed {args.seed}, {args.resamples} bootstrap draws."
        f"\n\nReactions removed: reaction gain {gain['value']:.4f} nats (another sample "
        f"{summary['conditions'][BASE]['reaction_gain']['value']:.4f}), p = {gain['p']:.2g} for the difference.\n\n"
        "![map](map.png)\n\n![doses](doses.png)\n\n"
    )
    write_text(args.out / "table.md", head + text)
    write_text(args.out / "table.json", json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
    plot(results, args.out)
    print(head)


if __name__ == "__main__":
    main()
