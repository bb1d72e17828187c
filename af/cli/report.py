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
    from af.evaluation.runs import Group, Run


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
    from af.evaluation.runs import find_runs, grouped, require_one_tracker

    runs = find_runs(args.runs, args.tag)
    require_one_tracker(runs)
    groups = grouped(runs)
    tags = [tag.strip() for tag in args.metrics.split(",")] if args.metrics else None
    settings = [Setting(g.name, tuple(r.metrics for r in g.runs if r.metrics is not None)) for g in groups]
    comparison = Comparison.of(settings, tags)
    title = args.title or f"Report on {', '.join(map(str, args.runs))}"
    missing = [run for run in runs if run.metrics is None]
    out = args.out or args.runs[0] / "report"
    differences = config_differences(groups)
    content = {
        "runs": [_record(group, run) for group in groups for run in group.runs],
        "config_differences": differences,
    }
    text = _missing_text(missing, len(runs)) + _differences_text(groups, differences) + _commands_text(groups)
    write_comparison(out, comparison, title, text=text, content=content)
    console = Console()
    show(comparison.console(title), console)
    if missing:
        console.print(f"{len(runs) - len(missing)} of {len(runs)} runs have numbers yet")
    print(f"written to {out}: table.md, table.csv, table.json, plots/")
    return 0


def config_differences(groups: Sequence[Group]) -> dict[str, dict[str, list[Any]]]:
    """{key: {group: its runs' values}} for the keys that are not the same in all runs (seeds and folders left out)."""
    from af.evaluation.runs import distinguishing, telling

    return {
        key: {g.name: _distinct([telling(r).get(key) for r in g.runs if r.has_come_to(key)]) for g in groups}
        for key in distinguishing([run for group in groups for run in group.runs], telling)
    }


def _distinct(values: Sequence[Any]) -> list[Any]:
    return [value for i, value in enumerate(values) if value not in values[:i]]


def _record(group: Group, run: Run) -> dict[str, Any]:
    return {
        "setting": group.name,
        "folder": str(run.folder),
        "seed": run.seed,
        "swept": dict(run.swept),
        "commands": list(run.commands),
        "metrics": None if run.metrics is None else dict(run.metrics),
    }


def _missing_text(missing: Sequence[Run], total: int) -> str:
    if not missing:
        return ""
    lines = "".join(f"- `{run.folder}`\n" for run in missing)
    return f"\n## Without numbers yet: {len(missing)} of {total}\n\n{lines}"


def _differences_text(groups: Sequence[Group], differences: dict[str, dict[str, list[Any]]]) -> str:
    if not differences:
        return ""
    lines = [
        "| setting | " + " | ".join(f"`{key}`" for key in differences) + " |",
        "| --- |" + " --- |" * len(differences),
    ]
    for group in groups:
        cells = (", ".join(map(str, values.get(group.name, []))) or "–" for values in differences.values())
        lines.append(f"| {group.name} | " + " | ".join(cells) + " |")
    return "\n## What differs\n\n" + "\n".join(lines) + "\n"


def _commands_text(groups: Sequence[Group]) -> str:
    blocks = []
    for group in groups:
        for run in group.runs:
            if run.commands:
                commands = "\n".join(run.commands)
                blocks.append(f"{group.name}, seed {run.seed}:\n\n```sh\n{commands}\n```\n")
    return "\n## Commands\n\n" + "\n".join(blocks) if blocks else ""
