"""The flow-matching loss on predicted velocities: L1 (paper), L2 or Huber, over valid frames only.

What a configuration names as `module.loss` is called with predicted and true velocities (B, T, D) and gives the error of
every frame (B, T); what counts, and the mean over it, is the stage's. Any callable of this kind does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from af.errors import require_choice

#: Predicted and true velocities (B, T, D) -> error of every frame (B, T).
FrameError = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class VelocityLoss:
    """Error of every frame, mean over dims (method §3, L_DF). UserError for an unknown kind.

    `l1` |e| (the paper's), `l2` e², `huber` e²/2 below `delta`, delta·(|e| − delta/2) above.
    """

    kind: str = "l1"
    delta: float = 1.0

    def __post_init__(self) -> None:
        require_choice("velocity loss", "kind", self.kind, ("l1", "l2", "huber"))

    def __call__(self, predicted: Float[Tensor, "B T D"], target: Float[Tensor, "B T D"]) -> Float[Tensor, "B T"]:
        """The errors."""
        if self.kind == "huber":
            return F.huber_loss(predicted, target, reduction="none", delta=self.delta).mean(-1)
        error = predicted - target
        return (error.abs() if self.kind == "l1" else error.square()).mean(-1)


def valid_mean(values: Float[Tensor, "B T"], valid: Bool[Tensor, "B T"] | None = None) -> Float[Tensor, ""]:
    """Mean over valid frames; 0 (with gradients of 0) when there is none. NaN in invalid frames does no harm."""
    if valid is None:
        return values.mean()
    return values.where(valid, values.new_zeros(())).sum() / valid.sum().clamp_min(1)
