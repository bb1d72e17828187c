"""What is noteworthy about a conversation and leaves it usable: collected by the readers, shown in the report."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Note:
    """One thing to know: a short word for counting, and a sentence that names the file."""

    kind: str
    text: str


class Notes:
    """Collects notes in the order they come; what is said again (a file is read more than once) counts once."""

    def __init__(self) -> None:
        self._notes: dict[Note, None] = {}

    def add(self, kind: str, text: str) -> None:
        """Note `text` under `kind`, one of the words that the report counts (tracks, channels, level, colour, ...)."""
        self._notes[Note(kind, text)] = None

    def __iter__(self) -> Iterator[Note]:
        return iter(self._notes)
