"""Exponential moving average of the trainable weights of one part of a LightningModule, as a callback.

It averages only parameters of that part with `requires_grad` (no frozen reference or feature network), starting from
their first values. Validation and export use the average; it is part of the checkpoint.
"""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from af.values import require_number


class Ema(Callback):
    """Keep `average ← d·average + (1 − d)·weights`, with d = min(decay, (1 + n)/(10 + n)) after n updates.

    `part` names the attribute of the LightningModule whose weights are averaged ("denoiser", "autoencoder").
    """

    acts = True  # the export depends on it

    def __init__(self, part: str, decay: float = 0.999) -> None:
        require_number("decay", decay, least=0, below=1)
        self.part = part
        self.decay = decay
        self.updates = 0
        self.average: dict[str, Tensor] = {}
        self._weights: dict[str, Tensor] | None = None
        self._last_step = -1

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start from the initial weights, or continue with the checkpoint's average."""
        trainable = self._trainable(pl_module)
        if not self.average:
            self.average = {name: p.detach().clone() for name, p in trainable.items()}
        else:
            self.average = {name: value.to(trainable[name].device) for name, value in self.average.items()}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Get the first step, only known now: a continued run may start between accumulated batches."""
        self._last_step = trainer.global_step

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Update once per optimiser step, not per accumulated batch."""
        if trainer.global_step == self._last_step:
            return
        self._last_step = trainer.global_step
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        names = list(self.average)
        trainable = self._trainable(pl_module)
        torch._foreach_lerp_([self.average[n] for n in names], [trainable[n] for n in names], 1 - decay)

    def swap_in(self, pl_module: LightningModule) -> None:
        """Put the averaged weights into the module, keeping the trained ones."""
        if self._weights is None and self.average:
            self._weights = {name: p.detach().clone() for name, p in self._trainable(pl_module).items()}
            self._copy(self.average, pl_module)

    def swap_out(self, pl_module: LightningModule) -> None:
        """Put the trained weights back."""
        if self._weights is not None:
            self._copy(self._weights, pl_module)
            self._weights = None

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Use the average for validation."""
        self.swap_in(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Continue training with the trained weights."""
        self.swap_out(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Restore the trained weights after a stop inside validation."""
        self.swap_out(pl_module)

    def state_dict(self) -> dict[str, Any]:
        """The average and the number of updates."""
        return {"average": self.average, "updates": self.updates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state."""
        self.average, self.updates = dict(state_dict["average"]), int(state_dict["updates"])

    def _trainable(self, module: LightningModule) -> dict[str, Tensor]:
        return {name: p for name, p in getattr(module, self.part).named_parameters() if p.requires_grad}

    @torch.no_grad()
    def _copy(self, values: dict[str, Tensor], module: LightningModule) -> None:
        for name, parameter in self._trainable(module).items():
            parameter.copy_(values[name])
