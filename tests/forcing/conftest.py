from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from af.clock import frames_to_samples
from af.models.denoiser import MotionDenoiser
from af.models.motion_space import MotionSpace
from af.models.speech import LogMel
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


@pytest.fixture
def speech() -> LogMel:
    return LogMel(dim=4, hops=1, block_frames=3, window_frames=12)


@pytest.fixture
def denoiser(small_denoiser, speech):
    return small_denoiser(audio_feature_dim=speech.spec.dim).float()


@pytest.fixture
def talk() -> Callable[[int], dict[str, torch.Tensor]]:
    """`frames` of two voices and a user's face."""

    def make(frames: int, extra_samples: int = 0) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(7)
        samples = frames_to_samples(frames) + extra_samples
        envelope = torch.rand(samples, generator=generator).cumsum(0).sin()
        return {
            "avatar_audio": 0.3 * envelope * torch.randn(samples, generator=generator),
            "user_audio": 0.1 * torch.randn(samples, generator=generator),
            "user_motion": torch.randn(frames, 6, generator=generator),
        }

    return make
