"""Datasets that read the items of a plan, what happens to corrupt samples, and the loaders around them."""

from __future__ import annotations

import multiprocessing
import signal
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import BaseContext
from typing import Any, Final, Generic, TypeVar

import torch
from jaxtyping import Bool
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from af.data.checks import ShardError
from af.data.parts import end_with_parent
from af.data.plan import Item, OnceBatchSampler, Plan, PlanBatchSampler
from af.data.shards import ShardReader
from af.errors import UserError

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


def worker_context() -> BaseContext:
    """A fork server for workers, since forking is not safe with torch's threads.

    It starts with both signals blocked, and so do its workers until they handle them: a signal to all processes would
    end it, and a worker without its server takes its parent for dead.
    """
    resource_tracker.ensure_running()  # this would unblock them
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return multiprocessing.get_context("forkserver")


def _outlast_signals(worker: int) -> None:
    """Keep a worker alive after a signal to all processes (by a terminal or cluster), so the current step can finish.
    The worker ends with its parent, and a minute after the signal in any case.
    """
    for number in _SIGNALS:
        signal.signal(number, lambda *_: signal.alarm(60))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    end_with_parent()  # torch watches the fork server instead, which lives as long as its workers


def make_loader(dataset: Dataset, workers: int, seed: int, **options: Any) -> DataLoader:
    """A DataLoader with this project's workers; `options` are passed on to it."""
    if workers > 0:
        more = {"prefetch_factor": 4, "persistent_workers": True, "worker_init_fn": _outlast_signals}
        options = {**more, **options}
    # its own generator: a seed drawn from the global one would shift all later draws
    generator = torch.Generator().manual_seed(seed)
    return DataLoader(dataset, num_workers=workers, generator=generator, **options)


def training_loader(
    dataset: PlanDataset,
    batch_size: int,
    *,
    rank: int = 0,
    world: int = 1,
    start: int = 0,
    workers: int = 0,
    **options: Any,
) -> DataLoader:
    """Endless batches for this rank from `dataset.plan`, from position `start` (samples taken by all ranks so far).

    The order does not depend on `workers`. `options` (pin_memory, …) are passed on to the DataLoader.
    """
    if dataset.plan is None:
        raise ValueError("a dataset for training needs a plan")
    batches = PlanBatchSampler(dataset.plan, batch_size, rank=rank, world=world, start=start)
    return make_loader(
        dataset, workers, dataset.plan.seed, batch_sampler=batches, collate_fn=dataset.collate, **options
    )


def validation_loader(
    dataset: PlanDataset,
    items: Sequence[Any],
    batch_size: int,
    *,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
    **options: Any,
) -> DataLoader:
    """Every item once over all ranks, in `Counted` batches, equally many on each rank."""
    batches = OnceBatchSampler(items, batch_size, rank=rank, world=world)
    return make_loader(dataset, workers, 0, batch_sampler=batches, collate_fn=dataset.collate_counted, **options)


Batch = TypeVar("Batch")
_MAX_WORKERS: Final = 256


class BadSamples:
    """Counts readable and unreadable samples over all workers, and stops the run above a rate.

    `rate` is the allowed share of bad samples, over at least 1,000 samples (one early bad sample does not stop a run).
    Each worker counts in its own row of a shared tensor.
    """

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self._counts = torch.zeros(_MAX_WORKERS + 1, 2, dtype=torch.int64).share_memory_()
        self._told: set[str] = set()

    @property
    def read(self) -> int:
        """Number of samples read."""
        return int(self._counts[:, 0].sum())

    @property
    def bad(self) -> int:
        """Number of samples skipped."""
        return int(self._counts[:, 1].sum())

    @staticmethod
    def _place() -> int:
        worker = get_worker_info()
        return 0 if worker is None else 1 + worker.id % _MAX_WORKERS

    def good(self, n: int) -> None:
        """Count n readable samples."""
        self._counts[self._place(), 0] += n

    def skip(self, error: Exception, samples: int = 1) -> None:
        """Count bad samples and report the first error; raises `UserError` above the rate."""
        self._counts[self._place(), 1] += samples
        text = str(error)
        if text not in self._told:
            self._told.add(text)
            warnings.warn(f"skipped a corrupt sample: {text}", stacklevel=2)
        bad, total = self.bad, self.bad + self.read
        if bad > self.rate * max(total, 1000):
            some = "\n  ".join(sorted(self._told)[:5])
            raise UserError(
                f"{bad} of {total} samples could not be read, more than the allowed share of {self.rate:.2%}:\n  {some}\n"
                "  check the folder with: af shards validate"
            )


@dataclass(frozen=True)
class Counted(Generic[Batch]):
    """A validation batch and a mask of its samples that count; others fill it up or could not be read."""

    batch: Batch
    counted: Bool[Tensor, " B"]

    def pin_memory(self) -> Counted[Batch]:
        """The batch in page-locked memory (called by the DataLoader)."""
        return Counted(self.batch.pin_memory(), self.counted.pin_memory())  # type: ignore[attr-defined]


class PlanDataset(Dataset, Generic[Item, Batch]):
    """Reads items. With an endless plan, the item at the next position replaces a corrupt sample; without one
    (validation), an empty sample that does not count does.

    Subclasses read one item in `_read`, make an empty one in `_blank`, and stack samples in `collate`.
    """

    def __init__(self, reader: ShardReader, plan: Plan[Item] | None, max_bad_rate: float) -> None:
        self.reader, self.bad = reader, BadSamples(max_bad_rate)
        self.plan: Plan[Item] | None = plan

    def __getitem__(self, item: Item) -> Any:
        sample = self._try(item)
        if sample is not None:
            return sample
        if self.plan is None:
            return self._blank(item)
        position = item.position
        while sample is None:  # ends at the latest when the allowed rate is exceeded
            position += 1
            sample = self._try(self.plan.item(position))
        return sample

    def _try(self, item: Item) -> Any:
        try:
            sample = self._read(item)
        except (ShardError, OSError) as error:
            self.bad.skip(error)
            return None
        self.bad.good(1)
        return sample

    def _read(self, item: Item) -> Any:
        raise NotImplementedError

    def _blank(self, item: Item) -> Any:
        raise NotImplementedError

    def collate(self, samples: Sequence[Any]) -> Batch:
        """Stack samples into a batch."""
        raise NotImplementedError

    def collate_counted(self, samples: Sequence[Any]) -> Counted[Batch]:
        """A batch and the mask of its samples that count."""
        return Counted(self.collate(samples), torch.tensor([s.counted for s in samples]))
