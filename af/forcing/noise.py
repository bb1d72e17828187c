"""Noise levels of training windows: flow times drawn per block and shared by its frames."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Final, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from af.errors import UserError, require_choice
from af.values import require_fraction, require_number

LEVELS: Final = ("independent", "each", "last")


class Distribution(Protocol):
    """A distribution of flow times in [0, 1]."""

    def __call__(self, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        """Independent samples of `shape`."""
        ...


@dataclass(frozen=True)
class Uniform:
    """Flow time uniform in [0, 1)."""

    def __call__(self, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        """Independent samples of `shape` (on the generator's device)."""
        return torch.rand(shape, generator=generator, device=_device(generator))


@dataclass(frozen=True)
class LogitNormal:
    """Sigmoid of a normal variable: more weight on middle flow times (Stable Diffusion 3). `mean` > 0 is cleaner."""

    mean: float = 0.0
    std: float = 1.0

    def __call__(self, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        """Independent samples of `shape` (on the generator's device)."""
        normal = torch.randn(shape, generator=generator, device=_device(generator))
        return torch.sigmoid(self.mean + self.std * normal)


@dataclass(frozen=True)
class Steps:
    """The flow times of a sampler with `count` equal steps: 0, 1/count, …, equally likely (for distillation)."""

    count: int = 1

    def __post_init__(self) -> None:
        require_number("distribution.count", self.count, least=1, whole=True)

    def __call__(self, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        """Independent samples of `shape` (on the generator's device)."""
        return torch.randint(self.count, shape, generator=generator, device=_device(generator)) / self.count


@dataclass(frozen=True)
class FlowTimes:
    """Draws flow times (B, T), shared by the frames of a block of `block_frames`.

    `levels` "independent": every block has its own (diffusion forcing); `clean_probability` is the share of blocks
    shown clean (t = 1), like the history during generation (0: the paper). "each": the same flow times, but every block
    sees a clean past, as during generation, and no other noisy block. "last": only the last block is noisy
    (autoregressive diffusion); a share `start_share` of the windows is cut to a shorter history, to learn the start of a
    roll-out.
    """

    block_frames: int
    distribution: Distribution = Uniform()
    clean_probability: float = 0.0
    levels: str = "independent"
    start_share: float = 0.2

    def __post_init__(self) -> None:
        require_number("flow_times.block_frames", self.block_frames, least=1, whole=True)
        require_fraction("flow_times.clean_probability", self.clean_probability)
        require_fraction("flow_times.start_share", self.start_share)
        require_choice("flow_times.levels", "levels", self.levels, LEVELS)

    def frames(self, window_frames: int, generator: torch.Generator | None = None) -> int:
        """Number of frames of a window to train on in this step: all, or a shorter history and one block."""
        if self.levels != "last":
            return window_frames
        histories = self.histories(window_frames)
        draw, place = torch.rand(2, generator=generator, device=_device(generator)).tolist()
        if draw >= self.start_share or len(histories) == 1:
            return histories[-1] + self.block_frames
        return histories[int(place * (len(histories) - 1))] + self.block_frames

    def histories(self, window_frames: int) -> list[int]:
        """Lengths of history before the last block: none, then whole blocks up to a full window (which may begin with a
        partial block). Raises UserError for a window shorter than a block.
        """
        full = window_frames - self.block_frames
        if full < 0:
            raise UserError(f"flow_times.block_frames: {self.block_frames}; a window has only {window_frames} frames")
        return sorted({0, *range(full, -1, -self.block_frames)})

    def __call__(
        self, batch: int, frames: int, *, generator: torch.Generator | None = None, device: torch.device | str = "cpu"
    ) -> Float[Tensor, "B T"]:
        """Flow times of `batch` windows of `frames` frames; a partial last block has its own time."""
        if self.levels == "last":
            history = torch.ones(batch, frames - self.block_frames, device=device)
            t = self.distribution((batch, 1), generator).to(device)
            return torch.cat((history, t.expand(-1, self.block_frames)), 1)
        blocks = -(-frames // self.block_frames)
        t = self.distribution((batch, blocks), generator)
        if self.clean_probability > 0:
            clean = torch.rand((batch, blocks), generator=generator, device=t.device) < self.clean_probability
            t = torch.where(clean, torch.ones_like(t), t)
        return t.repeat_interleave(self.block_frames, 1)[:, :frames].to(device)


def clip_noise(key: str, seed: int, frames: int, dim: int) -> Float[Tensor, "T D"]:
    """The noise of a clip, a function of its key and the seed alone: batching does not change it."""
    # torch's CPU generator keeps only the lower 32 bits of a seed
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}/{key}".encode()))
    return torch.randn(frames, dim, generator=generator)


def _device(generator: torch.Generator | None) -> torch.device:
    return torch.device("cpu") if generator is None else generator.device
