"""Training on the model's own histories: windows that begin with what a model has made, and go on with true motion.

A roll-out sees its own past, a training window the true one: errors are not unlearnt and add up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from af.errors import UserError
from af.forcing.noise import FlowTimes
from af.values import require_fraction, require_number


class Followed(NamedTuple):
    """Motion (B, T, D) that blocks go on with, and the past (B, T, D) that they see before them."""

    motion: Float[Tensor, "B T D"]
    past: Float[Tensor, "B T D"]


class Continued(NamedTuple):
    """Motion (B, T, D) of windows that begin with a model's motion, and which frames (B, T) are that."""

    motion: Float[Tensor, "B T D"]
    own: Bool[Tensor, "B T"]


@dataclass(frozen=True)
class Histories:
    """Begins a `share` of the training windows with a model's motion of the same frames, up to a random border between
    blocks. It is clean, as in a roll-out, and the model learns to go on. So that nothing jumps, the gap to the true motion at
    the border closes over `return_frames` along a cosine (0: at once).
    """

    block_frames: int
    share: float = 0.5
    return_frames: int = 15

    def __post_init__(self) -> None:
        require_number("histories.block_frames", self.block_frames, least=1, whole=True)
        require_fraction("histories.share", self.share)
        require_number("histories.return_frames", self.return_frames, least=0, whole=True)

    def borders(self, windows: int, frames: int, generator: torch.Generator | None = None) -> Int[Tensor, " B"]:
        """Length of each window's history in frames: whole blocks, 0 for windows without.

        Raises UserError for windows of a single block.
        """
        most = (frames - 1) // self.block_frames
        if most < 1:
            raise UserError(f"module.histories: windows of {frames} frames hold no history before their last block")
        device = torch.device("cpu") if generator is None else generator.device
        blocks = torch.randint(1, most + 1, (windows,), generator=generator, device=device)
        return blocks * self.block_frames * self.chosen(windows, device)

    def chosen(self, windows: int, device: torch.device | None = None) -> Bool[Tensor, " B"]:
        """Which windows have a history: evenly spread, so that the host knows their number."""
        share = Fraction(self.share).limit_denominator(100)
        before = torch.arange(windows + 1, device=device) * share.numerator // share.denominator
        return before[1:] > before[:-1]

    def __call__(
        self, true: Float[Tensor, "B T D"], own: Float[Tensor, "B T D"], borders: Int[Tensor, " B"]
    ) -> Continued:
        """Windows that are `own` up to their `borders` and return to the truth after them."""
        after = torch.arange(true.shape[1], device=true.device) - borders[:, None]  # frames after the border
        history = after < 0
        last = (borders - 1).clamp(min=0)[:, None, None].expand(-1, 1, true.shape[2])
        gap = (own - true).gather(1, last) * (borders > 0)[:, None, None]
        return Continued(torch.where(history[..., None], own, self._returning(true, gap, after)), history)

    def each(self, true: Float[Tensor, "B T D"], own: Float[Tensor, "B T D"], chosen: Bool[Tensor, " B"]) -> Followed:
        """Windows in which every block returns to the truth from the `own` motion before it, where they are `chosen`; for
        flow times of levels "each".
        """
        frames, size = torch.arange(true.shape[1], device=true.device), self.block_frames
        past = torch.where(chosen[:, None, None], own, true)
        last = frames // size * size - 1  # before the block of each frame
        gap = (past - true)[:, last.clamp(min=0)] * (last >= 0)[:, None]
        return Followed(self._returning(true, gap, frames % size), past)

    def _returning(self, true: Tensor, gap: Tensor, after: Tensor) -> Tensor:
        """The truth (B, T, D) and what is left of a `gap` (broadcast) in the frames `after` it (0: the first)."""
        if not self.return_frames:
            return true
        left = 0.5 + 0.5 * torch.cos(math.pi * ((after + 1) / self.return_frames).clamp(0, 1))
        return true + gap * left[..., None]


@dataclass(frozen=True)
class OwnHistories(Histories):
    """Histories of whole roll-outs (`af teacher`), which are somewhere else than the truth, so that it takes frames to return."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number("histories.return_frames", self.return_frames, least=1, whole=True)


@dataclass(frozen=True)
class GuessedHistories(Histories):
    """Histories that the model guesses in the same step, from the window at flow times of `least_flow_time` and more:
    the truth with the model's own errors, small ones and jumps between blocks. It learns to go back to the truth in place of
    continuing them.
    """

    return_frames: int = 8
    least_flow_time: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        require_fraction("histories.least_flow_time", self.least_flow_time)

    def flow_times(self, windows: int, frames: int, generator: torch.Generator | None = None) -> Float[Tensor, "B T"]:
        """What the guesses are made from: uniform in [least_flow_time, 1), a value a block."""
        device = "cpu" if generator is None else generator.device
        drawn = FlowTimes(self.block_frames)(windows, frames, generator=generator, device=device)
        return self.least_flow_time + (1 - self.least_flow_time) * drawn
