from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def cosine(predicted: Float[Tensor, "B T D"], target: Float[Tensor, "B T D"]) -> Float[Tensor, "B T"]:
    """Angle and length of velocities apart."""
    apart = 1 - torch.cosine_similarity(predicted, target, dim=-1)
    return apart + (predicted.norm(dim=-1) - target.norm(dim=-1)).abs()
