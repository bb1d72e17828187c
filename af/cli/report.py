"""Gather evaluated runs into one table: mean ± standard error over seeds, ground truth, null, the best marked.

  af report runs/dropout                              a multirun of `af train -m`, finished or not
  af report runs/a runs/b --out runs/comparison       any evaluated runs
  af report runs --tag final                          runs trained with tags=[final]
  af report runs/dropout --metrics rpcc/exp,react/smile,mouth/corr

Writes table.md (with what differs between the settings, and the exact commands), table.csv, table.json and plots/ into
--out (default: report/ in the first folder). Jobs of a multirun that differ in their seed alone are one row; any other
evaluation is a row. All must have read faces by the same tracker.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from af.cli.kinds import OutFolder
from af.cli.options import More
from af.console import show


def run(
    runs: Annotated[list[Path], More(nargs="+", metavar="FOLDER"), "multiruns, runs or evaluations"],
    *,
    out: Annotated[OutFolder | None, "folder for the report (default: report/ in the first folder)"] = None,
    metrics: Annotated[
        str | None, More(metavar="A,B,…"), "columns, as in metrics.json (default: the usual ones)"
    ] = None,
    tag: Annotated[str | None, "only runs trained with this word among their tags"] = None,
    title: Annotated[str | None, "of the report"] = None,
) -> None:
    """Gather, print and write."""
    from rich.console import Console

    from af.evaluation.runs import find_runs, write_runs

    found, console = find_runs(runs, tag), Console()
    title, place = title or f"Report on {', '.join(map(str, runs))}", out or runs[0] / "report"
    comparison = write_runs(place, found, title, [tag.strip() for tag in metrics.split(",")] if metrics else None)
    show(comparison.console(title), console)
    if missing := sum(run.metrics is None for run in found):
        console.print(f"{len(found) - missing} of {len(found)} runs have numbers yet")
    print(f"written to {place}: table.md, table.csv, table.json, plots/")
