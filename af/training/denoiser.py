"""Stage two: the diffusion-forcing denoiser on motion latents (method §3)."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW

from af.errors import UserError
from af.forcing.dropout import ConditionDropout, Dropped, drop
from af.forcing.histories import GuessedHistories, Histories
from af.forcing.noise import FlowTimes, Steps
from af.forcing.path import interpolate, target_velocity
from af.losses.velocity import FrameError, valid_mean
from af.models.denoiser import MotionDenoiser
from af.pipeline.sampling import ONE_PASS
from af.specs import MotionSpec, require_spec
from af.training.randomness import Draws, validation_draws
from af.training.reference import start_from
from af.training.schedules import MakeOptimizer, MakeScheduler, constant
from af.training.stage import Stage
from af.types import Condition, DyadBatch


class DenoiserModule(Stage):
    """Train a `MotionDenoiser` on `DyadBatch`es with diffusion forcing.

    `flow_times` draws the flow time of every block, `loss` compares velocities on valid frames, `dropout` drops
    signals. `optimizer` and `scheduler` are partial: they still need parameters and optimiser. `start` is the model
    folder of a denoiser with the same layers, whose weights are loaded. With `histories`, some training windows begin with
    what a model has made: this one in the same step, or another, whose motion `data.teacher` holds. Raises UserError for
    flow times of levels "each" with a denoiser that looks ahead.
    """

    def __init__(
        self,
        denoiser: MotionDenoiser,
        *,
        flow_times: FlowTimes,
        loss: FrameError,
        dropout: ConditionDropout,
        optimizer: MakeOptimizer = AdamW,
        scheduler: MakeScheduler = constant,
        start: str | None = None,
        histories: Histories | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(denoiser, optimizer, scheduler, seed)
        if flow_times.levels == "each":
            denoiser.require_no_look_ahead()
        self.denoiser, self._start_spec = denoiser, None if start is None else start_from(denoiser, start)
        self.flow_times, self.loss, self.dropout, self.histories = flow_times, loss, dropout, histories

    def setup(self, stage: str) -> None:
        """Standardise motion by the training set's statistics, unless a checkpoint has its own."""
        data: Any = getattr(self.trainer, "datamodule", None)
        statistics = getattr(data, "motion_statistics", None)
        if statistics is not None:
            self._require_latents(data.where, data.motion_spec)
        if statistics is not None and not self.denoiser.motion_space.fitted:
            self.denoiser.motion_space.fit(statistics)

    def _require_latents(self, where: str, spec: MotionSpec) -> None:
        space = self.denoiser.motion_space
        for name, found, wanted in (
            ("latent_dim", spec.dim, space.latent_dim),
            *([] if space.kind == "identity" else [("directions", spec.directions, space.directions)]),
        ):
            if found != wanted:
                raise UserError(
                    f"{where} has latents with {name} {found}, the model is for {wanted}: set "
                    f"model.motion_space.{name}={found}, or encode with another autoencoder"
                )
        if self._start_spec is not None:
            require_spec(
                spec,
                self._start_spec,
                where=where,
                remedy="Encode the data with the autoencoder of the model in `start`.",
            )

    #: How the model says that it is sampled; empty: it says nothing.
    said: Mapping[str, Any] = MappingProxyType({})

    @property
    def sampling(self) -> Mapping[str, Any]:
        """How it is sampled where something is shown, beside what is usual."""
        return self.said

    def compile_networks(self, **how: Any) -> None:
        """Compile the networks of a step; arguments as for `torch.compile`. Windows of several lengths share what is
        compiled.
        """
        several = {"dynamic": True} if self.flow_times.levels == "last" else {}
        compile_denoiser(self.denoiser, **several, **how)

    def velocity_losses(self, batch: DyadBatch, draws: Draws, dropped: Dropped) -> tuple[Tensor, Tensor, Tensor]:
        """Per-frame loss (B, T), flow time (B, T) and the valid mask of one draw of noise and levels."""
        condition, reference = drop(*conditioned(self.denoiser, batch), dropped)
        noise, clean = self.ends(batch, draws)
        flow_time = self.draw_flow_times(draws, clean)
        past = self.past(clean)
        if (histories := self.histories) is not None and self.training:
            borders = self._borders(histories, clean, draws)
            if isinstance(histories, GuessedHistories):
                made = self._guesses(histories, draws, noise, clean, condition, reference, past)
            else:
                made = self.generated(batch)
            if past is None:
                clean, own = histories(clean, made, borders)
                flow_time = torch.where(own, 1, flow_time)
            else:
                clean, past = histories.each(clean, made, borders > 0)
        noisy = interpolate(noise, clean, flow_time)
        velocity = self.denoiser(noisy, flow_time, condition, reference, past)
        errors = self.loss(velocity, target_velocity(noise, clean))
        # a clean frame has no velocity, since its noise is unknown
        return errors, flow_time, batch.valid & (flow_time < 1)

    def generated(self, batch: DyadBatch) -> Tensor:
        """What `af teacher` generated in the windows, in the denoiser's space. Raises UserError without it."""
        if batch.teacher is None:
            raise UserError(f"{type(self).__name__} needs data.teacher: a folder written by af teacher")
        return self.denoiser.motion_space.to_model(batch.teacher)

    def _guesses(
        self,
        histories: GuessedHistories,
        draws: Draws,
        noise: Tensor,
        clean: Tensor,
        condition: Condition,
        reference: Tensor,
        past: Tensor | None,
    ) -> Tensor:
        """Motion (B, T, D) with the denoiser's guesses in the windows that have a history, the truth in the others."""
        times = self.draw_guess_times(histories, draws, clean)
        count = int(draws.of_rows(histories.chosen).sum())  # on the host, which waits for nothing
        chosen = draws.of_rows(lambda rows: histories.chosen(rows, clean.device))
        rows = chosen.int().argsort(descending=True, stable=True)[:count]
        if not count:
            return clean

        def those(x: Tensor) -> Tensor:
            return x if count == len(x) else x[rows]

        known = None if past is None else those(past)
        given = those(noise), those(clean), those(times)
        guessed = self.guessed(*given, condition.map(those), those(reference), known)
        return guessed if count == len(clean) else clean.index_copy(0, rows, guessed.to(clean.dtype))

    @torch.no_grad()
    def guessed(
        self,
        noise: Tensor,
        clean: Tensor,
        flow_time: Tensor,
        condition: Condition,
        reference: Tensor,
        past: Tensor | None = None,
    ) -> Tensor:
        """What the denoiser takes for the clean motion (B, T, D) behind windows at `flow_time` (B, T)."""
        noisy = interpolate(noise, clean, flow_time)
        velocity = self.denoiser(noisy, flow_time, condition, reference, past)
        return noisy + (1 - flow_time)[..., None].to(noisy.dtype) * velocity

    def _borders(self, histories: Histories, clean: Tensor, draws: Draws) -> Tensor:
        borders = draws.of_rows(lambda rows: histories.borders(rows, clean.shape[1], draws.generator))
        return borders.to(clean.device)

    def draw_flow_times(self, draws: Draws, clean: Tensor) -> Tensor:
        """(B, T) for motion (B, T, D)."""
        options: dict[str, Any] = {"generator": draws.generator, "device": clean.device}
        return draws.of_rows(lambda rows: self.flow_times(rows, clean.shape[1], **options))

    def draw_guess_times(self, histories: GuessedHistories, draws: Draws, clean: Tensor) -> Tensor:
        """(B, T), which guesses for motion (B, T, D) are made from."""
        options: dict[str, Any] = {"generator": draws.generator}
        return draws.of_rows(lambda rows: histories.flow_times(rows, clean.shape[1], **options)).to(clean.device)

    def past(self, clean: Tensor) -> Tensor | None:
        """Motion (B, T, D) that every block sees before it; None: the noisy frames of the window itself."""
        return clean if self.flow_times.levels == "each" else None

    def ends(self, batch: DyadBatch, draws: Draws) -> tuple[Tensor, Tensor]:
        """Both ends of the paths in the denoiser's space: fresh noise for every window, and true motion."""
        clean = self.denoiser.motion_space.to_model(batch.avatar_motion)
        return draws.normal(clean.shape, like=clean), clean

    def training_step(self, batch: DyadBatch, batch_idx: int) -> Tensor:
        """One training step; logs a loss for every case of dropped signals."""
        return self.denoising_loss(batch, self.next_draws(len(batch.valid)))

    def cut(self, batch: DyadBatch, draws: Draws) -> DyadBatch:
        """Cut windows to the frames that this step trains on, equally many on all ranks."""
        frames = self.flow_times.frames(batch.valid.shape[1], draws.deciding)
        return batch if frames == batch.valid.shape[1] else batch.first(frames)

    def training_progress(self) -> float:
        """Progress for schedules: 0 at the trainer's first step, 1 at its last."""
        return self.trainer.global_step / max(1, self.trainer.max_steps - 1)

    def denoising_loss(self, batch: DyadBatch, draws: Draws) -> Tensor:
        """L_DF with the current drop probabilities."""
        batch = self.cut(batch, draws)
        dropped = draw_drops(self.dropout, batch, draws, self.training_progress())
        losses, _, valid = self.velocity_losses(batch, draws, dropped)
        loss = valid_mean(losses, valid)
        if self.log_step(loss):
            for name, case in dropped.cases().items():
                frames = valid & case
                mean = valid_mean(losses, frames).where(frames.any(), torch.nan)
                self.log(f"train/loss_by_case/{name}", mean, occasional=True)
        return loss

    def validation_step(self, batch: DyadBatch, batch_idx: int) -> None:
        """Loss with all signals, without the user, and by noise level, with the same draws at every validation."""
        if len(batch.valid) == 0:  # this rank's share of the last batch
            return
        draws = validation_draws(self, self.seed + 1, batch_idx, len(batch.valid))
        batch = self.cut(batch, draws)
        for name, dropout in (("loss", ConditionDropout.never()), ("loss_no_user", _NO_USER)):
            dropped = draw_drops(dropout, batch, draws)
            losses, flow_time, valid = self.velocity_losses(batch, draws, dropped)
            self.validation.add(name, valid_mean(losses, valid), valid.sum())
            if name == "loss":
                for low in (0.0, 0.25, 0.5, 0.75):
                    level = valid & (flow_time >= low) & (flow_time < low + 0.25)
                    self.validation.add(f"loss_by_flow_time/{low:.2f}", valid_mean(losses, level), level.sum())

    def configure_optimizers(self) -> Any:
        """Optimiser and schedule of the denoiser."""
        return self.optimization(p for p in self.denoiser.parameters() if p.requires_grad)


