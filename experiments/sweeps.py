"""Experiments that are sweeps of conf/sweep/: run what is not done, then one table of what is.

`af sweep` does the work (a process a job, a ledger, locks), its jobs are found as `af report` finds them, and the table is
written like those of experiments/grid.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from af.evaluation.comparison import Setting
from af.evaluation.runs import gather, grouped
from experiments.grid import TAGS, af, arguments, write_settings


@dataclass(frozen=True)
class SweepExperiment:
    """`sweep` of conf/sweep/ with `overrides` of its values; `rows` of the table are the jobs with those settings (all
    their seeds).
    """

    title: str
    sweep: str
    rows: Mapping[str, Mapping[str, Any]]
    overrides: Sequence[str] = ()
    seeds: Sequence[int] = (0, 1, 2)
    tags: Sequence[str] = TAGS

    def main(self, folder: Path) -> None:
        """Run what has not ended, write the table. The sweep's folder is that of the experiment in `--runs`."""
        args = arguments(folder, self.title, self.seeds)
        run = args.runs / folder.name
        if not args.table:
            words = [f"run={run}", f"latents={args.latents}", f"seed={','.join(map(str, args.seeds))}", *self.overrides]
            start = [f"start={args.start}"] if args.start else []
            af("sweep", f"sweep={self.sweep}", *words, *start, *args.overrides)
        write_settings(args.out, self.title, self.settings(run), self.tags)

    def settings(self, run: Path) -> list[Setting]:
        """The rows, from the jobs in the sweep's folder. SystemExit where a row's jobs differ in more than their seeds."""
        found, settings = gather([run]), []
        for name, row in self.rows.items():
            jobs = [r for r in found if r.metrics and all(r.settings.get(key) == value for key, value in row.items())]
            if len(several := grouped(jobs)) > 1:
                kinds = "".join(f"\n  {group.name}: {group.runs[0].folder.parent}" for group in several)
                raise SystemExit(
                    f"{run} has jobs of several kinds for the row {name!r}, as of sweeps with other values:{kinds}\n"
                    "Delete those that are not meant, or give each sweep --runs of its own."
                )
            settings.append(Setting(name, tuple(r.metrics for r in jobs if r.metrics)))
        return settings
