"""Gradient norms per part, and a stop with saved batches when gradients are not finite."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from af.errors import UserError
from af.files import atomic_path
from af.training.callbacks import writes_logs
from af.training.validation import of_all_ranks


class _Question:
    """Whether the gradients of a step are finite, computed on their device, with data about the step if not."""

    def __init__(self, norms: dict[str, Tensor], **about: Any) -> None:
        self.norms, self.about = norms, about
        self._finite, self._copied = torch.stack(list(norms.values())).isfinite().all(), None
        if self._finite.device.type != "cpu":
            device = torch.get_device_module(self._finite.device.type)
            self._finite = self._finite.to("cpu", non_blocking=True)
            self._copied = device.Event()
            self._copied.record()

    def answer(self) -> bool:
        """The result, waiting for it if necessary (not for an earlier step)."""
        if self._copied is not None:
            self._copied.synchronize()
        return bool(self._finite)


class Gradients(Callback):
    """Logs `grad_norm` (of the trained `part`) and `grad_norm/<child>`; before clipping, of all ranks together.

    For a non-finite gradient, the step's batches are saved in the run folder (`nonfinite/`, tensors only) on the ranks
    with a non-finite loss (or else on all), and the run stops with a UserError; the first `skip` such steps are left
    out instead. All ranks have the same gradients and so decide alike.

    On an accelerator the result is read a step later, before the weights change again, so the host does not wait;
    spoilt weights are neither saved nor validated. Only with `skip` does the host wait for it.
    """

    def __init__(self, part: str, skip: int = 0) -> None:
        if skip < 0:
            raise UserError(f"gradients.skip: {skip}; it must not be negative")
        self.part, self.skip = part, skip
        self.skipped = 0
        self._batches: list[Any] = []
        self._losses: list[Tensor] = []
        self._open: _Question | None = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Keep the batches of the current step."""
        self._batches.append(batch)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Keep the losses of the current step."""
        self._losses.append(loss.detach())

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Check the gradients of all ranks before clipping."""
        groups = dict(children_gradients(getattr(pl_module, self.part)))
        others = {n: c for n, c in pl_module.named_children() if n != self.part and _trains(c)}
        groups |= {name: _gradients(child) for name, child in others.items()}
        norms = {name: norm(gradients) for name, gradients in groups.items() if gradients}
        if norms and writes_logs(pl_module):
            own = [value for name, value in norms.items() if name not in others]
            pl_module.log("grad_norm", torch.linalg.vector_norm(torch.stack(own)))
            pl_module.log_dict({f"grad_norm/{name}": value for name, value in norms.items()})
        self._settle(trainer, pl_module)
        if not norms or str(trainer.precision) == "16-mixed":
            return  # the scaler of 16-mixed provokes infinities and skips them
        seen = int(pl_module.batches_seen)  # type: ignore[arg-type]
        about = {"step": trainer.global_step, "batches_seen": seen, "batches": self._batches, "losses": self._losses}
        self._open = _Question(norms, **about)
        if pl_module.device.type == "cpu" or self.skipped < self.skip:
            self._settle(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do not validate spoilt weights."""
        self._settle(trainer, pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Do not save spoilt weights."""
        self._settle(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do not export spoilt weights."""
        self._settle(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Forget the finished step."""
        accumulate = getattr(pl_module, "accumulate", 1) * trainer.accumulate_grad_batches
        if pl_module.batches_seen % accumulate == 0:  # type: ignore[operator]
            self._batches, self._losses = [], []

    def state_dict(self) -> dict[str, Any]:
        """The number of steps left out."""
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the number of steps left out."""
        self.skipped = int(state_dict["skipped"])

    def _settle(self, trainer: Trainer, module: LightningModule) -> None:
        """Read the result for a step, and stop or leave out the step if its gradient is not finite."""
        question, self._open = self._open, None
        if question is None or question.answer():
            return
        bad = [name for name, value in question.norms.items() if not value.isfinite()]
        folder = Path(trainer.default_root_dir) / "nonfinite"
        step, guilty = question.about["step"], self._guilty(trainer, question)
        if trainer.global_rank in guilty:
            self._save(folder / f"step{step:08d}_rank{trainer.global_rank}.pt", trainer, module, question)
        which = ", ".join(map(str, guilty))
        where = f"step {step}: the gradient is not finite in {', '.join(bad)}"
        if self.skipped >= self.skip:
            raise UserError(
                f"{where}; the batch of rank {which} is saved in {folder}. Look at it, then start the same command "
                f"again with another learning rate, or with callbacks.gradients.skip={self.skip + 1} to leave out such "
                "steps; the run continues from its last checkpoint"
            )
        self.skipped += 1
        for parameter in module.parameters():  # optimisers skip parameters without gradients
            parameter.grad = None
        module.log("skipped_steps", float(self.skipped))
        if trainer.global_rank == 0:
            print(f"{where} (rank {which}); left out, {self.skipped} of {self.skip}", flush=True)

    def _guilty(self, trainer: Trainer, question: _Question) -> list[int]:
        """The ranks with a non-finite loss, or all."""
        mine = not all(bool(loss.isfinite().all()) for loss in question.about["losses"])
        guilty = [rank for rank, found in enumerate(of_all_ranks(mine)) if found]
        return guilty or list(range(trainer.world_size))

    def _save(self, file: Path, trainer: Trainer, module: LightningModule, question: _Question) -> None:
        content = {
            **question.about,
            "rank": trainer.global_rank,
            "ranks": trainer.world_size,
            "seed": module.seed,
            "losses": [loss.float().cpu() for loss in question.about["losses"]],
            "gradient_norms": {name: float(value) for name, value in question.norms.items()},
            "batches": [
                {name: value.cpu() for name, value in vars(batch).items() if isinstance(value, Tensor)}
                for batch in question.about["batches"]
            ],
        }
        with atomic_path(file) as temporary:
            torch.save(content, temporary)


def children_gradients(part: nn.Module) -> Iterator[tuple[str, list[Tensor]]]:
    """(child's name, its gradients) of a network; its own weights form the group `self`."""
    for name, child in part.named_children():
        if _trains(child):
            yield name, _gradients(child)
    own = [p.grad for p in part.parameters(recurse=False) if p.grad is not None]
    if own:
        yield "self", own


def norm(gradients: list[Tensor]) -> Tensor:
    """Joint L2 norm."""
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)).float())


def _gradients(module: nn.Module) -> list[Tensor]:
    return [p.grad for p in module.parameters() if p.grad is not None]


def _trains(module: nn.Module) -> bool:
    return any(p.requires_grad for p in module.parameters())
