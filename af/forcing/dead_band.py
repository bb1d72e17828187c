"""A dead band: what rests, rests. Free of torch, for tensors and arrays alike."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from af.values import require_number


def check_dead_band(width: float) -> None:
    """Raise UserError unless `width` is 0 (off) to 1 standard deviation."""
    require_number("dead_band", width, least=0, most=1)


def held(frames: Iterable[Any], last: Any | None, width: float) -> Iterator[Any]:
    """Frames that follow the given ones at a distance of at most `width`, from `last` on (None: from the first frame).

    A coordinate stays where it is until it is `width` away from where it should be, and then follows that far behind:
    small wavering, of which roll-outs are never free, is gone, and every movement is kept. A roll-out does not see it: it
    would take what is held for a head that rests, and let it rest on (experiments/024_an_hour).
    """
    for frame in frames:
        if last is None:
            last = frame
        away = frame - last
        last = last + (away - away.clip(-width, width))
        yield last
