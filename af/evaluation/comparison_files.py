"""Writes a comparison of settings: Markdown, CSV, JSON and a picture a metric."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from af.evaluation.comparison import Comparison


def write_comparison(
    out: Path, comparison: Comparison, title: str, *, text: str = "", content: Mapping[str, Any] | None = None
) -> None:
    """table.md (with `text` below the table), table.csv (long form), table.json (with `content` beside the numbers) and
    plots/, each whole or not at all.
    """
    from af.evaluation.plots import save_figures
    from af.files import write_json, write_text

    records = comparison.records()
    figures = comparison.figures()
    save_figures(out / "plots", figures)
    pictures = "".join(f"\n![{name}](plots/{name}.png)\n" for name in figures)
    explained = "Mean ± standard error over runs; the best in bold; – is not computed.\n"
    write_text(out / "table.md", f"# {title}\n\n{comparison.markdown()}\n{explained}{text}{pictures}")
    table = io.StringIO()
    if records:
        writer = csv.DictWriter(table, list(records[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)
    write_text(out / "table.csv", table.getvalue())
    numbers = {"title": title, "better": dict(comparison.better), "table": records, **(content or {})}
    write_json(out / "table.json", numbers)
