"""Rotary positions (RoFormer), interleaved pairs: attention sees differences of positions, never positions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class RotaryTable:
    """Cosine and sine of the angle of every frame and pair of dims."""

    cos: Float[Tensor, "T P"]
    sin: Float[Tensor, "T P"]

    def frames(self, start: int, stop: int | None = None) -> RotaryTable:
        """Rows [start, stop)."""
        return RotaryTable(self.cos[start:stop], self.sin[start:stop])


def rotary_table(
    positions: Int[Tensor, " T"], head_dim: int, *, theta: float = 10_000.0, dtype: torch.dtype = torch.float32
) -> RotaryTable:
    """Angles position · theta^(-2i/head_dim) for pair i. Computed in float64: exact for positions in the millions."""
    if head_dim % 2:
        raise ValueError(f"head_dim must be even for rotary positions, got {head_dim}")
    powers = torch.arange(0, head_dim, 2, dtype=torch.float64, device=positions.device) / head_dim
    angle = positions.to(torch.float64)[:, None] * theta**-powers
    return RotaryTable(angle.cos().to(dtype), angle.sin().to(dtype))


def rotate(x: Float[Tensor, "*rest T C"], table: RotaryTable) -> Float[Tensor, "*rest T C"]:
    """Turn each pair (2i, 2i+1) of the last dim by its frame's angle."""
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = table.cos.to(x.dtype), table.sin.to(x.dtype)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)
