"""Loaders around the datasets: endless training batches in the order of a plan, validation that sees each item once."""

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
    """A fork server for workers: forked ones and threads of torch do not go together.

    It starts with both signals blocked, as its workers do until they handle them: a signal to all processes would end it,
    and a worker without the server that made it takes its parent for dead.
    """
    resource_tracker.ensure_running()  # would unblock them
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return multiprocessing.get_context("forkserver")


def _outlast_signals(worker: int) -> None:
    """A signal that a terminal or a cluster sends to all processes must not take the data away from the step that is to
    be finished. A worker whose parent is gone ends by itself; this one ends a minute after the signal in any case.
    """
    for number in _SIGNALS:
        signal.signal(number, lambda *_: signal.alarm(60))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    end_with_parent()  # torch's own watch is on the fork server, which lives as long as its workers do


def make_loader(dataset: Dataset, workers: int, seed: int, **options: Any) -> DataLoader:
    """A DataLoader with this project's workers. `options` go to it."""
    if workers > 0:
        more = {"prefetch_factor": 4, "persistent_workers": True, "worker_init_fn": _outlast_signals}
        options = {**more, **options}
    # an own generator: the DataLoader would draw its workers' seed from the global one, and shift all draws after it
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
    """Endless batches of this rank from `dataset.plan`, from position `start` (samples taken by all ranks so far).

    The order does not depend on `workers`. `options` go to the DataLoader (pin_memory, multiprocessing_context, ...).
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
    """Every item once over all ranks, as `Counted` batches, equally many on each rank."""
    batches = OnceBatchSampler(items, batch_size, rank=rank, world=world)
    return make_loader(dataset, workers, 0, batch_sampler=batches, collate_fn=dataset.collate_counted, **options)
