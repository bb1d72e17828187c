"""Remarks on usable conversations, collected by the readers and shown in the report."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Note:
    """One remark: a short word for counting, and a sentence that names the file."""

    kind: str
    text: str


class Notes:
    """Collects notes in order, without repetitions (a file may be read more than once)."""

    def __init__(self) -> None:
        self._notes: dict[Note, None] = {}

    def add(self, kind: str, text: str) -> None:
        """Note `text` under `kind`, a word that the report counts (tracks, channels, level, colour, ...)."""
        self._notes[Note(kind, text)] = None

    def __iter__(self) -> Iterator[Note]:
        return iter(self._notes)
