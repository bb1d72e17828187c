"""Experiments that are sweeps of conf/sweep/: run what is not done, then one table of what is.

`af sweep` does the work (a process a job, a ledger, locks), its jobs are found as `af report` finds them, and the table is
written like those of experiments/grid.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from af.cli.gather import gather
from af.metrics.comparison import Setting
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
        found = gather([run])
        settings = [
            Setting(
                name,
                tuple(
                    r.metrics
                    for r in found
                    if r.metrics is not None and all(r.settings.get(key) == value for key, value in row.items())
                ),
            )
            for name, row in self.rows.items()
        ]
        write_settings(args.out, self.title, settings, self.tags)
