"""Stage one: the motion autoencoder on pairs of frames (method §2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Adam

from af.errors import UserError
from af.images import image_array
from af.losses.adversarial import AdversarialLoss
from af.losses.reconstruction import kl_to_standard_normal, weighted_l1
from af.metrics.likeness import decibels
from af.models.autoencoder import AutoencoderOutput, MotionAutoencoder
from af.models.progressive import start_as_copy, start_from
from af.pipeline.encode import require_videos
from af.training.callbacks import tensorboard
from af.training.images import add_image
from af.training.schedules import MakeOptimizer, MakeScheduler, constant, optimization
from af.training.stage import Stage
from af.types import PairBatch
from af.values import require_number

GRID_ROWS = 8


class VaeModule(Stage):
    """Train a `MotionAutoencoder` on `PairBatch`es; with a `discriminator` also against it.

    `loss` is called like `ReconstructionLoss`; `adversarial` is the loss with the discriminator. `both_ways` means that
    the second half of every batch is the first with source and driving exchanged (`PairData`), so each image is encoded
    once. `start` is the model folder of an earlier stage, of the same or half the size, whose weights are loaded;
    `copy_first` starts an untrained autoencoder as a copying machine (`start_as_copy`). In the first `guide_steps`
    steps nothing is decoded: the encoder learns the face parameters alone (`loss.guidance`), at a fraction of the cost.
    Without a discriminator Lightning steps the optimiser, and the Trainer accumulates and clips. With one, this module
    steps both optimisers: `accumulate` batches per step, gradients clipped to `gradient_clip` (None: no clipping).
    `trainer.global_step` counts the autoencoder's steps in both cases.

    `optimizer`, `discriminator_optimizer` and `scheduler` (for both) are partial: they still need parameters and
    optimiser. Raises ValueError for a weighted term without its network, and for options without effect.
    """

    def __init__(
        self,
        autoencoder: MotionAutoencoder,
        *,
        loss: Callable[..., tuple[Tensor, dict[str, Tensor]]],
        adversarial: AdversarialLoss | None = None,
        discriminator: nn.Module | None = None,
        optimizer: MakeOptimizer = Adam,
        scheduler: MakeScheduler = constant,
        discriminator_optimizer: MakeOptimizer = Adam,
        accumulate: int = 1,
        gradient_clip: float | None = None,
        both_ways: bool = False,
        start: str | None = None,
        copy_first: bool = False,
        guide_steps: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(autoencoder, optimizer, scheduler, seed)
        optimization(autoencoder.parameters(), discriminator_optimizer, scheduler)  # fail early on wrong values
        require_number("accumulate", accumulate, least=1, whole=True)
        require_number("gradient_clip", gradient_clip, above=0, optional=True)
        if (adversarial is None) != (discriminator is None):
            raise ValueError("`adversarial` and `discriminator` go together: give both or neither")
        if discriminator is None and (accumulate != 1 or gradient_clip is not None):
            raise ValueError(
                "accumulate and gradient_clip are for two optimisers; without a discriminator set "
                "trainer.accumulate_grad_batches and trainer.gradient_clip_val"
            )
        require_number("guide_steps", guide_steps, least=0, whole=True)
        if guide_steps and discriminator is not None:
            raise ValueError("guide_steps is for training without a discriminator")
        if guide_steps and not getattr(loss, "guide", 0):
            raise ValueError("guide_steps needs loss.guide and loss.face")
        if copy_first:
            start_as_copy(autoencoder)
        if start is not None:
            start_from(autoencoder, start)
        self.guide_steps = guide_steps
        self.autoencoder, self.loss = autoencoder, loss
        self.adversarial, self.discriminator = adversarial, discriminator
        self.discriminator_optimizer = discriminator_optimizer
        self.accumulate, self.gradient_clip = accumulate, gradient_clip
        self.both_ways = both_ways
        self.automatic_optimization = discriminator is None
        if discriminator is not None:
            # Two backward passes per step would confuse DDP: it reduces the autoencoder's gradients, and
            # `_share_discriminator_gradients` the discriminator's.
            names = [f"discriminator.{name}" for name, _ in discriminator.named_parameters()]
            self._ddp_params_and_buffers_to_ignore = names

    def setup(self, stage: str) -> None:
        """Raise UserError when the data's frames and the autoencoder differ in size."""
        data = getattr(self.trainer, "datamodule", None)
        for index in (getattr(data, "train_index", None), getattr(data, "validation_index", None)):
            if data is not None and index is not None:
                require_videos(index, self.autoencoder, data.image_size)

    def reconstruction_loss(self, output: AutoencoderOutput, batch: PairBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The non-adversarial part of the objective at the current step, and its unweighted terms."""
        return self.loss(
            output.image,
            batch,
            coefficients=output.coefficients,
            log_variance=output.log_variance,
            step=self.global_step,
        )

    def compile_networks(self, **how: Any) -> None:
        """Compile the networks of a step; arguments as for `torch.compile`."""
        for network in (self.autoencoder, self.discriminator, self.loss):
            if isinstance(network, nn.Module):
                network.compile(**how)

    def training_step(self, batch: PairBatch, batch_idx: int) -> Tensor | None:
        """Train on one batch; with a discriminator both networks are updated, on the same reconstruction."""
        noise = self._noise(batch)
        if self.global_step < self.guide_steps:
            loss = self._guide_alone(batch)
            self._log_training(loss, {"guide": loss})
            return loss
        # both ways: the driving frames are the reordered sources
        output = self.autoencoder(batch.source, None if self.both_ways else batch.driving, noise)
        loss, terms = self.reconstruction_loss(output, batch)
        if self.automatic_optimization:
            self._log_training(loss, terms)
            return loss
        self._adversarial_step(loss, terms, output, batch)
        return None

    def _guide_alone(self, batch: PairBatch) -> Tensor:
        coefficients, _ = self.autoencoder.posterior(batch.driving, check=False)
        # DDP waits for the gradients of all parameters
        rest = sum(p.sum() for name, p in self.autoencoder.named_parameters() if not name.startswith("encoder."))
        return self.loss.guidance(coefficients, batch) + 0.0 * rest  # type: ignore[attr-defined]

    def _noise(self, batch: PairBatch) -> Tensor | None:
        """Noise for samples of the posterior; the two directions of a pair have their own."""
        ways = 1 + self.both_ways
        pairs = len(batch.driving) // ways
        draws = self.next_draws(pairs, None if self.automatic_optimization else self.accumulate)
        if not self.autoencoder.variational:
            return None
        shape = torch.Size((pairs, ways, self.autoencoder.directions_count))
        return draws.normal(shape, like=batch.driving).transpose(0, 1).flatten(0, 1)

    def _adversarial_step(
        self, loss: Tensor, terms: dict[str, Tensor], output: AutoencoderOutput, batch: PairBatch
    ) -> None:
        assert self.discriminator is not None and self.adversarial is not None  # noqa: PT018
        step = self.global_step
        playing = self.adversarial.plays(step)
        last = self.batches_seen % self.accumulate == 0
        if playing:
            self.discriminator.requires_grad_(False)
            share, own = self.adversarial.generator(self.discriminator(output.image))
            self.discriminator.requires_grad_(True)
            loss, terms = loss + share, terms | own
        self.manual_backward(loss / self.accumulate)
        if playing:
            judged, own = self.adversarial.discriminator(self.discriminator, batch.driving, output.image.detach(), step)
            terms |= own
            (judged / self.accumulate).backward()
        self._log_training(loss, terms)
        if not last:
            return
        optimizer = self.optimizers()[0]  # type: ignore[index]
        if playing:
            self._share_discriminator_gradients()
        optimizer.step()  # clipped in on_before_optimizer_step, after callbacks have seen all gradients
        optimizer.zero_grad()
        if playing:
            # The plain optimiser, since Lightning would count its steps as training steps.
            second = self.optimizers(use_pl_optimizer=False)[1]  # type: ignore[index]
            second.step()
            second.zero_grad()
        for scheduler in self.lr_schedulers():  # type: ignore[union-attr]
            scheduler.step()

    def _share_discriminator_gradients(self) -> None:
        assert self.discriminator is not None
        if dist.is_initialized() and dist.get_world_size() > 1:
            for parameter in self.discriminator.parameters():
                if parameter.grad is not None:
                    dist.all_reduce(parameter.grad)
                    parameter.grad /= dist.get_world_size()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip the gradients of both optimisers (the Trainer clips only for a single one)."""
        if self.discriminator is not None and self.gradient_clip is not None:
            for player in (self.autoencoder, self.discriminator):
                torch.nn.utils.clip_grad_norm_(player.parameters(), self.gradient_clip)

    def on_fit_start(self) -> None:
        """Refuse options that two optimisers do not support; copy rank 0's discriminator to all ranks."""
        if self.discriminator is None:
            return
        if str(self.trainer.precision) == "16-mixed":
            raise UserError("trainer.precision=16-mixed does not work with a discriminator; use bf16-mixed or 32-true")
        if dist.is_initialized() and dist.get_world_size() > 1:
            for parameter in self.discriminator.parameters():
                dist.broadcast(parameter.data, 0)

    def validation_step(self, batch: PairBatch, batch_idx: int) -> None:
        """Errors of the reconstruction from the posterior's mean, and of the unchanged source."""
        size = len(batch.driving)
        if size == 0:  # this rank's share of the last batch
            return
        output = self.autoencoder(batch.source, batch.driving)
        image = output.image.clamp(-1, 1)
        squared = (image - batch.driving).square()
        self.validation.add("l1", weighted_l1(image, batch.driving), size)
        self.validation.add("squared_error", squared.mean(), size)
        self.validation.add("squared_error_copy", (batch.source - batch.driving).square().mean(), size)
        if batch.weight is not None:
            emphasis = (batch.weight - batch.weight.amin()).expand_as(squared)
            total = emphasis.sum()
            self.validation.add("squared_error_emphasis", (squared * emphasis).sum() / total, total)
        if output.log_variance is not None:
            self.validation.add("kl", kl_to_standard_normal(output.coefficients, output.log_variance), size)
        writer = tensorboard(self.trainer)
        if batch_idx == 0 and writer is not None:
            rows = torch.cat((batch.source, batch.driving, image), -1)[:GRID_ROWS]  # one pair per row
            grid = image_array(torch.cat(list(rows), 1)[None])[0]
            add_image(writer, "source_driving_reconstruction", grid, self.global_step)

    def on_validation_epoch_end(self) -> None:
        """Log PSNR over all pixels, pairs and ranks; `psnr/copy` is that of the unchanged source."""
        for name, value in self.validation.means().items():
            if name.startswith("squared_error"):  # absent if no batch had weights
                tag = name.replace("squared_error", "psnr").replace("_", "/")
                self.log(tag, decibels(torch.tensor(value)), prog_bar=tag == "psnr", sync_dist=True)
            else:
                self.log(f"val/{name}", value, sync_dist=True)

    def configure_optimizers(self) -> Any:
        """One optimiser for the autoencoder (and the loss) and, if present, one for the discriminator."""
        of_loss = self.loss.parameters() if isinstance(self.loss, nn.Module) else ()
        players = [p for p in (*self.autoencoder.parameters(), *of_loss) if p.requires_grad]
        found = [self.optimization(players)]
        if self.discriminator is not None:
            second = self.optimization(self.discriminator.parameters(), self.discriminator_optimizer)
            found.append(second)
        return [each["optimizer"] for each in found], [each["lr_scheduler"] for each in found]

    def _log_training(self, loss: Tensor, terms: dict[str, Tensor]) -> None:
        if "r1" in terms:  # not in every step: the newest value when logs are written
            self.log("train/r1", terms.pop("r1").detach())
        if self.log_step(loss):
            self.log_dict({f"train/{name}": value.detach() for name, value in terms.items()})
