"""How fast shards are read on this machine."""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Iterable
from typing import Any

from af.data import codecs
from af.data.loader import training_loader
from af.data.pairs import PairDataset
from af.data.plan import PairPlan, WindowPlan
from af.data.shards import ShardReader
from af.data.stores import Location
from af.data.windows import WindowDataset


def rate(batches: Iterable[Any], samples: int, seconds: float) -> float:
    """Samples a second over about `seconds`, after one batch to warm up."""
    iterator = iter(batches)
    next(iterator)
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        next(iterator)
        count += samples
    return count / (time.perf_counter() - start)


def bench(
    folder: Location | str,
    *,
    workers: int = 0,
    batch_size: int = 32,
    window_frames: int = 50,
    seconds: float = 2.0,
    cache_bytes: int = 2 * 2**30,
) -> dict[str, float]:
    """Reading speeds of a split folder, by name (numbers only, ready for JSON).

    ``decode_frames_per_s``: whole clips, one thread. ``pairs_per_s``: from the cache of decoded frames, warm, ``_cold``
    while it fills, ``_uncached`` decoding each pair from its key frame. ``window_frames_per_s``: frames of denoiser
    windows. ``bytes_per_window``: what a window reads. What the shards do not hold is left out.
    """
    reader = ShardReader(folder)
    fields = set.intersection(*(set(s.members) for s in reader.index.samples))
    out: dict[str, float] = {"workers": workers, "samples": len(reader), "frames": reader.index.frames}
    if "a.mp4" in fields:
        out["image_size"] = reader.index.image_size or 0
        start, frames = time.perf_counter(), 0
        for i in itertools.cycle(range(len(reader))):
            frames += len(codecs.decode_video(reader.read_bytes(i, "a.mp4")))
            if time.perf_counter() - start > seconds:
                break
        out["decode_frames_per_s"] = frames / (time.perf_counter() - start)
        plan = PairPlan(reader.index)
        uncached = PairDataset(reader, plan, cache_bytes=0)
        loader = training_loader(uncached, batch_size, workers=workers)
        out["pairs_per_s_uncached"] = rate(loader, batch_size, seconds)
        with tempfile.TemporaryDirectory(prefix="af-bench-") as temporary:
            cached = PairDataset(reader, plan, cache_bytes=cache_bytes, cache_folder=temporary)
            if cached.cache is not None:
                loader = training_loader(cached, batch_size, workers=workers)
                start, count = time.perf_counter(), 0
                for _ in itertools.islice(loader, -(-len(plan) // batch_size)):
                    count += batch_size
                out["pairs_per_s_cold"] = count / (time.perf_counter() - start)
                out["pairs_per_s"] = rate(loader, batch_size, seconds)
    if {"a.motion.npy", "a.audio.npy"} <= fields:
        windows = WindowDataset(reader, WindowPlan(reader.index, frames=window_frames), frames=window_frames)
        loader = training_loader(windows, batch_size, workers=workers)
        out["window_frames_per_s"] = window_frames * rate(loader, batch_size, seconds)
        members = reader.index.samples[0].members
        row = (
            sum(members[f"{r}.{p}.npy"][1] for r in "ab" for p in ("motion", "audio")) / reader.index.samples[0].frames
        )
        out["bytes_per_window"] = row * window_frames
    reader.close()
    return {name: round(float(value), 1) for name, value in out.items()}
