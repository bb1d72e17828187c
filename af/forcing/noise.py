"""How much noise each block of a training window gets: flow times drawn per block and shared by its frames."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from af.errors import UserError


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
    """sigmoid of a normal variable: more weight on middle flow times (Stable Diffusion 3). `mean` > 0: cleaner."""

    mean: float = 0.0
    std: float = 1.0

    def __call__(self, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        """Independent samples of `shape` (on the generator's device)."""
        normal = torch.randn(shape, generator=generator, device=_device(generator))
        return torch.sigmoid(self.mean + self.std * normal)


@dataclass(frozen=True)
class Steps:
    """The flow times at which a sampler of `count` equal steps evaluates, each as often: 0, 1/count, ... (distillation)."""

    count: int = 1

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UserError(f"distribution.count: {self.count}; a sampler has at least one step")

    def __call__(self, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        """Independent samples of `shape` (on the generator's device)."""
        return torch.randint(self.count, shape, generator=generator, device=_device(generator)) / self.count


@dataclass(frozen=True)
class FlowTimes:
    """Draws (B, T) flow times: one a block of `block_frames`, independent of the other blocks (diffusion forcing).

    `clean_probability`: share of the blocks shown clean (t = 1), as history is when generating; 0 is the paper.
    """

    block_frames: int
    distribution: Distribution = Uniform()
    clean_probability: float = 0.0

    def __post_init__(self) -> None:
        if self.block_frames < 1:
            raise UserError(f"flow_times.block_frames: {self.block_frames}; it must be at least 1")
        if not 0 <= self.clean_probability <= 1:
            raise UserError(f"flow_times.clean_probability: {self.clean_probability}; allowed: 0 to 1")

    def __call__(
        self, batch: int, frames: int, *, generator: torch.Generator | None = None, device: torch.device | str = "cpu"
    ) -> Float[Tensor, "B T"]:
        """Flow times of `batch` windows of `frames` frames (a last, partial block has its own time)."""
        blocks = -(-frames // self.block_frames)
        t = self.distribution((batch, blocks), generator)
        if self.clean_probability > 0:
            clean = torch.rand((batch, blocks), generator=generator, device=t.device) < self.clean_probability
            t = torch.where(clean, torch.ones_like(t), t)
        return t.repeat_interleave(self.block_frames, 1)[:, :frames].to(device)


def clip_noise(key: str, seed: int, frames: int, dim: int) -> Float[Tensor, "T D"]:
    """The noise of a clip: a function of its key and the seed, whatever it is batched with."""
    # torch's CPU generator keeps the lower 32 bits of a seed only
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}/{key}".encode()))
    return torch.randn(frames, dim, generator=generator)


def _device(generator: torch.Generator | None) -> torch.device:
    return torch.device("cpu") if generator is None else generator.device
