"""Plots of an evaluation: curves by lag, mouth opening over time, jitter at block borders."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float
from PIL import Image

from af.clock import FPS
from af.evaluation.table import headline, markdown_table
from af.files import atomic_path
from af.metrics.lipsync import mouth_column
from af.metrics.records import Curve, EvaluationClip, MetricResult, MetricRow

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {"true": "#222222", "generated": "#d1495b", "null": "#9aa5b1", "user": "#3d7ea6"}


def _figure(width: float = 7.0, height: float = 3.4) -> Figure:
    from matplotlib.figure import Figure  # figures without pyplot need no global state and no display

    return Figure(figsize=(width, height), layout="constrained")


def _decorate(axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def plot_curve(curve: Curve) -> Figure:
    """Lines for generated, true and null, dashed for a second line of one side ("true, small"); 0 is marked if x has both
    signs.
    """
    figure = _figure()
    axes = figure.subplots()
    for key, values in curve.series.items():
        side, _, which = key.partition(", ")
        style = "--" if which == "small" else "-"
        axes.plot(curve.x, values, style, color=COLOURS.get(side), label=key, lw=1.8)
    axes.axhline(0, color="k", lw=0.6)
    if curve.x.min() < 0:
        axes.axvline(0, color="k", lw=0.6)
    _decorate(axes, curve.title, curve.x_label, curve.y_label)
    axes.legend(frameon=False, fontsize=8)
    return figure


def plot_mouth(clips: Sequence[EvaluationClip], count: int = 4, seconds: float = 8.0) -> Figure | None:
    """Mouth opening over time, generated over true, of the first `count` clips; None without a mouth parameter."""
    face = clips[0].face
    mouth = mouth_column(face)
    if face is None or mouth is None:
        return None
    shown = clips[:count]
    figure = _figure(8.0, 1.2 + 1.3 * len(shown))
    rows = np.atleast_1d(figure.subplots(len(shown), 1, sharex=True))
    for axes, clip in zip(rows, shown, strict=True):
        frames = round(seconds * FPS)
        for side in ("true", "generated"):
            opening = clip.side(side, mouth)[:frames]
            axes.plot(np.arange(len(opening)) / FPS, opening, color=COLOURS[side], lw=1.2, label=side)
        _decorate(axes, clip.name, "", face.names[mouth])
    rows[0].legend(frameon=False, fontsize=8, ncols=2, loc="upper right")
    rows[-1].set_xlabel("time (s)")
    return figure


def plot_borders(
    sides: Mapping[str, Sequence[Float[np.ndarray, "T F"]]], block: int, first: int | None = None, of: str = ""
) -> Figure:
    """Mean |second difference| by position in the block, generated and true, relative to the middle frames.

    `sides` {"true" | "generated": clips} are face parameters or image features, as named by `of`.
    """
    figure = _figure()
    axes = figure.subplots()
    start = block if first is None else first
    for key, clips in sides.items():
        total, count = np.zeros(block), np.zeros(block)
        for clip in clips:
            values = np.asarray(clip, np.float64)
            scale = values.std(0)
            bend = np.abs(np.diff(values / np.where(scale > 0, scale, np.inf), n=2, axis=0)).mean(1)
            place = (np.arange(1, len(values) - 1) - start) % block
            kept = np.arange(1, len(values) - 1) >= start - block // 2
            np.add.at(total, place[kept], bend[kept])
            np.add.at(count, place[kept], 1)
        mean = total / np.maximum(count, 1)
        centred = np.roll(mean, block // 2)  # the border in the middle of the plot
        inner = np.median(mean[1:-1]) if block > 2 else mean.mean()
        axes.plot(np.arange(block) - block // 2, centred / (inner or 1.0), "o-", color=COLOURS[key], ms=3, label=key)
    axes.axvline(-0.5, color="k", lw=0.8, ls="--")
    axes.axhline(1, color="k", lw=0.6)
    title = f"jitter at the borders of blocks of {block}" + (f", {of}" if of else "")
    _decorate(axes, title, "frame relative to the border", "|2nd difference|")
    axes.legend(frameon=False, fontsize=8)
    return figure


def make_figures(
    report: MetricResult, clips: Sequence[EvaluationClip], block: int | None = None, first: int | None = None
) -> dict[str, Figure]:
    """All plots of a report by name (no slash in the names)."""
    figures = {
        name.replace("/", "_"): plot_curve(curve)
        for name, curve in report.curves.items()
        if any(np.isfinite(values).any() for values in curve.series.values())
    }
    read = [clip for clip in clips if clip.face is not None]
    if read and (mouth := plot_mouth(read)) is not None:
        figures["mouth_over_time"] = mouth
    if block is None:
        return figures
    sides = ("true", "generated")
    if read:
        figures["block_borders"] = plot_borders({side: [c.side(side) for c in read] for side in sides}, block, first)
    for tag in dict.fromkeys(f.tag for clip in clips for f in clip.features if f.kind == "image"):
        seen = [f for clip in clips for f in clip.features if f.tag == tag]
        features = {side: [getattr(f, side) for f in seen] for side in sides}
        figures[f"block_borders_{tag}"] = plot_borders(features, block, first, tag)
    return figures


def save_figures(folder: Path, figures: Mapping[str, Figure]) -> list[Path]:
    """Write each figure as PNG (temporary name, then replace)."""
    paths = []
    for name, figure in figures.items():
        path = folder / f"{name}.png"
        with atomic_path(path) as temporary:
            figure.savefig(temporary, dpi=120, format="png")
        paths.append(path)
    return paths


def log_tensorboard(
    folder: Path,
    rows: Sequence[MetricRow],
    images: Sequence[Path],
    made_with: Mapping[str, str | float] | None = None,
) -> None:
    """Log to TensorBoard: value, truth and null of the `headline` rows as scalars, the table as text, and the images;
    with `made_with` also the final numbers with these hyper-parameters (never the default `hp_metric`).
    """
    from torch.utils.tensorboard import SummaryWriter
    from torch.utils.tensorboard.summary import hparams

    final: dict[str, float] = {}
    with SummaryWriter(str(folder)) as writer:
        for row in headline(rows):
            for side, value in (("", row.value), ("/true", row.ground_truth), ("/null", row.null)):
                if value is not None and math.isfinite(value):
                    writer.add_scalar(row.tag + side, value, 0)
                    final |= {} if side else {f"final/{row.tag}": value}
        writer.add_text("evaluation/table", markdown_table(rows), 0)
        for path in images:  # a figure takes longer to draw again than all else here
            writer.add_image(
                f"evaluation/{path.stem}", np.asarray(Image.open(path).convert("RGB")), 0, dataformats="HWC"
            )
        if made_with is not None:
            for summary in hparams(dict(made_with), dict.fromkeys(final, 0)):
                writer.file_writer.add_summary(summary)
            for tag, value in final.items():
                writer.add_scalar(tag, value)
