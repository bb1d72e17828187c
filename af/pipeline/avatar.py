"""An avatar ready to use: matching autoencoder, denoiser and speech features."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

from af.data.audio import fit_audio
from af.errors import UserError
from af.forcing.pieces import mono_samples
from af.forcing.rollout import rollout_blocks
from af.images import image_array, image_tensor
from af.models.artifact import Artifact, load_model
from af.models.autoencoder import MotionAutoencoder
from af.models.denoiser import MotionDenoiser, for_inference
from af.models.speech import SpeechFeatures
from af.pipeline.encode import face_crop, motion_spec_of
from af.pipeline.inputs import NOTHING, held_rows
from af.specs import require_spec
from af.types import Condition, Identity


@dataclass(frozen=True)
class Avatar:
    """Turns a portrait, voices and a user's face motion into frames; all models are moved to the denoiser's device."""

    autoencoder: MotionAutoencoder
    denoiser: MotionDenoiser
    features: SpeechFeatures
    #: Whether roll-outs can be held by an anchor (`af.forcing.anchor`).
    anchored: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for part in (self.autoencoder, self.features):
            part.to(self.device)

    @classmethod
    def load(
        cls,
        autoencoder: str | Path,
        denoiser: str | Path,
        device: torch.device | str = "cpu",
        precision: str | None = None,
    ) -> Self:
        """Read two model folders. `precision` "fp32", "bf16" or "auto" packs the denoiser (`for_inference`).

        Raises UserError when the folders do not match.
        """
        images, motion = load_model(autoencoder, MotionAutoencoder), load_model(denoiser, MotionDenoiser)
        return cls.of(images, motion, device, precision)

    @classmethod
    def of(
        cls, images: Artifact, motion: Artifact, device: torch.device | str = "cpu", precision: str | None = None
    ) -> Self:
        """`load` for folders already read."""
        autoencoder, denoiser = images.folder, motion.folder
        assert isinstance(images.model, MotionAutoencoder)
        assert isinstance(motion.model, MotionDenoiser)
        latents = motion.motion_spec
        if latents.autoencoder != images.latents:
            raise UserError(
                f"{denoiser} was trained on latents from another autoencoder (sha256 {latents.autoencoder[:12]}…) than "
                f"{autoencoder} (sha256 {images.latents[:12]}…)"
            )
        made = motion_spec_of(images.model, images.latents)
        remedy = f"The description of {denoiser} was changed: export it again."
        require_spec(made, latents, where=f"the autoencoder {autoencoder}", remedy=remedy)
        features = motion.speech_features()
        model = motion.model.to(device)
        return cls(images.model, model if precision is None else for_inference(model, precision), features)

    @property
    def device(self) -> torch.device:
        """The device of all computation."""
        return next(self.denoiser.parameters()).device

    @torch.inference_mode()
    def identity(self, portrait: UInt8[np.ndarray, "Y X 3"]) -> tuple[Identity, Float[Tensor, "1 D"]]:
        """Identity and reference motion of a portrait at the autoencoder's size (see `af.read_portrait`).

        Raises UserError for an image of another size or type.
        """
        portrait = face_crop("portrait", portrait, self.autoencoder.image_size)
        identity = self.autoencoder.identity(image_tensor(portrait[None], self.device), check=False)
        return identity, self.autoencoder.reference_motion(identity)

    @torch.inference_mode()
    def motion(
        self,
        reference: Float[Tensor, "1 D"],
        frames: int,
        *,
        avatar_audio: Float32[np.ndarray, " S"] | None = None,
        user_audio: Float32[np.ndarray, " S"] | None = None,
        user_motion: Iterable[Float[np.ndarray, "t D"]] | None = None,
        generator: torch.Generator | None = None,
        **sampling: Any,
    ) -> Iterator[Float[Tensor, "1 t D"]]:
        """Motion latents block by block, `frames` in total, in bounded memory.

        A None signal is dropped; one that ends early is continued with silence or its last motion. `user_motion` comes
        in pieces of any length. All randomness is from `generator`. `sampling` as in `af.forcing.sampler.BlockSampler`:
        steps, guidance, schedule, solver, anchor, dead_band.
        """
        space = self.denoiser.motion_space
        conditions = self._conditions(frames, avatar_audio, user_audio, user_motion)
        for block in rollout_blocks(
            self.denoiser,
            conditions,
            space.to_model(reference),
            generator=generator,
            **sampling,
        ):
            yield space.from_model(block)

    @torch.inference_mode()
    def frames(
        self, identity: Identity, motion: Iterable[Float[Tensor, "1 t D"]]
    ) -> Iterator[UInt8[np.ndarray, "Y X 3"]]:
        """Frames one by one, decoded block by block."""
        for block in motion:
            yield from image_array(self.autoencoder.decode(identity, block)[0])

    def _conditions(
        self,
        frames: int,
        avatar_audio: np.ndarray | None,
        user_audio: np.ndarray | None,
        user_motion: Iterable[np.ndarray] | None,
    ) -> Iterator[Condition]:
        avatar = self._audio_pieces("avatar_audio", avatar_audio, frames)
        user = self._audio_pieces("user_audio", user_audio, frames)
        poses = None if user_motion is None else held_rows(chain.from_iterable(user_motion))
        made = 0
        block = self.denoiser.layout.block_frames
        while made < frames:
            a, u = next(avatar, None), next(user, None)
            count = len(a) if a is not None else len(u) if u is not None else block
            count = min(count, frames - made)
            m = None if poses is None else torch.from_numpy(np.stack(list(islice(poses, count))))
            if a is None and u is None and m is None:
                raise UserError(NOTHING)
            given = [None if x is None else x[None].to(self.device, non_blocking=True) for x in (a, u, m)]
            for first in range(0, count, block):  # block by block: the bits of a live session
                part = slice(first, min(first + block, count))
                yield self.denoiser.condition(*(None if x is None else x[:, part] for x in given))
            made += count

    def _audio_pieces(self, name: str, audio: np.ndarray | None, frames: int) -> Iterator[Tensor]:
        if audio is None:
            return iter(())
        return self.features.pieces(torch.from_numpy(fit_audio(mono_samples(name, audio), frames)))
