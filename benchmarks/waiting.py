"""What threads that wait for each other cost: training steps by how long they spin before they sleep.

  python -m benchmarks.waiting             an idle machine, about two minutes
  python -m benchmarks.waiting --busy 2    beside two processes that compute all the time

`import af` lets OpenMP's threads spin 1,000 times (`GOMP_SPINCOUNT`) and then sleep; 0 is to sleep at once, `endless` to
spin for minutes (`OMP_WAIT_POLICY=ACTIVE`). Steps are those of `python -m benchmarks.training`, in processes that take
turns; medians of the rounds.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Final

import torch

from af.cli.kinds import count, number
from af.errors import UserError
from benchmarks.common import options, report

WAITS: Final[Mapping[str, Mapping[str, str]]] = {
    "0": {"GOMP_SPINCOUNT": "0"},
    "1000": {"GOMP_SPINCOUNT": "1000"},
    "endless": {"OMP_WAIT_POLICY": "ACTIVE"},
}
STEPS: Final = ("denoiser", "autoencoder", "autoencoder_fp32")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Items a second of every step by how threads wait, and the ratio to those that sleep at once."""
    found: dict[str, dict[str, list[float]]] = {wait: {step: [] for step in STEPS} for wait in WAITS}
    with ExitStack() as others:
        for _ in range(args.busy):
            process = multiprocessing.get_context("spawn").Process(target=_compute, daemon=True)
            process.start()
            others.callback(process.kill)
        for _ in range(args.rounds):
            for wait, variables in WAITS.items():
                speeds = _speeds(variables, args.threads, args.seconds)
                for step in STEPS:
                    found[wait][step].append(speeds[step]["items_per_second"])
    medians = {
        wait: {step: statistics.median(values) for step, values in steps.items()} for wait, steps in found.items()
    }
    return {
        "busy": args.busy,
        "items_per_second": medians,
        "ratio": {wait: {step: steps[step] / medians["0"][step] for step in STEPS} for wait, steps in medians.items()},
        "range": {wait: {step: [min(v), max(v)] for step, v in steps.items()} for wait, steps in found.items()},
    }


def _speeds(variables: Mapping[str, str], threads: int, seconds: float) -> dict[str, Any]:
    clean = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")}
    command = [sys.executable, "-m", "benchmarks.training", "--threads", str(threads), "--seconds", str(seconds)]
    done = subprocess.run([*command, "--device", "cpu"], env={**clean, **variables}, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"benchmarks.training failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout)


def _compute() -> None:
    torch.set_num_threads(1)
    matrix = torch.randn(256, 256)
    while True:
        matrix @ matrix


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the ratios as JSON."""
    parser = options("waiting", __doc__, accelerator=False)
    parser.add_argument("--busy", type=number(int, least=0), default=0, help="processes that compute beside it (0)")
    parser.add_argument("--rounds", type=count, default=3, help="rounds (3)")
    parser.add_argument("--seconds", type=number(float, above=0), default=3.0, help="how long a step is measured (3)")
    return report(parser, measure, arguments)


if __name__ == "__main__":
    sys.exit(main())
