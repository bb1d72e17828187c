"""Tables of results as files, Markdown and on the terminal: value, interval, ground truth, null, protocol."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from af.files import write_json, write_text

if TYPE_CHECKING:
    from rich.table import Table

    from af.metrics.records import MetricRow


def headline(rows: Iterable[MetricRow]) -> list[MetricRow]:
    """The most important rows: those named by their families, and families with a single row."""
    return [row for row in rows if row.headline or "/" not in row.tag]


def flat_metrics(rows: Iterable[MetricRow]) -> dict[str, float | None]:
    """{tag: value, tag/true, tag/null, tag/se, tag/low, tag/high, tag/n}; missing parts are left out, NaN is None."""
    flat: dict[str, float | None] = {}

    def put(key: str, value: float | None) -> None:
        if value is not None:
            flat[key] = float(value) if math.isfinite(value) else None

    for row in rows:
        put(row.tag, row.value)
        put(f"{row.tag}/true", row.ground_truth)
        put(f"{row.tag}/null", row.null)
        error = row.standard_error
        if error is None and row.interval is not None:
            error = row.interval.standard_error
        put(f"{row.tag}/se", error)
        put(f"{row.tag}/true/se", row.true_standard_error)
        put(f"{row.tag}/null/se", row.null_standard_error)
        if row.interval is not None:
            put(f"{row.tag}/low", row.interval.low)
            put(f"{row.tag}/high", row.interval.high)
        if row.n:
            flat[f"{row.tag}/n"] = row.n
    return flat


def worse_than_null(metrics: Mapping[str, Any]) -> list[str]:
    """Tags of numbers (`flat_metrics` with `better`) that are worse than their null by more than a standard error."""
    found = []
    for tag, better in metrics["better"].items():
        value, true, null = (metrics.get(f"{tag}{side}") for side in ("", "/true", "/null"))
        if value is None or null is None or abs(value - null) <= (metrics.get(f"{tag}/se") or 0):
            continue
        if better == "true":
            if true is not None and abs(value - true) > abs(null - true):
                found.append(tag)
        elif (value > null) == (better == "lower"):
            found.append(tag)
    return found


def number_text(value: float | None) -> str:
    """A number with four digits; – for None, n/a for NaN and infinity."""
    if value is None:
        return "–"
    if not math.isfinite(value):
        return "n/a"
    if value == 0:
        return "0"
    return f"{value:.4g}" if 1e-3 <= abs(value) < 1e5 else f"{value:.2e}"


def row_cells(row: MetricRow) -> list[str]:
    """The cells of a row under `HEADER`."""
    arrow = {"lower": " ↓", "higher": " ↑", "true": ""}[row.better]
    interval = f"{number_text(row.interval.low)} … {number_text(row.interval.high)}" if row.interval else "–"
    values = [(row.value, row.standard_error), (row.ground_truth, row.true_standard_error)]
    values.append((row.null, row.null_standard_error))
    generated, true, null = (number_text(v) + (f" ± {number_text(e)}" if e is not None else "") for v, e in values)
    return [row.tag + arrow, generated, interval, true, null, str(row.n)]


HEADER = ("metric", "generated", "95 % interval", "ground truth", "null", "N")


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]], texts: Sequence[int] = (0,)) -> str:
    """A Markdown table; the columns `texts` are aligned to the left, numbers to the right."""
    marks = ["---" if i in texts else "---:" for i in range(len(header))]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (header, marks, *rows))


def markdown_table(rows: Sequence[MetricRow]) -> str:
    """The table in Markdown: value, interval, ground truth, null, N, protocol; reasons for missing values below."""
    table = markdown([*HEADER, "protocol"], ([*row_cells(r), r.protocol.replace("|", "\\|")] for r in rows), (0, 6))
    notes = "".join(f"- `{row.tag}`: {row.note}\n" for row in rows if row.note)
    return f"{table}\nNotes:\n\n{notes}" if notes else table


def console_table(rows: Sequence[MetricRow], title: str | None = None) -> Table:
    """The table for the terminal."""
    from rich.table import Table

    table = Table(title=title)
    for i, name in enumerate(HEADER):
        table.add_column(name, justify="left" if i in (0, 6) else "right", no_wrap=i == 0)
    for row in rows:
        table.add_row(*row_cells(row))
    return table


def write_metrics(
    folder: Path,
    rows: Sequence[MetricRow],
    extra: Mapping[str, Any] | None = None,
    title: str = "Evaluation",
    notes: str = "",
) -> tuple[Path, Path]:
    """Write `metrics.json` (numbers, `better` directions, `headline` tags and `extra` entries) and `metrics.md` (with
    `notes` below the table). Returns both paths.
    """
    json_path, markdown_path = folder / "metrics.json", folder / "metrics.md"
    marks = {"better": {r.tag: r.better for r in rows}, "headline": [r.tag for r in rows if r.headline]}
    write_json(json_path, {**flat_metrics(rows), **marks, **(extra or {})})
    text = f"# {title}\n\n{markdown_table(rows)}"
    write_text(markdown_path, f"{text}\n{notes}\n" if notes else text)
    return json_path, markdown_path
