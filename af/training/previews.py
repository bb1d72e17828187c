"""Previews of the denoiser in TensorBoard: mask, noise levels, generated and true conversations."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from af.data.checks import ShardError
from af.data.index import Index
from af.data.schema import other_role
from af.data.shards import ShardReader
from af.forcing.solvers import STEPS
from af.images import image_array, image_tensor
from af.models.artifact import load_as
from af.models.autoencoder import MotionAutoencoder
from af.models.denoiser import MotionDenoiser
from af.nn.masks import attention_mask
from af.pipeline.rolling import RolloutSettings, roll_out, turn_of
from af.training.callbacks import tensorboard
from af.training.denoiser import DenoiserModule
from af.training.images import add_animation, add_image, curves_image, mask_image, noise_level_image
from af.training.randomness import step_generator
from af.types import Clip
from af.values import require_number


class Previews(Callback):
    """Shows mask and noise levels at the start, and a few rolled-out conversations after each validation.

    With `before` also at the start, for the initial model of a preference stage. For `frames` frames of the first
    `clips` validation clips, with b as the avatar (a in one-sided ones): curves of the largest coefficients and, with
    an `autoencoder` (model folder), an animation user | generated | true.
    """

    def __init__(
        self,
        autoencoder: str | None = None,
        clips: int = 2,
        frames: int = 150,
        steps: int = STEPS,
        curves: int = 6,
        before: bool = False,
    ) -> None:
        for name, value, least in (
            ("clips", clips, 0),
            ("frames", frames, 1),
            ("steps", steps, 1),
            ("curves", curves, 1),
        ):
            require_number(name, value, least=least, whole=True)
        self.autoencoder = autoencoder
        self.clips, self.frames, self.steps, self.curves = clips, frames, steps, curves
        self.before = before
        self._decoder: MotionAutoencoder | None = None  # not part of the module tree, checkpoint and averages

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the mask and one batch of noise levels."""
        writer = tensorboard(trainer)
        if writer is None:
            return
        module, denoiser = _parts(pl_module)
        layout = denoiser.layout
        positions = torch.arange(layout.window_frames)
        mask = attention_mask(
            denoiser.mask, positions, positions, block_frames=layout.block_frames, look_ahead=layout.look_ahead
        )
        add_image(writer, "attention_mask", mask_image(mask, denoiser.mask, layout.block_frames), trainer.global_step)
        levels = module.flow_times(16, layout.window_frames, generator=step_generator(module.seed, 0))
        add_image(writer, "noise_levels", noise_level_image(levels), trainer.global_step)
        if self.before and trainer.global_step == 0:
            self.on_validation_epoch_end(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Roll out with the averaged weights, which are in the module at this point, and draw."""
        writer = tensorboard(trainer)
        index = getattr(trainer.datamodule, "validation_index", None)  # type: ignore[attr-defined]
        if writer is None or index is None or trainer.sanity_checking or self.clips == 0:
            return
        module, denoiser = _parts(pl_module)
        for clip in self._read(index):
            self._draw(writer, clip, denoiser, module.sampling, trainer.global_step)

    def _read(self, index: Index) -> Sequence[Clip]:
        reader = ShardReader(index)
        fields = {"motion", "audio_features"}
        if self.autoencoder is not None and "a.mp4" in index.samples[0].members:
            fields.add("video")
        clips: list[Clip] = []
        for i, sample in enumerate(index.samples):
            if len(clips) < self.clips and sample.avatars:
                with contextlib.suppress(ShardError):  # broken clips are not shown; the loader reports them
                    clips.append(reader.read(i, fields))
        return clips

    @torch.inference_mode()
    def _draw(self, writer: Any, clip: Clip, denoiser: MotionDenoiser, sampling: Mapping[str, Any], step: int) -> None:
        device = next(denoiser.parameters()).device
        role = "a" if clip.meta.get("one_sided") else "b"
        avatar, user = clip.person(role), clip.person(other_role(role))
        turn = turn_of(clip, role).first(self.frames)
        generated = roll_out(denoiser, [turn], RolloutSettings(**{"steps": self.steps, **sampling}))
        true = torch.from_numpy(np.asarray(avatar.motion, np.float32))[: self.frames].to(device)

        def coefficients(motion: Tensor) -> np.ndarray:
            return denoiser.motion_space.to_model(motion).float().cpu().numpy()

        standard = coefficients(true)
        order = np.argsort(-standard.var(0))[: self.curves]
        curves = curves_image(standard[:, order], coefficients(generated[0])[:, order], [f"{k}" for k in order])
        add_image(writer, f"preview/{clip.key}/coefficients", curves, step)
        if avatar.video is not None:
            frames = self._decode(avatar.video, generated, device)
            shown = [v[: len(frames)] for v in (user.video, frames, avatar.video) if v is not None]
            sides = "user_generated_true" if user.video is not None else "generated_true"
            add_animation(writer, f"preview/{clip.key}/{sides}", np.concatenate(shown, axis=2), step)

    def _decode(self, video: UInt8[np.ndarray, "T Y X 3"], motion: Tensor, device: torch.device) -> np.ndarray:
        if self._decoder is None:
            assert self.autoencoder is not None
            model, _ = load_as(self.autoencoder, MotionAutoencoder)
            self._decoder = model.to(device).requires_grad_(False)
        identity = self._decoder.identity(image_tensor(video[:1], device), check=False)
        return image_array(self._decoder.decode(identity, motion)[0])


def _parts(module: LightningModule) -> tuple[DenoiserModule, MotionDenoiser]:
    assert isinstance(module, DenoiserModule)
    return module, module.denoiser
