"""Classifier-free guidance by the avatar's audio and by the user."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from jaxtyping import Float

from af.values import require_number

if TYPE_CHECKING:  # the runtime of exports has no torch
    from torch import Tensor

    from af.types import Condition


@dataclass(frozen=True)
class Branch:
    """One evaluation of the denoiser: its weight in the guided velocity and the signals it receives."""

    weight: float
    avatar: bool
    user: bool


@dataclass(frozen=True)
class Guidance:
    """v(∅,∅) + audio·[v(a,∅) − v(∅,∅)] + user·[v(∅,u) − v(∅,∅)] + joint·[v(a,u) − v(∅,∅)] (method §4; joint is ours).

    Branches with weight zero are not evaluated: ``Guidance(audio=1, user=0)`` is a talking-only avatar with one branch,
    ``Guidance.conditional()`` the plain conditional model.
    """

    audio: float = 2.0
    user: float = 1.0
    joint: float = 0.0

    def __post_init__(self) -> None:
        for name, scale in vars(self).items():
            require_number(f"guidance.{name}", scale)

    @classmethod
    def conditional(cls) -> Guidance:
        """No guidance: only v(a, u)."""
        return cls(audio=0.0, user=0.0, joint=1.0)

    def branches(self) -> tuple[Branch, ...]:
        """The branches with non-zero weight, in the order none, avatar, user, both. Weights add up to 1."""
        candidates = (
            Branch(1 - self.audio - self.user - self.joint, avatar=False, user=False),
            Branch(self.audio, avatar=True, user=False),
            Branch(self.user, avatar=False, user=True),
            Branch(self.joint, avatar=True, user=True),
        )
        return tuple(branch for branch in candidates if abs(branch.weight) > 1e-9)


def branch_conditions(condition: Condition, branches: Sequence[Branch]) -> Condition:
    """The conditions of all branches, batched branch by branch: (len(branches)·B, …); dropped signals are zeros."""
    dropped = condition.map(lambda signal: signal.new_zeros(signal.shape))
    every = [
        replace(
            condition,
            avatar_audio=(condition if branch.avatar else dropped).avatar_audio,
            user_audio=(condition if branch.user else dropped).user_audio,
            user_motion=(condition if branch.user else dropped).user_motion,
        )
        for branch in branches
    ]
    return every[0].beside(*every[1:])


def combine(velocities: Float[Tensor, "R T D"], branches: Sequence[Branch]) -> Float[Tensor, "B T D"]:
    """Guided velocity from the branches' velocities (batched as `branch_conditions` does)."""
    total, *rest = [
        velocity * branch.weight for velocity, branch in zip(velocities.chunk(len(branches)), branches, strict=True)
    ]
    for part in rest:
        total = total + part
    return total
