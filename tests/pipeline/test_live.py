"""From raw sound and user frames: the live session against what `af generate` computes offline."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from af.clock import frames_to_samples
from af.models.autoencoder import MotionAutoencoder
from af.models.denoiser import MotionDenoiser
from af.models.motion_space import MotionSpace, motion_statistics
from af.models.speech import LogMel
from af.pipeline.avatar import Avatar
from af.pipeline.encode import image_tensor
from af.pipeline.live import live_session

FRAMES, SIZE = 23, 16


@pytest.fixture
def avatar(generator: torch.Generator) -> Avatar:
    torch.manual_seed(0)
    autoencoder = MotionAutoencoder(SIZE, latent_dim=8, directions=3, channel_base=64, max_channels=8).eval()
    space = MotionSpace("coefficients", 8, 3)
    with torch.no_grad():
        space.fit(motion_statistics([torch.randn(50, 8, generator=generator)], autoencoder.directions()))
    denoiser = MotionDenoiser(
        space, hidden=16, depth=2, heads=2, block_frames=5, look_ahead=1, window_frames=20, condition_dim=8,
        condition_heads=2, audio_feature_dim=8,
    ).eval()  # fmt: skip
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.copy_(0.25 * torch.randn(parameter.shape, generator=generator))
    return Avatar(autoencoder, denoiser, LogMel(mels=4, hops=2, block_frames=5, window_frames=20))


@pytest.mark.parametrize("piece_frames", [1, 4, 23])
def test_live_is_what_generate_computes(avatar: Avatar, piece_frames: int) -> None:
    rng = np.random.default_rng(0)
    voice, user_voice = (0.1 * rng.standard_normal((2, frames_to_samples(FRAMES)))).astype(np.float32)
    faces = rng.integers(0, 256, (FRAMES, SIZE, SIZE, 3), dtype=np.uint8)
    _, reference = avatar.identity(faces[0])
    with torch.no_grad():
        user_motion = torch.cat([avatar.autoencoder.motion(image_tensor(f[None])) for f in faces]).numpy()
    offline = avatar.motion(
        reference, FRAMES, avatar_audio=voice, user_audio=user_voice, user_motion=[user_motion], steps=2,
        generator=torch.Generator().manual_seed(4),
    )  # fmt: skip
    expected = torch.cat(list(offline), 1)

    session = live_session(avatar, reference, steps=2, generator=torch.Generator().manual_seed(4))
    assert session.waiting_ms == 5 * 40
    assert session.look_ahead_ms == 0
    blocks = []
    for start in range(0, FRAMES, piece_frames):
        frames = slice(start, start + piece_frames)
        samples = slice(frames_to_samples(start), frames_to_samples(start + piece_frames))
        blocks += session.push(avatar_audio=voice[samples], user_audio=user_voice[samples], user_frames=faces[frames])
    blocks += session.finish()
    got = torch.cat([block.motion for block in blocks], 1)
    assert got.shape == expected.shape == (1, FRAMES, 8)
    assert (got - expected).norm() < 1e-5 * expected.norm()
