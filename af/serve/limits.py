"""Limits of a service of live conversations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from af.values import require_number


@dataclass(frozen=True)
class Limits:
    """Limits of a service; times in seconds. A conversation is idle while its user neither speaks nor does anything."""

    conversations: Annotated[int, "at one time"] = 4
    idle_s: Annotated[float, "--idle", "seconds without a word or an action until a conversation is closed"] = 600.0
    length_s: Annotated[float, "--length", "seconds that a conversation may last"] = 3600.0

    def __post_init__(self) -> None:
        require_number("conversations", self.conversations, least=1, whole=True)
        require_number("idle_s", self.idle_s, above=0)
        require_number("length_s", self.length_s, above=0)
