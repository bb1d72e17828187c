"""A small avatar with random weights, and something for it to react to."""

from __future__ import annotations

import numpy as np
import torch

from af.clock import frames_to_samples
from af.images import image_tensor
from af.models.autoencoder import MotionAutoencoder
from af.models.denoiser import MotionDenoiser
from af.models.motion_space import MotionSpace, motion_statistics
from af.models.speech import LogMel
from af.pipeline.avatar import Avatar

FRAMES, SIZE = 23, 16


def toy_avatar(generator: torch.Generator) -> Avatar:
    torch.manual_seed(0)
    autoencoder = MotionAutoencoder(SIZE, latent_dim=8, directions=3, channel_base=64, max_channels=8).eval()
    space = MotionSpace("coefficients", 8, 3)
    with torch.no_grad():
        seen = autoencoder.motion(image_tensor(recording(9)["user_frames"]))  # so that one face is not like another
        space.fit(motion_statistics([seen], autoencoder.directions()))
    denoiser = MotionDenoiser(
        space, hidden=16, depth=2, heads=2, block_frames=5, look_ahead=1, window_frames=20, condition_dim=8,
        condition_heads=2, audio_feature_dim=8,
    ).eval()  # fmt: skip
    with torch.no_grad():
        for parameter in denoiser.parameters():
            scale = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.25  # larger ones drown the signals
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return Avatar(autoencoder, denoiser, LogMel(dim=8, hops=2, block_frames=5, window_frames=20))


def recording(seed: int = 0, frames: int = FRAMES) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    voice, user_voice = (0.1 * rng.standard_normal((2, frames_to_samples(frames)))).astype(np.float32)
    faces = rng.integers(0, 256, (frames, SIZE, SIZE, 3), dtype=np.uint8)
    return {"avatar_audio": voice, "user_audio": user_voice, "user_frames": faces}
