"""Random numbers of a step, equal in resumed and undisturbed runs and for any number of ranks.

They are drawn for all rows of an optimiser step, over all ranks and accumulated batches, and each process takes those
of its own rows. A sample thus gets the same noise wherever it is computed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule

T = TypeVar("T")


@dataclass(frozen=True)
class Draws:
    """A generator equal on all ranks, and the rows of this process: [first, first + rows) of `total`.

    Decisions about the whole step are drawn from `deciding`, a generator on the host, to avoid waiting for a device.
    """

    generator: torch.Generator
    rows: int
    first: int = 0
    total: int | None = None
    host: torch.Generator | None = None

    @property
    def deciding(self) -> torch.Generator:
        """The generator on the host; the rows' generator if that is on the host."""
        return self.generator if self.host is None else self.host

    def of_rows(self, draw: Callable[[int], T]) -> T:
        """The rows of this process from `draw(number of rows)`, a tensor or a dataclass of tensors."""
        total = self.total or self.rows
        return _rows(draw(total), self.first, self.rows, total)

    def normal(self, shape: torch.Size, like: Tensor) -> Tensor:
        """Standard normal numbers of `shape` (rows first) on the device and in the dtype of `like`."""
        options: dict[str, Any] = {"generator": self.generator, "device": like.device, "dtype": like.dtype}
        return self.of_rows(lambda rows: torch.randn(rows, *shape[1:], **options))


def training_draws(module: LightningModule, seed: int, batch: int, rows: int, accumulate: int) -> Draws:
    """Draws for this rank's `batch`-th training batch, of `rows` rows; `accumulate` batches make a step."""
    step, part = divmod(batch, accumulate)
    world = module.trainer.world_size
    first = (part * world + module.global_rank) * rows
    return _draws(module, seed, step, rows, first, accumulate * world * rows)


def validation_draws(module: LightningModule, seed: int, batch: int, rows: int) -> Draws:
    """Draws for the `batch`-th validation batch, of which the last may have fewer rows."""
    share = getattr(getattr(module.trainer, "datamodule", None), "rank_batch_size", rows)
    return _draws(module, seed, batch, rows, module.global_rank * share, module.trainer.world_size * share)


def _draws(module: LightningModule, seed: int, step: int, rows: int, first: int, total: int) -> Draws:
    host = None if module.device.type == "cpu" else step_generator(seed, step)
    return Draws(step_generator(seed, step, module.device), rows, first, total, host)


def step_generator(seed: int, step: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator on `device`, seeded only by (seed, step), independent of global random state."""
    state = np.random.SeedSequence([seed, step, 0]).generate_state(2, np.uint32)
    return torch.Generator(device=device).manual_seed(int(state[0]) << 31 ^ int(state[1]))


def _rows(values: Any, first: int, rows: int, total: int) -> Any:
    if rows == total:
        return values
    if isinstance(values, Tensor):
        return values[first : first + rows]
    return type(values)(**{name: _rows(value, first, rows, total) for name, value in vars(values).items()})
