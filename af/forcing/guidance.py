"""Classifier-free guidance over the two voices of a conversation, and the dropping of conditions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from af.types import Condition


@dataclass(frozen=True)
class Branch:
    """One evaluation of the denoiser: its share of the guided velocity and the signals it gets."""

    weight: float
    avatar: bool
    user: bool


@dataclass(frozen=True)
class Guidance:
    """v(∅,∅) + audio·[v(a,∅) − v(∅,∅)] + user·[v(∅,u) − v(∅,∅)] + joint·[v(a,u) − v(∅,∅)] (method §4; joint is ours).

    Branches whose share is zero are not evaluated: ``Guidance(audio=1, user=0)`` is a talking-only avatar in one
    branch, ``Guidance.conditional()`` the plain conditional model.
    """

    audio: float = 2.0
    user: float = 1.0
    joint: float = 0.0

    @classmethod
    def conditional(cls) -> Guidance:
        """No guidance: v(a, u) alone."""
        return cls(audio=0.0, user=0.0, joint=1.0)

    def branches(self) -> tuple[Branch, ...]:
        """The branches that have a share, in the order none, avatar, user, both. Shares add up to 1."""
        candidates = (
            Branch(1 - self.audio - self.user - self.joint, avatar=False, user=False),
            Branch(self.audio, avatar=True, user=False),
            Branch(self.user, avatar=False, user=True),
            Branch(self.joint, avatar=True, user=True),
        )
        return tuple(branch for branch in candidates if abs(branch.weight) > 1e-9)


def branch_conditions(condition: Condition, branches: Sequence[Branch]) -> Condition:
    """The condition of every branch, batched branch by branch: (len(branches)·B, …); dropped signals are zeros."""

    def kept(signal: Tensor, present: list[bool]) -> Tensor:
        nothing = torch.zeros_like(signal)
        return torch.cat([signal if p else nothing for p in present])

    avatar, user = [b.avatar for b in branches], [b.user for b in branches]
    return Condition(
        kept(condition.avatar_audio, avatar), kept(condition.user_audio, user), kept(condition.user_motion, user)
    )


def combine(velocities: Float[Tensor, "R T D"], branches: Sequence[Branch]) -> Float[Tensor, "B T D"]:
    """Guided velocity from the branches' velocities (batched as `branch_conditions` does)."""
    total, *rest = [
        velocity * branch.weight for velocity, branch in zip(velocities.chunk(len(branches)), branches, strict=True)
    ]
    for part in rest:
        total = total + part
    return total


def drop_condition(
    condition: Condition,
    *,
    avatar_audio: Bool[Tensor, "B T"] | None = None,
    user_audio: Bool[Tensor, "B T"] | None = None,
    user_motion: Bool[Tensor, "B T"] | None = None,
) -> Condition:
    """Zero the signals in the frames marked True. Selection, not branching: every parameter stays in the graph."""

    def dropped(signal: Tensor, drop: Tensor | None) -> Tensor:
        return signal if drop is None else torch.where(drop[..., None], torch.zeros_like(signal), signal)

    return Condition(
        dropped(condition.avatar_audio, avatar_audio),
        dropped(condition.user_audio, user_audio),
        dropped(condition.user_motion, user_motion),
    )
