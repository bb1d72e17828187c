from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from af.models.denoiser import MotionDenoiser
from af.models.motion_space import MotionSpace
from af.types import Condition

DIM, AUDIO = 6, 12


@pytest.fixture
def small_denoiser() -> Callable[..., MotionDenoiser]:
    """A small denoiser with random weights everywhere (a fresh one is the identity), in float64: exact comparisons."""

    def make(**settings) -> MotionDenoiser:
        values = {
            "hidden": 32, "depth": 3, "heads": 2, "mlp_ratio": 2, "block_frames": 3, "look_ahead": 1, "window_frames": 12,
            "mask": "frame_lookahead", "condition_dim": AUDIO, "condition_heads": 2, "audio_feature_dim": 7,
        }  # fmt: skip
        denoiser = MotionDenoiser(MotionSpace("identity", DIM, DIM), **{**values, **settings}).double()
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in denoiser.parameters():
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        return denoiser.eval()

    return make


@pytest.fixture
def random_inputs() -> Callable[..., tuple[Condition, torch.Tensor, torch.Tensor]]:
    """Condition of `frames`, reference and noise for `padded` frames."""

    def make(frames: int, padded: int, batch: int = 2, seed: int = 2) -> tuple[Condition, torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        condition = Condition(normal(batch, frames, AUDIO), normal(batch, frames, AUDIO), normal(batch, frames, DIM))
        return condition, normal(batch, DIM), normal(batch, padded, DIM)

    return make
