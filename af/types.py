"""The records passed between the packages, and the glossary of symbols.

Symbols (used in every shape): ``B`` batch, ``T`` frames, ``D`` motion latent, ``A`` projected audio features, ``F`` raw
audio features, ``P`` face parameters, ``H`` heads, ``K`` motion directions, ``S`` audio samples, ``Y X`` image rows and
columns.

Flow time ``t`` is always (B, T): **t = 1 is clean, t = 0 is noise**. Masks are boolean, **True = may attend**.
Images inside the models are RGB in [-1, 1], channels first; images in files and shards are uint8, channels last.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, UInt8
from torch import Tensor

from af.specs import FaceSpec, FeatureSpec, MotionSpec

__all__ = [
    "Clip",
    "Condition",
    "DyadBatch",
    "FaceSpec",
    "FeatureSpec",
    "Identity",
    "MotionSpec",
    "PairBatch",
    "Person",
]


class _TensorRecord:
    """Moving the frozen records below to a device or to page-locked memory."""

    def to(self, device: torch.device | str, non_blocking: bool = False):
        """The same record with every tensor on `device`."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]
        moved = {k: v.to(device, non_blocking=non_blocking) if isinstance(v, Tensor) else v for k, v in values.items()}
        return type(self)(**moved)

    def pin_memory(self):
        """The same record with every tensor in page-locked memory (called by the DataLoader)."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]
        return type(self)(**{k: v.pin_memory() if isinstance(v, Tensor) else v for k, v in values.items()})


@dataclass(frozen=True)
class Condition(_TensorRecord):
    """The denoiser's input signals, frame by frame. A dropped signal is a zero tensor.

    Audio is already projected to A dims (``MotionDenoiser.audio_projection``); motion is in the denoiser's space.
    """

    avatar_audio: Float[Tensor, "B T A"]
    user_audio: Float[Tensor, "B T A"]
    user_motion: Float[Tensor, "B T D"]

    @property
    def frames(self) -> int:
        """Number of frames T."""
        return self.avatar_audio.shape[1]

    def map(self, change: Callable[[Tensor], Tensor]) -> Condition:
        """The condition with `change` applied to every signal."""
        return Condition(*map(change, vars(self).values()))

    def window(self, start: int, stop: int) -> Condition:
        """Frames [start, stop) of every signal."""
        return self.map(lambda signal: signal[:, start:stop])

    def last(self, frames: int) -> Condition:
        """The newest `frames` frames, or all."""
        return self.window(max(0, self.frames - frames), self.frames)

    def then(self, other: Condition) -> Condition:
        """This condition followed by `other`."""
        return _joined((self, other), 1)

    def beside(self, *others: Condition) -> Condition:
        """This condition and `others`, of equal length, as one batch."""
        return _joined((self, *others), 0)

    def filled(self, frames: int) -> Condition:
        """The condition extended to `frames` by repeating its last frame."""
        return self.map(lambda x: torch.cat((x, x[:, -1:].expand(-1, frames - x.shape[1], -1)), 1))


def _joined(conditions: Sequence[Condition], dim: int) -> Condition:
    signals = zip(*(vars(condition).values() for condition in conditions), strict=True)
    return Condition(*(torch.cat(parts, dim) for parts in signals))


@dataclass(frozen=True)
class Identity:
    """A portrait encoded by the autoencoder: computed once, used for every frame."""

    code: Float[Tensor, "B D"]
    features: tuple[Float[Tensor, "B C Y X"], ...]


@dataclass(frozen=True)
class PairBatch(_TensorRecord):
    """Two frames of one person for the autoencoder: reconstruct `driving` from `source`'s appearance.

    `weight` emphasises pixels (eyes, mouth) where landmarks exist; None means 1 everywhere. `face` holds the driving
    frame's face parameters if the shards have them and they were requested.
    """

    source: Float[Tensor, "B 3 Y X"]
    driving: Float[Tensor, "B 3 Y X"]
    weight: Float[Tensor, "B 1 Y X"] | None = None
    face: Float[Tensor, "B P"] | None = None


@dataclass(frozen=True)
class DyadBatch(_TensorRecord):
    """Windows of conversations for the denoiser: raw audio features (F dims) and the autoencoder's motion latents.

    `reference` is the portrait's motion: a frame of the same clip, outside the window if possible. `valid` is False on
    frames without a tracked face and on padding. `has_user` is False for windows of one-sided samples, whose user is
    dropped (None: all have a user). Present if requested: `loser` is worse motion of the same avatar in
    the same frames, `teacher` a teacher's motion generated from `noise`; `listening` is True while the avatar is
    silent.
    """

    avatar_motion: Float[Tensor, "B T D"]
    avatar_audio: Float[Tensor, "B T F"]
    user_motion: Float[Tensor, "B T D"]
    user_audio: Float[Tensor, "B T F"]
    reference: Float[Tensor, "B D"]
    valid: Bool[Tensor, "B T"]
    loser: Float[Tensor, "B T D"] | None = None
    teacher: Float[Tensor, "B T D"] | None = None
    noise: Float[Tensor, "B T M"] | None = None
    listening: Bool[Tensor, "B T"] | None = None
    has_user: Bool[Tensor, " B"] | None = None

    def first(self, frames: int) -> DyadBatch:
        """The first `frames` frames of every window, laid out like whole windows: compiled code asks."""
        kept = ("reference", "has_user")
        cut = {name: x[:, :frames].contiguous() for name, x in vars(self).items() if x is not None and name not in kept}
        return replace(self, **cut)


@dataclass(frozen=True)
class Person:
    """One side of a conversation, decoded. Fields not requested or not in the shard are None."""

    video: UInt8[np.ndarray, "T Y X 3"] | None = None
    audio: Float32[np.ndarray, " S"] | None = None
    motion: Float32[np.ndarray, "T D"] | None = None
    audio_features: Float32[np.ndarray, "T F"] | None = None
    face: Float32[np.ndarray, "T P"] | None = None
    teacher: Float32[np.ndarray, "T D"] | None = None


@dataclass(frozen=True)
class Clip:
    """One dyadic sample: two people at the same instants, and the sample's `json` from the shard."""

    key: str
    meta: Mapping[str, Any]
    a: Person
    b: Person

    def person(self, role: str) -> Person:
        """The person called "a" or "b"."""
        if role not in ("a", "b"):
            raise ValueError(f"role must be 'a' or 'b', got {role!r}")
        return self.a if role == "a" else self.b
