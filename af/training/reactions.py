"""Reactions and lips on a fixed set of conversations while training: are they getting better, and at whose cost?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from af.data.provenance import drawn
from af.evaluation.faces import TrackedFaces
from af.evaluation.split import evaluate_split
from af.forcing.guidance import Guidance
from af.metrics import evaluate_clips
from af.metrics.records import Protocol
from af.models.artifact import load_as
from af.models.autoencoder import MotionAutoencoder
from af.models.tracker import load_tracker
from af.pipeline.avatar import Avatar
from af.pipeline.rolling import RolloutSettings
from af.training.callbacks import tensorboard


class Reactions(Callback):
    """Before the first step and after each validation, some rows of `af evaluate`'s table into TensorBoard.

    The first `clips` validation conversations are rolled out, decoded with `autoencoder` (a model folder; None turns
    the whole thing off) and read by the tracker of the synthetic faces; where others are shown, it says so once and
    measures nothing. The rows named by `tags` (None: the table's headlines) appear as
    reactions/TAG with their nulls beside them; undefined ones are left out.
    """

    def __init__(
        self,
        autoencoder: str | None = None,
        clips: int = 8,
        steps: int = 8,
        guidance_audio: float = 2.0,
        guidance_user: float = 1.0,
        tags: Sequence[str] | None = None,
    ) -> None:
        self.autoencoder, self.clips, self.tags = autoencoder, clips, tags
        self.settings = RolloutSettings(steps=steps, guidance=Guidance(guidance_audio, guidance_user))
        self._drawn: bool | None = None
        self._decoder: MotionAutoencoder | None = None  # kept out of the module tree, checkpoint and averages

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Where the stage starts from."""
        if trainer.global_step == 0:
            self._measure(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The averaged weights are in the module at this point."""
        if not trainer.sanity_checking:
            self._measure(trainer, pl_module)

    def _measure(self, trainer: Trainer, pl_module: LightningModule) -> None:
        writer, data = tensorboard(trainer), trainer.datamodule  # type: ignore[attr-defined]
        index = getattr(data, "validation_index", None)
        if writer is None or index is None or self.autoencoder is None or "b.mp4" not in index.samples[0].members:
            return
        if self._drawn is None:
            self._drawn = drawn(index, self.clips)
            if not self._drawn:
                rank_zero_warn(f"reactions: {index.folder} shows faces that are not drawn, which no tracker here reads")
        if not self._drawn:
            return
        for tag, value in self._rows(Avatar(self._load(pl_module), pl_module.denoiser, data.features), index).items():  # type: ignore[arg-type]
            writer.add_scalar(f"reactions/{tag}", value, trainer.global_step)

    def _rows(self, avatar: Avatar, index: Any) -> dict[str, float]:
        tracker = load_tracker(device=avatar.device)
        with TemporaryDirectory() as folder:
            clips = evaluate_split(
                avatar.denoiser,
                index,
                TrackedFaces(avatar, tracker.track, tracker.face_spec),
                Path(folder),
                settings=self.settings,
                limit=self.clips,
                videos=0,
            )
        found: dict[str, float] = {}
        protocol = Protocol(block=avatar.denoiser.layout.block_frames, resamples=20)
        for row in evaluate_clips(clips, protocol).rows:
            if row.headline if self.tags is None else row.tag in self.tags:
                found |= {row.tag: row.value} | ({} if row.null is None else {f"{row.tag}/null": row.null})
        return {tag: value for tag, value in found.items() if math.isfinite(value)}

    def _load(self, module: LightningModule) -> MotionAutoencoder:
        if self._decoder is None:
            assert self.autoencoder is not None
            model, _ = load_as(self.autoencoder, MotionAutoencoder)
            self._decoder = model.to(module.device).requires_grad_(False)
        return self._decoder
