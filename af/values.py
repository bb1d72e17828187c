"""Checks of numbers in a user's settings and options."""

from __future__ import annotations

import math
import numbers
from typing import Any, Final

from af.errors import UserError

#: The seeds that random generators accept.
LARGEST_SEED: Final = 2**63 - 1


class WrongValue(UserError, ValueError):
    """A value that is not allowed: a ValueError in Python, and the user's to mend where a person wrote it."""


def require_number(
    name: str,
    value: Any,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    whole: bool = False,
    optional: bool = False,
) -> None:
    """Raise ValueError, naming the limits, unless `value` is a finite number within them.

    `whole` requires an integer; `optional` also allows None.
    """
    if value is None and optional:
        return
    kinds: Any = numbers.Integral if whole else numbers.Real
    good = (
        isinstance(value, kinds)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and (least is None or value >= least)
        and (above is None or value > above)
        and (most is None or value <= most)
        and (below is None or value < below)
    )
    if not good:
        limits = [
            text
            for bound, text in (
                (least, f"from {least} on" if most is None and below is None else f"from {least}"),
                (above, f"above {above}"),
                (most, f"up to {most}" if least is None else f"to {most}"),
                (below, f"below {below}"),
            )
            if bound is not None
        ]
        kind = "a whole number" if whole else "a number"
        raise WrongValue(f"{name} must be {' '.join([kind, *limits])}{', or null' if optional else ''}, got {value!r}")


def require_fraction(name: str, value: Any) -> None:
    """Raise ValueError unless `value` is a number from 0 to 1."""
    require_number(name, value, least=0, most=1)
