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

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from af.cli.options import out_folder
from af.console import show

if TYPE_CHECKING:
    from af.evaluation.runs import Run


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `af report`."""
    parser.add_argument("runs", nargs="+", type=Path, metavar="FOLDER", help="multiruns, runs or evaluations")
    parser.add_argument("--out", type=out_folder, help="folder for the report (default: report/ in the first folder)")
    parser.add_argument("--metrics", metavar="A,B,…", help="columns, as in metrics.json (default: the usual ones)")
    parser.add_argument("--tag", help="only runs trained with this word among their tags")
    parser.add_argument("--title", help="of the report")


def run(args: argparse.Namespace) -> int:
    """Gather, print and write."""
    from rich.console import Console

    from af.evaluation.comparison import Comparison, Setting, write_comparison
    from af.evaluation.runs import distinguishing, find_runs, grouped, require_one_tracker

    runs = find_runs(args.runs, args.tag)
    require_one_tracker(runs)
    groups = grouped(runs)
    tags = [tag.strip() for tag in args.metrics.split(",")] if args.metrics else None
    settings = [Setting(name, tuple(r.metrics for r in group if r.metrics)) for name, group in groups.items()]
    comparison = Comparison.of(settings, tags)
    title = args.title or f"Report on {', '.join(map(str, args.runs))}"
    missing = [run for run in runs if run.metrics is None]
    out = args.out or args.runs[0] / "report"
    differences = {key: {name: _values(group, key) for name, group in groups.items()} for key in distinguishing(runs)}
    records = [_record(name, run) for name, group in groups.items() for run in group]
    text = ""
    if missing:
        text += f"\n## Without numbers yet: {len(missing)} of {len(runs)}\n\n"
        text += "".join(f"- `{run.folder}`\n" for run in missing)
    if differences:
        text += f"\n## What differs\n\n| | {' | '.join(groups)} |\n| --- |{' --- |' * len(groups)}\n"
        for key, found in differences.items():
            cells = (", ".join(map(str, found[name])) or "–" for name in groups)
            text += f"| `{key}` | {' | '.join(cells)} |\n"
    commands = [
        f"{record['setting']}, seed {record['seed']}:\n\n```sh\n" + "\n".join(record["commands"]) + "\n```\n"
        for record in records
        if record["commands"]
    ]
    text += "\n## Commands\n\n" + "\n".join(commands) if commands else ""
    write_comparison(out, comparison, title, text=text, content={"runs": records, "config_differences": differences})
    console = Console()
    show(comparison.console(title), console)
    if missing:
        console.print(f"{len(runs) - len(missing)} of {len(runs)} runs have numbers yet")
    print(f"written to {out}: table.md, table.csv, table.json, plots/")
    return 0


def _values(runs: Sequence[Run], key: str) -> list[Any]:
    values = [run.config.get(key) for run in runs if run.has_come_to(key)]
    return [value for i, value in enumerate(values) if value not in values[:i]]


def _record(setting: str, run: Run) -> dict[str, Any]:
    return {
        "setting": setting,
        "folder": str(run.folder),
        "seed": run.seed,
        "swept": dict(run.swept),
        "commands": list(run.commands),
        "metrics": None if run.metrics is None else dict(run.metrics),
    }
