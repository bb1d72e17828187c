"""Writes an evaluation: table, JSON, plots, TensorBoard, gallery. Used by every form of `af evaluate`."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from af.console import show

if TYPE_CHECKING:
    from rich.console import Console

    from af.metrics.records import EvaluationClip, MetricResult, MetricRow, Protocol

#: How many remarks the console shows; metrics.md has them all.
MOST_REMARKS = 8
_FAILED = "failed: "


@contextmanager
def attempt(part: str, missing: dict[str, str]) -> Iterator[None]:
    """Do a part of an evaluation that must not take the others with it: an error is shown, and noted in `missing`."""
    try:
        yield
    except Exception as error:
        traceback.print_exception(error)
        missing[part] = f"{_FAILED}{type(error).__name__}: {error}"


def failed(missing: Mapping[str, str]) -> int:
    """The exit code of an evaluation: 1 with a line on stderr if a part has failed, otherwise 0."""
    parts = [part for part, why in missing.items() if why.startswith(_FAILED)]
    if parts:
        print(f"af evaluate: failed: {', '.join(parts)} (see above); everything else is written", file=sys.stderr)
    return int(bool(parts))


def write_report(
    out: Path,
    rows: Sequence[MetricRow],
    report: MetricResult | None,
    clips: Sequence[EvaluationClip],
    protocol: Protocol,
    *,
    title: str,
    not_computed: Mapping[str, str] | None = None,
    problems: Mapping[str, str] | None = None,
    notes: Mapping[str, Sequence[str]] | None = None,
    videos: Mapping[str, Mapping[str, Path]] | None = None,
    audio: Mapping[str, np.ndarray | None] | None = None,
    features: Mapping[str, Mapping[str, Sequence[np.ndarray]]] | None = None,
    extra: Mapping[str, Any] | None = None,
    console: Console | None = None,
) -> dict[str, Path]:
    """Write metrics.json, metrics.md, clips.json, plots/, tensorboard/ and gallery.html; returns their paths.

    `videos` {clip: {"user" | "generated" | "true": path}} (None: no gallery), `audio` the avatars' 16 kHz
    sound, `features` {extractor: {"true" | "generated": clips}} of pictures, whose jitter at block borders is plotted,
    `extra` further entries of metrics.json, `problems` {clip: why it was left out}, `not_computed` {metric: why}, to which parts of the report that fail are added. Everything is written whole or not at all.
    """
    import math

    from af.evaluation.plots import log_tensorboard, make_figures, plot_borders, save_figures
    from af.evaluation.table import console_table, markdown_table, metrics_content
    from af.files import write_json, write_text

    values = {} if report is None else report.per_clip
    content = metrics_content(rows)
    content["protocol"] = {row.tag: row.protocol for row in rows}
    content["not_computed"] = missing = not_computed if isinstance(not_computed, dict) else dict(not_computed or {})
    content["left_out"] = dict(problems or {})
    content |= dict(extra or {})
    content["notes"] = {row.tag: row.note for row in rows if row.note} | {k: list(v) for k, v in (notes or {}).items()}
    figures: dict[str, Any] = {}
    with attempt("plots", missing):
        figures = make_figures(report, clips, protocol.block, protocol.first_border) if report else {}
        if protocol.block is not None:
            for tag, sides in (features or {}).items():
                if not all(sides.values()):
                    continue  # arrays have no pictures
                figures[f"block_borders_{tag}"] = plot_borders(sides, protocol.block, protocol.first_border, tag)
        save_figures(out / "plots", figures)
    write_json(out / "metrics.json", content)
    finite = {n: {k: v if math.isfinite(v) else None for k, v in c.items()} for n, c in values.items()}
    write_json(out / "clips.json", finite)
    pictures = "\n## Plots\n" * bool(figures) + "".join(f"\n![{name}](plots/{name}.png)\n" for name in figures)
    lists = "".join(
        f"\n## {head}\n\n"
        + "".join(f"- `{k}`: {v if isinstance(v, str) else '; '.join(v)}\n" for k, v in items.items())
        for head, items in (("Left out", problems), ("Not computed", missing), ("Remarks", notes))
        if items
    )
    write_text(out / "metrics.md", f"# {title}\n\n{markdown_table(rows)}{lists}{pictures}")
    with attempt("tensorboard", missing):
        for old in (out / "tensorboard").glob("events.out.tfevents.*"):
            old.unlink()  # one evaluation, one set of points
        log_tensorboard(out / "tensorboard", rows, figures)
    paths = {name: out / name for name in ("metrics.md", "metrics.json", "clips.json", "plots", "tensorboard")}
    if videos is not None:
        from af.evaluation.gallery_videos import make_gallery

        with attempt("gallery", missing):
            paths["gallery.html"] = make_gallery(
                out / "gallery.html",
                title,
                clips,
                values,
                videos,
                audio or {},
                rows,
                report.on_card if report else (),
                console,
            )
    write_json(out / "metrics.json", content)  # with what has failed since
    if console is not None:
        show(console_table(rows, title), console)
        for name, texts in list((notes or {}).items())[:MOST_REMARKS]:
            console.print(f"{name}: {'; '.join(texts)}", markup=False, highlight=False)
        if notes and len(notes) > MOST_REMARKS:
            console.print(f"{len(notes) - MOST_REMARKS} more remarks in {out / 'metrics.md'}", highlight=False)
        for name, reason in (problems or {}).items():
            console.print(f"left out {name}: {reason}", markup=False, highlight=False)
        for reason in dict.fromkeys(missing.values()):
            names = ", ".join(name for name, why in missing.items() if why == reason)
            console.print(f"not computed: {names} ({reason})", markup=False, highlight=False)
        for path in paths.values():
            console.print(str(path), markup=False, highlight=False)
    return paths
