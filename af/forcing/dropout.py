"""Condition dropping: the signals withheld from the denoiser in a training step or a roll-out.

Drops select zeros and never skip an encoder: DDP needs every parameter to be used in every step.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, fields, replace
from itertools import combinations
from typing import Final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from af.errors import UserError, require_choice
from af.types import Condition
from af.values import require_fraction, require_number

SIGNALS: Final = tuple(f.name for f in fields(Condition))
PER: Final = ("sequence", "block")


@dataclass(frozen=True)
class Dropped:
    """What was dropped (True): signals per frame, the reference per sequence."""

    avatar_audio: Bool[Tensor, "B T"]
    user_audio: Bool[Tensor, "B T"]
    user_motion: Bool[Tensor, "B T"]
    reference: Bool[Tensor, " B"]

    def without_user(self, absent: Bool[Tensor, " B"]) -> Dropped:
        """The same with the user's audio and motion dropped in the sequences that have no user."""
        missing = absent[:, None]
        return replace(self, user_audio=self.user_audio | missing, user_motion=self.user_motion | missing)

    def cases(self) -> dict[str, Bool[Tensor, "B T"]]:
        """The cases that losses are logged for: nothing dropped, one signal dropped, no user at all, no reference."""
        reference = self.reference[:, None].expand_as(self.user_audio)
        return {
            "all_present": ~(self.avatar_audio | self.user_audio | self.user_motion | reference),
            "no_avatar_audio": self.avatar_audio,
            "no_user_audio": self.user_audio,
            "no_user_motion": self.user_motion,
            "no_user": self.user_audio & self.user_motion,
            "no_reference": reference,
        }


@dataclass(frozen=True)
class Ramp:
    """A factor on drop probabilities: linear from `start` to `end` over the share `over` of training, then `end`."""

    start: float = 0.0
    end: float = 1.0
    over: float = 1.0

    def __post_init__(self) -> None:
        require_number("a ramp's start", self.start, least=0)
        require_number("a ramp's end", self.end, least=0)
        require_number("a ramp's `over`", self.over, above=0, most=1)

    def __call__(self, progress: float) -> float:
        """The factor at `progress` (0 at the first step, 1 at the last)."""
        return self.start + (self.end - self.start) * min(progress / self.over, 1.0)


@dataclass(frozen=True)
class ConditionDropout:
    """Drop probabilities in [0, 1]: one per signal, independently, and joint ones.

    `user` drops the user's audio and motion together, `everything` all three signals. Without these joint drops, the
    guidance branches (nothing), (avatar audio alone) and (user alone) occur in only 0.1 %, 0.9 % and 8.1 % of the
    windows. Signals are drawn `per` sequence or per block of `block_frames`, the reference always per sequence.
    `schedule` multiplies every probability by a factor that changes over training; products are capped at 1.
    """

    avatar_audio: float = 0.1
    user_audio: float = 0.1
    user_motion: float = 0.1
    reference: float = 0.1
    user: float = 0.0
    everything: float = 0.0
    per: str = "sequence"
    block_frames: int = 1
    schedule: Ramp | None = None

    def __post_init__(self) -> None:
        for name in _PROBABILITIES:
            require_fraction(f"drop probability {name}", getattr(self, name))
        require_choice("condition dropout", "per", self.per, PER)
        require_number("block_frames", self.block_frames, least=1, whole=True)

    @classmethod
    def never(cls) -> ConditionDropout:
        """No dropping."""
        return cls(0, 0, 0, 0)

    def at(self, progress: float) -> ConditionDropout:
        """The probabilities at `progress` (0 … 1) of training."""
        if self.schedule is None:
            return self
        factor = self.schedule(progress)
        scaled = {name: min(1.0, factor * getattr(self, name)) for name in _PROBABILITIES}
        return replace(self, schedule=None, **scaled)  # type: ignore[arg-type]

    def __call__(self, batch: int, frames: int, *, generator: torch.Generator, progress: float = 1.0) -> Dropped:
        """Draw for `batch` sequences of `frames` frames, on the generator's device; `progress` (0 … 1) of training."""
        if self.schedule is not None:
            return self.at(progress)(batch, frames, generator=generator)
        size = frames if self.per == "sequence" else self.block_frames
        draws = -(-frames // size)
        uniform = torch.rand(6, batch, draws, generator=generator, device=generator.device)
        reference = uniform[3, :, 0] < self.reference
        uniform = uniform.repeat_interleave(size, 2)[..., :frames]
        user, everything = uniform[4] < self.user, uniform[5] < self.everything
        return Dropped(
            avatar_audio=(uniform[0] < self.avatar_audio) | everything,
            user_audio=(uniform[1] < self.user_audio) | user | everything,
            user_motion=(uniform[2] < self.user_motion) | user | everything,
            reference=reference,
        )


_PROBABILITIES: Final = ("avatar_audio", "user_audio", "user_motion", "reference", "user", "everything")


def drop(
    condition: Condition, reference: Float[Tensor, "B D"], dropped: Dropped
) -> tuple[Condition, Float[Tensor, "B D"]]:
    """The condition and reference with the dropped signals replaced by zeros."""

    def kept(x: Tensor, drops: Tensor) -> Tensor:
        return torch.where(drops[..., None], torch.zeros_like(x), x)

    present = {name: kept(getattr(condition, name), getattr(dropped, name)) for name in SIGNALS}
    return Condition(**present), kept(reference, dropped.reference)


def drop_user(condition: Condition, absent: Bool[Tensor, " B"]) -> Condition:
    """The condition with the user's signals replaced by zeros in the sequences that have no user."""
    missing = absent[:, None, None]
    user = {name: getattr(condition, name).masked_fill(missing, 0) for name in ("user_audio", "user_motion")}
    return replace(condition, **user)


def signal_subsets() -> list[tuple[str, ...]]:
    """All 2³ subsets of the signals, the full one first."""
    return [chosen for n in range(len(SIGNALS), -1, -1) for chosen in combinations(SIGNALS, n)]


def subset_name(signals: Collection[str]) -> str:
    """The name of a subset, such as "avatar_audio+user_motion", or "none"."""
    return "+".join(s for s in SIGNALS if s in signals) or "none"


def named_subset(name: str) -> tuple[str, ...]:
    """The inverse of `subset_name`. Raises UserError for an unknown signal."""
    chosen = () if name == "none" else tuple(name.split("+"))
    if unknown := [s for s in chosen if s not in SIGNALS]:
        raise UserError(f"unknown signal {unknown[0]!r}; allowed: none, or some of {'+'.join(SIGNALS)}")
    return tuple(s for s in SIGNALS if s in chosen)


def keep_signals(condition: Condition, signals: Collection[str]) -> Condition:
    """The condition with all signals except `signals` replaced by zeros."""
    values = {name: getattr(condition, name) for name in SIGNALS}
    return Condition(**{name: x if name in signals else torch.zeros_like(x) for name, x in values.items()})
