"""What roll-outs from files and arrays share, with torch and without."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

import numpy as np

from af.errors import UserError

#: Why a roll-out without any signal cannot begin.
NOTHING: Final = "give the avatar's audio, the user's audio or the user's video: there is nothing to react to"


def held_rows(rows: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Rows one by one, repeating the last forever. Raises UserError when there is none."""
    row = None
    for row in rows:
        yield row
    if row is None:
        raise UserError("no frame of the user's video could be read")
    while True:
        yield row
