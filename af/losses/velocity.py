"""The flow-matching loss on predicted velocities: L1 (paper), L2 or Huber, over valid frames.

`module.loss` may be any callable that maps predicted and true velocities (B, T, D) to an error per frame (B, T). The
training stage chooses the frames that count and takes the mean over them.
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
    """Error of every frame, mean over dims (method §3, L_DF). Raises UserError for an unknown kind.

    `l1` |e| (the paper's), `l2` e², `huber` e²/2 below `delta`, delta·(|e| − delta/2) above.
    """

    kind: str = "l1"
    delta: float = 1.0

    def __post_init__(self) -> None:
        require_choice("velocity loss", "kind", self.kind, ("l1", "l2", "huber"))

    def __call__(self, predicted: Float[Tensor, "B T D"], target: Float[Tensor, "B T D"]) -> Float[Tensor, "B T"]:
        """Errors per frame."""
        if self.kind == "huber":
            return F.huber_loss(predicted, target, reduction="none", delta=self.delta).mean(-1)
        error = predicted - target
        return (error.abs() if self.kind == "l1" else error.square()).mean(-1)


def valid_mean(values: Float[Tensor, "B T"], valid: Bool[Tensor, "B T"] | None = None) -> Float[Tensor, ""]:
    """Mean over valid frames; 0 (with zero gradients) when there are none. NaN in invalid frames has no effect."""
    if valid is None:
        return values.mean()
    return values.where(valid, values.new_zeros(())).sum() / valid.sum().clamp_min(1)
