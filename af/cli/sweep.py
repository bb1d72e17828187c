"""Run a sweep of conf/sweep/: every job in processes of its own, continued where it was stopped.

  af sweep sweep=dropout
  af sweep sweep=dropout seed=0,1,2 steps=400        other values; commas are swept over (Hydra's multirun)
  af sweep sweep=preference at_once=2                two jobs at a time
  af sweep sweep=dropout launcher=submitit launcher.parameters.slurm_partition=gpu at_once=16     on a SLURM cluster
  af sweep sweep=dropout --dry-run                   the jobs, their states and their commands

The sweep's folder (run, default runs/sweeps/NAME) has a folder a job (job.json, log.txt, the run, its evaluation) and
ledger.jsonl. The same command goes on with what is not finished: each job ends exactly once. Jobs that failed are tried
again. `af report runs/sweeps/NAME` puts the numbers into one table, finished or not.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from af.errors import UserError
from af.training.ranks import find_ranks

#: What is said after Ctrl-C.
WHEN_INTERRUPTED = "jobs that are done are kept, the same command goes on with the others"


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `af sweep`."""
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="sweep=NAME and values to override or sweep over"
    )
    parser.add_argument("--config-dir", type=Path, help="folder with configurations of your own, searched first")
    parser.add_argument("--dry-run", action="store_true", help="print the jobs and run none")
    parser.add_argument("--job", type=Path, help=argparse.SUPPRESS)  # what the started processes run


def run(args: argparse.Namespace) -> int:
    """Run the jobs that have not ended."""
    if args.job is not None:
        from af.cli.jobs import run_job

        return run_job(args.job)
    if find_ranks().launcher is not None:
        raise UserError("a sweep is started once, not by every rank: run `af sweep` without torchrun or srun")
    from af.cli.sweeping import DryRun, multirun

    multirun(args.overrides, args.config_dir, DryRun() if args.dry_run else None)
    return 0
