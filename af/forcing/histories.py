"""Training on the model's own histories: what it has generated, then the way back to true motion."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from af.errors import UserError
from af.values import require_fraction, require_number


class Continued(NamedTuple):
    """Motion (B, T, D) of a window that begins with generated motion, and which frames (B, T) are that."""

    motion: Float[Tensor, "B T D"]
    generated: Bool[Tensor, "B T"]


@dataclass(frozen=True)
class OwnHistories:
    """Begins a `share` of the training windows with motion that a model generated in the same frames.

    A roll-out sees its own past, a training window the true one: errors are not unlearnt and add up. Here the frames
    before a random border between blocks are generated and clean, as in a roll-out, and the model learns to go on with
    the true motion. So that nothing jumps, the gap at the border closes over `return_frames` along a cosine.
    """

    block_frames: int
    share: float = 0.5
    return_frames: int = 15

    def __post_init__(self) -> None:
        require_number("histories.block_frames", self.block_frames, least=1, whole=True)
        require_fraction("histories.share", self.share)
        require_number("histories.return_frames", self.return_frames, least=1, whole=True)

    def borders(self, windows: int, frames: int, generator: torch.Generator | None = None) -> Int[Tensor, " B"]:
        """Length of each window's history in frames: whole blocks, 0 for windows without.

        Raises UserError for windows of a single block.
        """
        most = (frames - 1) // self.block_frames
        if most < 1:
            raise UserError(f"module.histories: windows of {frames} frames hold no history before their last block")
        device = "cpu" if generator is None else generator.device
        blocks = torch.randint(1, most + 1, (windows,), generator=generator, device=device)
        chosen = torch.rand(windows, generator=generator, device=device) < self.share
        return blocks * self.block_frames * chosen

    def __call__(
        self, true: Float[Tensor, "B T D"], generated: Float[Tensor, "B T D"], borders: Int[Tensor, " B"]
    ) -> Continued:
        """Windows that are generated up to their `borders` and return to the truth after them."""
        after = torch.arange(true.shape[1], device=true.device) - borders[:, None]  # frames after the border
        last = (borders - 1).clamp(min=0)[:, None, None].expand(-1, 1, true.shape[2])
        gap = (generated - true).gather(1, last)
        left = 0.5 + 0.5 * torch.cos(math.pi * ((after + 1) / self.return_frames).clamp(0, 1))
        left = left * (borders > 0)[:, None]
        history = after < 0
        return Continued(torch.where(history[..., None], generated, true + gap * left[..., None]), history)
