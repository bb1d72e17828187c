"""A light decoder for a trained motion autoencoder, learnt from the images of its full one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from af.errors import UserError
from af.models.artifact import load_as
from af.models.autoencoder import AutoencoderOutput, MotionAutoencoder
from af.models.decoder import LightDecoder
from af.models.registry import build
from af.training.reference import FrozenReference
from af.training.vae import VaeModule
from af.types import Identity, PairBatch


def lightened(start: str | Path, light: int) -> MotionAutoencoder:
    """The autoencoder in `start` (a model folder, run or checkpoint) with a light decoder of channel base `light`, which
    alone is trained, so that denoisers of the one go with the other. Raises UserError for a model that has one already.
    """
    full, artifact = load_as(start, MotionAutoencoder)
    if isinstance(full.decoder, LightDecoder):
        raise UserError(f"start: {start} has a light decoder already; give the model that it was learnt from")
    model: MotionAutoencoder = build({**artifact.info["model"], "light": light}, f"{start}: model")
    rest = {n: v for n, v in full.state_dict().items() if not n.startswith("decoder.")}
    model.load_state_dict(rest, strict=False)
    assert isinstance(model.decoder, LightDecoder)
    model.decoder.start_from(full.decoder)
    model.requires_grad_(False).eval()  # statistics of normalisations are the trained encoder's
    model.decoder.requires_grad_(True)
    return model


class LightDecoderModule(VaeModule):
    """Train the decoder of a `lightened` autoencoder on what the full one, in the folder `teacher`, makes of the same
    portraits and motion. Validation is on the true images. Raises as `VaeModule`.
    """

    def __init__(self, autoencoder: MotionAutoencoder, *, teacher: str | Path, **options: Any) -> None:
        super().__init__(autoencoder, **options)
        self.teacher = FrozenReference(load_as(teacher, MotionAutoencoder)[0])

    def on_fit_start(self) -> None:
        """Move the teacher to this rank's device."""
        super().on_fit_start()
        self.teacher.to(self.device)

    def compile_networks(self, **how: Any) -> None:
        """Compile the decoders and the loss."""
        super().compile_networks(**how)
        for autoencoder in (self.autoencoder, self.teacher.network):
            autoencoder.decoder.compile(**how)

    def training_step(self, batch: PairBatch, batch_idx: int) -> Tensor:
        """The loss of a batch of pairs, each image of them encoded once."""
        noise, full = self._noise(batch), self.teacher.network
        with torch.no_grad():
            given = full.encode_pair(batch.source, None if self.both_ways else batch.driving, noise)
            target = full.decode(Identity(given.code, given.features), given.motion[:, None], 1)[:, 0]
        identity = Identity(given.code, self.autoencoder.decoder.appearance(given.features))
        image = self.autoencoder.decode(identity, given.motion[:, None], 1)[:, 0]
        output = AutoencoderOutput(image, given.coefficients, given.log_variance, given.motion)
        loss, terms = self.reconstruction_loss(output, replace(batch, driving=target))
        self._log_training(loss, terms)
        return loss
