"""What sampling leaves of a spread: the variance of a Gaussian that is sampled with its exact velocity, as a share of the true one.

python experiments/021_midpoint/spread.py
"""

from __future__ import annotations

import torch

from af.forcing.path import integrate, schedule

SPREADS = (1.0, 0.7, 0.5, 0.3, 0.2, 0.1)  # standard deviations, of the noise's


def share(spread: float, steps: int, solver: str) -> float:
    """The share of the variance. From x_0 with deviation 1 the exact path ends at spread · x_0."""
    times = schedule("uniform", steps).flow_times.squeeze(1).tolist()

    def velocity(x: torch.Tensor, row: int) -> torch.Tensor:
        t = times[row]
        return x * (t * spread**2 - (1 - t)) / (t**2 * spread**2 + (1 - t) ** 2)

    one = torch.ones(1, 1, 1, dtype=torch.float64)
    return (integrate(velocity, one, schedule("uniform", steps), solver).item() / spread) ** 2


def main() -> None:
    """Print a table in Markdown."""
    print(f"| solver | evaluations | {' | '.join(f'deviation {spread}' for spread in SPREADS)} |")
    print(f"| --- | ---: |{' ---: |' * len(SPREADS)}")
    for solver, steps, evaluations in (("euler", 8, 8), ("midpoint", 8, 8), ("heun", 4, 7), ("euler", 32, 32)):
        print(f"| {solver} | {evaluations} | {' | '.join(f'{share(s, steps, solver):.2f}' for s in SPREADS)} |")


if __name__ == "__main__":
    main()
