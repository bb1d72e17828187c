"""Where a loader's time goes, and what more workers bring."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from af.data.bench import rate
from af.data.dataset import PlanDataset
from af.data.index import Index
from af.data.loader import training_loader
from af.data.pairs import PairDataset
from af.data.plan import PairPlan, WindowPlan
from af.data.shards import ShardReader
from af.data.stores import Location
from af.data.windows import WindowDataset
from af.errors import UserError


class TimedReader(ShardReader):
    """Counts the bytes that are read and the seconds it takes."""

    def __init__(self, folder: Location | str | Index) -> None:
        super().__init__(folder)
        self.bytes, self.seconds = 0, 0.0

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "bytes": 0, "seconds": 0.0}

    def read_bytes(self, i: int, field: str, start: int = 0, length: int | None = None) -> bytes:
        """As `ShardReader.read_bytes`."""
        begun = time.perf_counter()
        data = super().read_bytes(i, field, start, length)
        self.seconds += time.perf_counter() - begun
        self.bytes += len(data)
        return data

    def read_rows(self, i: int, field: str, start: int, stop: int) -> np.ndarray:
        """As `ShardReader.read_rows`."""
        before = self.seconds
        begun = time.perf_counter()
        rows = super().read_rows(i, field, start, stop)
        self.seconds = before + time.perf_counter() - begun  # its header is read by read_bytes
        self.bytes += rows.nbytes
        return rows


@dataclass(frozen=True)
class LoaderSpeed:
    """One kind of samples: what one takes of the disk, the shares of a process's time, and the speed by workers.

    `read`: system calls and headers; `decode`: pictures from H.264, or rows to tensors and checks; `collate`: batches.
    `by_workers` has samples_per_s and bytes_per_s (of the shards) for each number of workers (0: the training process).
    """

    bytes_per_sample: float
    read: float
    decode: float
    collate: float
    by_workers: list[dict[str, float]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)


def loader_speeds(
    folder: Location | str,
    *,
    workers: Sequence[int] = (0, 1, 2),
    batch_size: int = 32,
    window_frames: int = 50,
    seconds: float = 2.0,
) -> dict[str, LoaderSpeed]:
    """Speeds of `windows` (shards with latents) and `pairs` (with videos, decoded from the nearest key frame each time).

    Raises `UserError` when the folder holds neither.
    """
    reader = TimedReader(folder)
    fields = set.intersection(*(set(s.members) for s in reader.index.samples))
    datasets: dict[str, PlanDataset] = {}
    if {"a.motion.npy", "a.audio.npy"} <= fields:
        plan = WindowPlan(reader.index, frames=window_frames)
        datasets["windows"] = WindowDataset(reader, plan, frames=window_frames)
    if "a.mp4" in fields:
        datasets["pairs"] = PairDataset(reader, PairPlan(reader.index), cache_bytes=0, uint8=True)
    if not datasets:
        raise UserError(f"{reader.index.folder}: neither latents nor videos to measure")
    return {name: _speed(data, reader, workers, batch_size, seconds) for name, data in datasets.items()}


def _speed(
    data: PlanDataset, reader: TimedReader, workers: Sequence[int], batch_size: int, seconds: float
) -> LoaderSpeed:
    assert data.plan is not None
    data[data.plan.item(0)]  # files open
    reader.bytes, reader.seconds = 0, 0.0
    items = batches = 0.0
    count = 0
    begun = time.perf_counter()
    while time.perf_counter() - begun < seconds:
        first = time.perf_counter()
        samples = [data[data.plan.item(count + n)] for n in range(batch_size)]
        second = time.perf_counter()
        data.collate(samples)
        items, batches, count = items + second - first, batches + time.perf_counter() - second, count + batch_size
    per_sample, reading, total = reader.bytes / count, reader.seconds, items + batches
    measured = []
    for number in workers:
        loader = training_loader(data, batch_size, workers=number)
        speed = rate(loader, batch_size, seconds)
        measured.append({"workers": number, "samples_per_s": speed, "bytes_per_s": speed * per_sample})
    return LoaderSpeed(per_sample, reading / total, (items - reading) / total, batches / total, measured)
