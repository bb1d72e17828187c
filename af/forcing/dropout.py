"""Condition dropping: which signals of which sequences the denoiser does without in a training step.

Drops are drawn per sequence and applied by selecting zeros, never by skipping an encoder, so that under DDP every
parameter is used in every step whatever was drawn.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from af.forcing.guidance import drop_condition
from af.types import Condition


@dataclass(frozen=True)
class Dropped:
    """What was dropped, per sequence (True = dropped)."""

    avatar_audio: Bool[Tensor, " B"]
    user_audio: Bool[Tensor, " B"]
    user_motion: Bool[Tensor, " B"]
    reference: Bool[Tensor, " B"]

    def cases(self) -> dict[str, Bool[Tensor, " B"]]:
        """The cases losses are logged for: everything there, no user at all, no avatar audio, nothing but noise."""
        user = self.user_audio & self.user_motion
        return {
            "all_present": ~(self.avatar_audio | self.user_audio | self.user_motion | self.reference),
            "no_avatar_audio": self.avatar_audio,
            "no_user_audio": self.user_audio,
            "no_user_motion": self.user_motion,
            "no_user": user,
            "no_reference": self.reference,
        }


@dataclass(frozen=True)
class ConditionDropout:
    """Drop probabilities in [0, 1]: one per signal, independently, and joint ones.

    `user` drops the user's audio and motion together, `everything` all three signals: the guidance branches
    (nothing), (avatar audio alone) and (user alone) are otherwise met in 0.1 %, 0.9 % and 8.1 % of the windows only.
    """

    avatar_audio: float = 0.1
    user_audio: float = 0.1
    user_motion: float = 0.1
    reference: float = 0.1
    user: float = 0.0
    everything: float = 0.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value <= 1:
                raise ValueError(f"drop probability {name} must be in [0, 1], got {value}")

    def draw(self, batch: int, generator: torch.Generator) -> Dropped:
        """One draw for `batch` sequences, on the generator's device."""
        uniform = torch.rand(6, batch, generator=generator, device=generator.device)
        user, everything = uniform[4] < self.user, uniform[5] < self.everything
        return Dropped(
            avatar_audio=(uniform[0] < self.avatar_audio) | everything,
            user_audio=(uniform[1] < self.user_audio) | user | everything,
            user_motion=(uniform[2] < self.user_motion) | user | everything,
            reference=uniform[3] < self.reference,
        )


def drop(
    condition: Condition, reference: Float[Tensor, "B D"], dropped: Dropped
) -> tuple[Condition, Float[Tensor, "B D"]]:
    """The condition and reference with the dropped signals replaced by zeros."""
    present = drop_condition(
        condition,
        avatar_audio=dropped.avatar_audio,
        user_audio=dropped.user_audio,
        user_motion=dropped.user_motion,
    )
    return present, torch.where(dropped.reference[:, None], torch.zeros_like(reference), reference)
