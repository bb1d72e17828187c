"""Names and defaults of sampling. Free of torch: the runtime of exports knows them, too."""

from __future__ import annotations

import itertools
from typing import Final

from af.errors import require_choice
from af.values import require_number

SOLVERS: Final = ("euler", "heun", "midpoint")
#: The solver of recipes: at eight evaluations Euler's method makes a Gaussian of a third of the prior's width vary 0.6 times
#: as much as it should, this one 0.99 times, at the same cost.
SOLVER: Final = "midpoint"
SCHEDULES: Final = ("uniform", "fine_end", "released", "pyramid")
#: The schedule of recipes: coordinates that one block changes little (size, place, gaze) keep their spread, which eight equal
#: rows lose block by block.
SCHEDULE: Final = "fine_end"
#: Solver and schedule of what names none: all was sampled so before there was a choice.
UNNAMED: Final = "euler"
UNNAMED_SCHEDULE: Final = "uniform"
#: The same by their names in files.
OLDER: Final = {"solver": UNNAMED, "schedule": UNNAMED_SCHEDULE}
#: Evaluations of the denoiser per block.
STEPS: Final = 8
#: What the last pair of `fine_end` leaves to the rows after it.
_END: Final = 0.3


def levels(schedule: str, steps: int) -> list[float]:
    """The `steps` + 1 flow times from 0 (noise) to 1 (clean) that all frames of a block share.

    `uniform`: equal steps. `fine_end`: equal pairs of rows, and the last of them cut at 0.7 of its length: one or two rows
    for the rest. Raises UserError for another schedule or steps < 1.
    """
    require_choice("schedule", "schedule", schedule, ("uniform", "fine_end"))
    require_number("steps", steps, least=1, whole=True)
    pairs = (steps - 1) // 2
    if schedule == "uniform" or not pairs:
        return [row / steps for row in range(steps + 1)]
    ends = [pair / pairs for pair in range(pairs)] + [1 - _END / pairs]
    even = [*ends, 1.0] if steps % 2 == 0 else ends
    found = [0.0]
    for first, last in itertools.pairwise(even):
        found += [(first + last) / 2, last]
    return found if steps % 2 == 0 else [*found, 1.0]
