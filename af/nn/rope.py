"""Rotary positions (RoFormer), interleaved pairs: attention depends on differences of positions only."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from af.devices import widest_float


@dataclass(frozen=True)
class RotaryTable:
    """e^{iα} for the angle α of every frame and pair of dims; `real` has no complex numbers."""

    turns: Complex[Tensor, "T P"] | Float[Tensor, "T P 2"]

    def frames(self, start: int, stop: int | None = None) -> RotaryTable:
        """Rows [start, stop)."""
        return RotaryTable(self.turns[start:stop])

    def real(self) -> RotaryTable:
        """The table as cosine and sine, for exported graphs, which know no complex numbers."""
        return RotaryTable(torch.view_as_real(self.turns))


def rotary_table(
    positions: Int[Tensor, " T"], head_dim: int, *, theta: float = 10_000.0, dtype: torch.dtype = torch.float32
) -> RotaryTable:
    """Angles position · theta^(-2i/head_dim) for pair i. They are computed in `widest_float`: float64 is
    exact for positions in the millions, float32 to 1e-5 within a window of hundreds.

    `dtype` is the type of cosine and sine, float32 or float64.
    """
    if head_dim % 2:
        raise ValueError(f"head_dim must be even for rotary positions, got {head_dim}")
    wide = widest_float(positions.device, dtype)
    powers = torch.arange(0, head_dim, 2, dtype=wide, device=positions.device) / head_dim
    angle = positions.to(wide)[:, None] * theta**-powers
    return RotaryTable(torch.complex(angle.cos().to(dtype), angle.sin().to(dtype)))


def rotate(x: Float[Tensor, "*rest T C"], table: RotaryTable) -> Float[Tensor, "*rest T C"]:
    """Turn each pair (2i, 2i+1) of the last dim by its frame's angle, in the table's precision.

    One complex product per pair takes a fifth of the time of rotating even and odd dims separately.
    """
    if not table.turns.is_complex():
        cosine, sine = table.turns.unbind(-1)
        even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
        return torch.stack((even * cosine - odd * sine, even * sine + odd * cosine), -1).flatten(-2)
    pairs = torch.view_as_complex(x.to(table.turns.real.dtype).unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * table.turns).flatten(-2).to(x.dtype)
