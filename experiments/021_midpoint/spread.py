"""What sampling leaves of a spread: the variance of a Gaussian that is sampled with its exact velocity, as a share of the true one.

python experiments/021_midpoint/spread.py
python experiments/021_midpoint/spread.py --schedules uniform fine_end --spreads 1 0.5 0.2 0.1 0.05
"""

from __future__ import annotations

import argparse

import torch

from af.forcing.path import integrate, schedule
from af.forcing.solvers import SCHEDULES

SPREADS = (1.0, 0.7, 0.5, 0.3, 0.2, 0.1)  # standard deviations, of the noise's


def share(spread: float, steps: int, solver: str, name: str) -> float:
    """The share of the variance. From x_0 with deviation 1 the exact path ends at spread · x_0."""
    rows = schedule(name, steps)
    times = rows.flow_times.squeeze(1).tolist()

    def velocity(x: torch.Tensor, row: int) -> torch.Tensor:
        t = times[row]
        return x * (t * spread**2 - (1 - t)) / (t**2 * spread**2 + (1 - t) ** 2)

    one = torch.ones(1, 1, 1, dtype=torch.float64)
    return (integrate(velocity, one, rows, solver).item() / spread) ** 2


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schedules", nargs="+", choices=[n for n in SCHEDULES if n != "pyramid"], default=["uniform"])
    parser.add_argument("--spreads", nargs="+", type=float, default=SPREADS, help="deviations, of the noise's")
    args = parser.parse_args()
    print(f"| solver | evaluations | {' | '.join(f'deviation {spread}' for spread in args.spreads)} |")
    print(f"| --- | ---: |{' ---: |' * len(args.spreads)}")
    for name in args.schedules:
        for solver, steps, evaluations in (("euler", 8, 8), ("midpoint", 8, 8), ("heun", 4, 7), ("euler", 32, 32)):
            shares = [f"{share(spread, steps, solver, name):.2f}" for spread in args.spreads]
            print(f"| {solver}{'' if name == 'uniform' else f', {name}'} | {evaluations} | {' | '.join(shares)} |")


if __name__ == "__main__":
    main()
