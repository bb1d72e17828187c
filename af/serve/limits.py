"""Limits of a service of live conversations."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Limits of a service; times in seconds. A conversation is idle while its user neither speaks nor does anything."""

    conversations: int = 4
    idle_s: float = 600.0
    length_s: float = 3600.0
