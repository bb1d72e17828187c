"""The flow-matching loss on predicted velocities: L1 (paper), L2 or Huber, over valid frames only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from af.errors import UserError

KINDS: Final = ("l1", "l2", "huber")


def velocity_error(
    predicted: Float[Tensor, "B T D"], target: Float[Tensor, "B T D"], *, kind: str = "l1", delta: float = 1.0
) -> Float[Tensor, "B T"]:
    """Error of every frame, mean over dims. UserError for an unknown kind.

    `l1` |e| (the paper's), `l2` e², `huber` e²/2 below `delta`, delta·(|e| − delta/2) above.
    """
    if kind == "l1":
        error = (predicted - target).abs()
    elif kind == "l2":
        error = (predicted - target).square()
    elif kind == "huber":
        error = F.huber_loss(predicted, target, reduction="none", delta=delta)
    else:
        raise UserError(f"velocity loss: unknown kind {kind!r}; allowed: {', '.join(KINDS)}")
    return error.mean(-1)


def valid_mean(values: Float[Tensor, "B T"], valid: Bool[Tensor, "B T"] | None = None) -> Float[Tensor, ""]:
    """Mean over valid frames; 0 (with gradients of 0) when there is none. NaN in invalid frames does no harm."""
    if valid is None:
        return values.mean()
    return values.where(valid, values.new_zeros(())).sum() / valid.sum().clamp_min(1)


@dataclass(frozen=True)
class VelocityLoss:
    """Mean velocity error over valid frames (method §3, L_DF); `delta` is Huber's threshold."""

    kind: str = "l1"
    delta: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(f"velocity loss: unknown kind {self.kind!r}; allowed: {', '.join(KINDS)}")

    def __call__(
        self,
        predicted: Float[Tensor, "B T D"],
        target: Float[Tensor, "B T D"],
        valid: Bool[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, ""]:
        """The loss."""
        return valid_mean(velocity_error(predicted, target, kind=self.kind, delta=self.delta), valid)
