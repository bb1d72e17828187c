"""Data loaders: endless training batches in the order of a plan, and validation batches with each item once."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Sequence
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import BaseContext
from typing import Any, Final

import torch
from torch.utils.data import DataLoader, Dataset

from af.data.dataset import PlanDataset
from af.data.parts import end_with_parent
from af.data.plan import OnceBatchSampler, PlanBatchSampler

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
