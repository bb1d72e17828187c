"""Writing the report of any evaluation: table, JSON, plots, TensorBoard, gallery."""

from __future__ import annotations

import math
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from af.console import show
from af.evaluation.gallery import make_gallery
from af.evaluation.plots import log_tensorboard, make_figures, save_figures
from af.evaluation.table import console_table, write_metrics
from af.files import write_json
from af.metrics.records import MetricResult, Protocol

if TYPE_CHECKING:
    from af.evaluation.measured import Measured

#: Number of remarks shown on the console; metrics.md has all.
MOST_REMARKS = 8
_FAILED = "failed: "


@contextmanager
def attempt(part: str, missing: dict[str, str]) -> Iterator[None]:
    """Run a part of an evaluation whose failure must not affect others: errors are shown and noted in `missing`."""
    try:
        yield
    except Exception as error:
        traceback.print_exception(error)
        place = traceback.extract_tb(error.__traceback__)[-1]
        missing[part] = f"{_FAILED}{type(error).__name__}: {error} ({place.filename}, line {place.lineno})"


def write_report(
    out: Path,
    result: MetricResult,
    protocol: Protocol,
    *,
    title: str,
    measured: Sequence[Measured] = (),
    problems: Mapping[str, str] | None = None,
    notes: Mapping[str, Sequence[str]] | None = None,
    gallery: bool = True,
    extra: Mapping[str, Any] | None = None,
    made_with: Mapping[str, Any] | None = None,
) -> int:
    """Print the table and write metrics.json, metrics.md, clips.json, plots/, tensorboard/ and gallery.html, each
    atomically. Returns the exit code: 1, with a line on stderr, if a part failed.

    `problems` {clip: why it was left out}, `notes` {clip or subject: remarks}, `extra`: further entries of
    metrics.json, `made_with`: the settings shown with the numbers in TensorBoard.
    """
    rows, missing, notes, problems = result.rows, result.absent, notes or {}, dict(problems or {})
    plots: list[Path] = []
    with attempt("plots", missing):
        figures = make_figures(result, [m.clip for m in measured], protocol.block, protocol.first_border)
        plots = save_figures(out / "plots", figures)

    def write() -> None:
        more = {
            "protocol": {row.tag: row.protocol for row in rows},
            "not_computed": missing,
            "left_out": problems,
            **(extra or {}),
            "notes": {row.tag: row.note for row in rows if row.note} | {k: list(v) for k, v in notes.items()},
        }
        lists = [
            f"## {head}\n\n"
            + "".join(f"- `{k}`: {v if isinstance(v, str) else '; '.join(v)}\n" for k, v in said.items())
            for head, said in (("Left out", problems), ("Not computed", missing), ("Remarks", notes))
            if said
        ]
        images = ["## Plots\n"] * bool(plots) + [f"![{path.stem}](plots/{path.name})\n" for path in plots]
        write_metrics(out, rows, more, title, "\n".join([*lists, *images]).rstrip("\n"))

    write()
    finite = {n: {k: v if math.isfinite(v) else None for k, v in c.items()} for n, c in result.per_clip.items() if c}
    write_json(out / "clips.json", finite)
    with attempt("tensorboard", missing):
        for old in (out / "tensorboard").glob("events.out.tfevents.*"):
            old.unlink()  # one evaluation, one set of points
        log_tensorboard(out / "tensorboard", rows, plots, made_with)
    written, console = ["metrics.md", "metrics.json", "clips.json", "plots", "tensorboard"], Console()
    if gallery and measured:
        with attempt("gallery", missing):
            make_gallery(out / "gallery.html", title, measured, result, console)
            written.append("gallery.html")
    write()  # including later failures
    show(console_table(rows, title), console)
    lines = [f"{name}: {'; '.join(texts)}" for name, texts in notes.items()]
    if len(lines) > MOST_REMARKS:
        lines[MOST_REMARKS:] = [f"{len(lines) - MOST_REMARKS} more remarks in {out / 'metrics.md'}"]
    lines += [f"left out {name}: {reason}" for name, reason in problems.items()]
    for reason in dict.fromkeys(missing.values()):
        names = ", ".join(name for name, why in missing.items() if why == reason)
        lines.append(f"not computed: {names} ({reason})")
    for line in (*lines, *(str(out / name) for name in written)):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    parts = [part for part, why in missing.items() if why.startswith(_FAILED)]
    if parts:
        print(f"the evaluation failed in: {', '.join(parts)} (see above); everything else is written", file=sys.stderr)
    return int(bool(parts))