_NO_USER = ConditionDropout(0, 0, 0, 0, user=1.0)


def compile_denoiser(denoiser: MotionDenoiser, **how: Any) -> None:
    """Compile the denoiser, and the parts also called separately: blocks in a roll-out, and the condition."""
    for part in (denoiser, denoiser.audio_projection, denoiser.condition_encoder, *denoiser.blocks):
        part.compile(**how)


def conditioned(denoiser: MotionDenoiser, batch: DyadBatch) -> tuple[Condition, Tensor]:
    """Condition and reference of a batch in the denoiser's space, without drops."""
    condition = denoiser.condition(batch.avatar_audio, batch.user_audio, batch.user_motion)
    return condition, denoiser.motion_space.to_model(batch.reference)


def draw_drops(dropout: ConditionDropout, batch: DyadBatch, draws: Draws, progress: float = 1.0) -> Dropped:
    """Draw the dropped signals of a batch at `progress` (0 … 1) of training. A user who is not there is dropped."""
    frames = batch.valid.shape[1]
    dropped = draws.of_rows(lambda rows: dropout(rows, frames, generator=draws.generator, progress=progress))
    return dropped if batch.has_user is None else dropped.without_user(~batch.has_user)


class DistillModule(DenoiserModule):
    """Distillation: `DenoiserModule` on the pairs of noise and motion of a guided teacher (`af teacher`).

    The student learns straight paths between these pairs (rectified flow's reflow, arXiv 2209.03003): its velocity at
    the noise already points to the teacher's motion, so one or two steps suffice. It trains on blocks as in generation:
    earlier blocks are clean, the current one is at the flow times of its few steps. Give `flow_times` the distribution
    `af.forcing.noise.Steps` of the student's steps and a `clean_probability`, or levels "each"; roll the student out with
    `Guidance.conditional()`.
    """

    @property
    def sampling(self) -> Mapping[str, Any]:
        """The student's own steps, from its flow times, without guidance."""
        steps = self.flow_times.distribution
        return {**ONE_PASS, "steps": steps.count if isinstance(steps, Steps) else 1}

    def draw_guess_times(self, histories: GuessedHistories, draws: Draws, clean: Tensor) -> Tensor:
        """The flow times of the student's steps: its guesses are what it generates."""
        return self.draw_flow_times(draws, clean)

    def ends(self, batch: DyadBatch, draws: Draws) -> tuple[Tensor, Tensor]:
        """The teacher's noise and motion. Raises UserError for batches without them."""
        generated = self.generated(batch)
        assert batch.noise is not None
        return batch.noise, generated
