"""What all stages of training share: optimiser and schedule, random numbers, validation means, logs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from af.training.callbacks import writes_logs
from af.training.randomness import Draws, training_draws
from af.training.schedules import MakeOptimizer, MakeScheduler, optimization
from af.training.validation import RankMeans


class Stage(LightningModule):
    """Train `network` with an `optimizer` and a `scheduler`, both partial: they still need parameters and optimiser.

    `batches_seen` counts this rank's training batches. With `seed` it determines the next noise and data, so it is in
    the checkpoint.
    """

    def __init__(self, network: nn.Module, optimizer: MakeOptimizer, scheduler: MakeScheduler, seed: int) -> None:
        super().__init__()
        optimization(network.parameters(), optimizer, scheduler)  # fail early on wrong values
        self.optimizer, self.scheduler, self.seed = optimizer, scheduler, seed
        self.batches_seen = 0
        self.validation = RankMeans()
        self._unread: dict[str, tuple[Tensor, dict[str, Any]]] = {}

    def optimization(self, parameters: Iterable[Tensor], optimizer: MakeOptimizer | None = None) -> dict[str, Any]:
        """An optimiser (by default the stage's) with the schedule, fused where the device can."""
        # Lightning clips no gradients of fused optimisers in mixed precision
        clips = bool(self.trainer.gradient_clip_val) and "mixed" in str(self.trainer.precision)
        return optimization(parameters, optimizer or self.optimizer, self.scheduler, fuse=not clips)

    def compile_networks(self, **how: Any) -> None:
        """Compile what a step calls (`torch.compile`'s options)."""
        raise NotImplementedError

    def next_draws(self, rows: int, accumulate: int | None = None) -> Draws:
        """Random numbers for the next batch, of `rows` rows, which is counted. `accumulate`: batches per step (None: the
        Trainer's).
        """
        accumulate = accumulate or self.trainer.accumulate_grad_batches
        draws = training_draws(self, self.seed, self.batches_seen, rows, accumulate)
        self.batches_seen += 1
        return draws

    def log_step(self, loss: Tensor) -> bool:
        """Log the loss and the learning rate of a step whose logs are written; returns whether they are."""
        if not writes_logs(self):
            return False
        self.log("train/loss", loss.detach(), prog_bar=True, sync_dist=True)
        self.log("lr", self.trainer.optimizers[0].param_groups[0]["lr"])
        return True

    def log(self, name: str, value: Any, **options: Any) -> None:  # type: ignore[override]
        """Lightning's `log`, which would read every value by itself: those of a training step are kept on the device
        until its end, when all are read at once. With `occasional` NaN means that there is no value.
        """
        if self.trainer.training and isinstance(value, Tensor):
            self._unread[name] = value.detach(), options
        elif self.trainer.training and not options.get("sync_dist"):
            super().log(name, torch.tensor(float(value)), **options)  # a number would be copied to the device
        else:
            super().log(name, value, **options)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Read what this step has logged, if logs are written: the only time that the host waits for the device."""
        unfinished = self.batches_seen % self.trainer.accumulate_grad_batches
        if not self._unread or unfinished or not writes_logs(self):
            return
        unread, self._unread = self._unread, {}
        values = []
        for value, options in unread.values():
            shared = options.pop("sync_dist", False)
            values.append((self.trainer.strategy.reduce(value, reduce_op="mean") if shared else value).float())
        for (name, (_, options)), value in zip(unread.items(), torch.stack(values).cpu(), strict=True):
            if not (options.pop("occasional", False) and value.isnan()):
                super().log(name, value, **options)

    def on_validation_epoch_start(self) -> None:
        """Reset the means."""
        self.validation.reset()

    def on_validation_epoch_end(self) -> None:
        """Log means over all ranks."""
        for name, value in self.validation.means().items():
            self.log(f"val/{name}", value, sync_dist=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the number of batches seen, which determines the next noise and data."""
        checkpoint["batches_seen"] = self.batches_seen

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the number of batches seen."""
        self.batches_seen = checkpoint["batches_seen"]
