"""Reading shards: what a sample takes of the disk, where the time of one process goes, and what more workers bring.

  python -m benchmarks.loader                                          synthetic shards made on the spot
  python -m benchmarks.loader --data FOLDER --workers 0,4,8            a split folder or URL of your own

`windows` are what the denoiser reads, `pairs` what the autoencoder reads, decoded from the nearest key frame each time,
and `pairs_cached` the same from the cache of decoded frames, once it is filled. Shards without latents or without videos
leave theirs out. `readers` compares the planned reader with the stream: windows a second from the folder, and through one
epoch of the same shards from a web server on this machine, with an empty cache and no workers at the start;
`stream_over_planned` are their ratios. The stream reads past what it does not need, such as videos.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from af.cli.kinds import number
from af.data.index import Index
from af.data.loader import PlanDataset, training_loader
from af.data.pairs import PairDataset
from af.data.plan import PairPlan, WindowPlan
from af.data.planned import PlannedReader, WindowSource
from af.data.shards import ShardReader
from af.data.stores import Location, RemotePath, StoreSettings, location
from af.data.stream import StreamReader
from af.data.windows import WindowDataset
from af.errors import UserError
from benchmarks.common import encoded_example, options, report


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

    `read`: system calls and headers; `decode`: images from H.264, or rows to tensors and checks; `collate`: batches.
    `by_workers` has samples_per_s and bytes_per_s (of the shards) for each number of workers (0: the training process).
    """

    bytes_per_sample: float
    read: float
    decode: float
    collate: float
    by_workers: list[dict[str, float]] = field(default_factory=list)


def rate(batches: Iterable[Any], samples: int, seconds: float) -> float:
    """Samples a second over about `seconds`, after one batch to warm up."""
    iterator = iter(batches)
    next(iterator)
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        next(iterator)
        count += samples
    return count / (time.perf_counter() - start)


def loader_speeds(
    folder: Location | str,
    *,
    workers: Sequence[int] = (0, 1, 2),
    batch_size: int = 32,
    window_frames: int = 50,
    seconds: float = 2.0,
) -> dict[str, LoaderSpeed]:
    """Speeds by kind of samples: `windows`, `pairs`, `pairs_cached`; each number of workers takes about `seconds`.

    Raises `UserError` when the folder holds neither latents nor videos.
    """
    reader = TimedReader(folder)
    fields = set.intersection(*(set(s.members) for s in reader.index.samples))
    if not {"a.motion.npy", "a.audio.npy"} <= fields and "a.mp4" not in fields:
        raise UserError(f"{reader.index.folder}: neither latents nor videos to measure")
    speeds: dict[str, LoaderSpeed] = {}
    with tempfile.TemporaryDirectory(prefix="af-bench-") as temporary:

        def measure(name: str, data: PlanDataset) -> None:
            speeds[name] = _speed(data, reader, workers, batch_size, seconds)

        if {"a.motion.npy", "a.audio.npy"} <= fields:
            plan = WindowPlan(reader.index, frames=window_frames)
            measure("windows", WindowDataset(reader, plan, frames=window_frames))
        if "a.mp4" in fields:
            pairs = PairPlan(reader.index)
            measure("pairs", PairDataset(reader, pairs, cache_bytes=0, uint8=True))
            cached = PairDataset(reader, pairs, cache_folder=temporary, uint8=True)
            if cached.cache is not None:  # small enough
                for _ in itertools.islice(training_loader(cached, batch_size), -(-len(pairs) // batch_size)):
                    pass  # one pass fills it
                measure("pairs_cached", cached)
    reader.close()
    return speeds


def reader_speeds(
    folder: Location | str,
    *,
    workers: Sequence[int] = (0, 1, 2),
    batch_size: int = 32,
    window_frames: int = 50,
    seconds: float = 2.0,
) -> dict[str, dict[str, Any]]:
    """Windows a second by place (`disk` or the URL's, and `store` for a folder), reader and number of workers."""
    places: dict[str, Callable[[], Index]] = {"given": lambda: Index.load(folder)}
    with contextlib.ExitStack() as stack:
        if isinstance(location(folder), Path):
            url, cache = (
                stack.enter_context(_served(Path(str(folder)))),
                stack.enter_context(tempfile.TemporaryDirectory()),
            )
            fresh = itertools.count()

            def remote() -> Index:  # with an empty cache each time
                return Index.load(RemotePath(url, StoreSettings(Path(cache) / str(next(fresh)), 2**40)))

            places = {"disk": places["given"], "store": remote}
        readers: dict[str, PlannedReader | StreamReader] = {"planned": PlannedReader(), "stream": StreamReader()}
        found: dict[str, dict[str, Any]] = {}
        for place, load in places.items():
            speeds: dict[str, Any] = {name: [] for name in readers}
            for (name, reader), number in itertools.product(readers.items(), workers):
                source = WindowSource([index := load()], [1.0], window_frames)
                loader = reader.loader(source, batch_size, workers=number)
                epoch = len(WindowPlan(index, frames=window_frames))
                if place == "store":
                    begun, batches = time.perf_counter(), -(-epoch // batch_size)
                    for _ in itertools.islice(loader, batches):
                        pass
                    speeds[name].append(batches * batch_size / (time.perf_counter() - begun))
                else:
                    speeds[name].append(rate(loader, batch_size, seconds))
            ratios = [s / p for s, p in zip(speeds["stream"], speeds["planned"], strict=True)]
            found[place] = {"workers": list(workers), **speeds, "stream_over_planned": ratios}
    return found


@contextlib.contextmanager
def _served(folder: Path) -> Iterator[str]:
    """A web server for a folder on the loopback, in a process of its own; its URL."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", str(folder)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(200):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


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
    for processes in workers:
        loader = training_loader(data, batch_size, workers=processes)
        speed = rate(loader, batch_size, seconds)
        measured.append({"workers": processes, "samples_per_s": speed, "bytes_per_s": speed * per_sample})
    return LoaderSpeed(per_sample, reading / total, (items - reading) / total, batches / total, measured)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = options("loader", __doc__, accelerator=False)
    parser.add_argument("--data", type=location, help="split folder or URL of encoded shards with videos")
    parser.add_argument("--workers", type=_numbers, default="0,1,2", metavar="N,N,...", help="default 0,1,2")
    parser.add_argument(
        "--seconds", type=number(float, above=0), default=2.0, help="how long each form is measured (default 2)"
    )

    def measured(args: argparse.Namespace) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            data = args.data or encoded_example(Path(folder)) / "train"
            how = {"workers": args.workers, "seconds": args.seconds}
            found = {name: asdict(speed) for name, speed in loader_speeds(data, **how).items()}
            return {**found, "readers": reader_speeds(data, **how)} if "windows" in found else found

    return report(parser, measured, arguments)


def _numbers(text: str) -> list[int]:
    if not all(part.strip().isdecimal() for part in text.split(",")):
        raise argparse.ArgumentTypeError(f"{text}: expected numbers of workers such as 0,1,2")
    return [int(part) for part in text.split(",")]


if __name__ == "__main__":
    sys.exit(main())
