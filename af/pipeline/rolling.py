"""Recorded conversations through the denoiser: from arrays of shards to motion latents, the one way for every task."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from af.data.schema import other_role
from af.forcing.anchor import Anchor
from af.forcing.dropout import SIGNALS, keep_signals
from af.forcing.noise import clip_noise
from af.forcing.rollout import Guidance, block_sizes, rollout
from af.models.denoiser import MotionDenoiser
from af.types import Clip


@dataclass(frozen=True)
class RolloutSettings:
    """How clips are generated: Euler steps, guidance scales, seed, clips rolled out together, signals the model gets,
    and what holds long roll-outs to the portrait.
    """

    steps: int = 8
    guidance: Guidance = Guidance()  # noqa: RUF009 (frozen)
    seed: int = 0
    batch: int = 16
    signals: tuple[str, ...] = SIGNALS
    anchor: Anchor = Anchor()  # noqa: RUF009 (frozen)


@dataclass(frozen=True)
class Turn:
    """One person as the avatar: what the denoiser hears and sees, as it is in shards, and the name of the noise."""

    name: str
    avatar_audio: Float[np.ndarray, "T F"]
    user_audio: Float[np.ndarray, "T F"]
    user_motion: Float[np.ndarray, "T D"]
    reference: Float[np.ndarray, " D"]

    def first(self, frames: int) -> Turn:
        """The beginning of it."""
        parts: dict[str, Any] = {name: getattr(self, name)[:frames] for name in SIGNALS}
        return replace(self, **parts)


def turn_of(clip: Clip, role: str) -> Turn:
    """A clip with latents and audio features, `role` as the avatar; its first frame is the reference."""
    own, user = clip.person(role), clip.person(other_role(role))
    assert own.audio_features is not None and user.audio_features is not None  # noqa: PT018
    assert own.motion is not None and user.motion is not None  # noqa: PT018
    return Turn(clip.key, own.audio_features, user.audio_features, user.motion, own.motion[0])


@torch.inference_mode()
def roll_out(denoiser: MotionDenoiser, turns: Sequence[Turn], settings: RolloutSettings) -> Float[Tensor, "B T D"]:
    """Motion latents of turns of one length, rolled out together; the noise belongs to a turn's name and the seed."""
    device, space = next(denoiser.parameters()).device, denoiser.motion_space

    def stacked(rows: Iterable[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.stack([np.asarray(r, np.float32) for r in rows])).to(device, non_blocking=True)

    condition = denoiser.condition(
        stacked(t.avatar_audio for t in turns),
        stacked(t.user_audio for t in turns),
        stacked(t.user_motion for t in turns),
    )
    frames = sum(block_sizes(condition.frames, denoiser.layout))
    noise = torch.stack([clip_noise(t.name, settings.seed, frames, space.dim) for t in turns])
    motion = rollout(
        denoiser,
        keep_signals(condition, settings.signals),
        space.to_model(stacked(t.reference for t in turns)),
        steps=settings.steps,
        guidance=settings.guidance,
        noise=noise.to(device, non_blocking=True),
        anchor=settings.anchor,
    )
    return space.from_model(motion).float()
