"""Windows streamed from whole shards by webdataset's own pipeline, for sets too large for random access.

Shards come in an endless shuffled order, each shard once per epoch. Slot s of W (a worker of a rank) reads the places
s, s + W, s + 2W, ... of that order: no shard is read twice in an epoch, and no rank waits, since a slot that has
finished its shards of an epoch continues with the next epoch. Windows are cut in order and mixed in a buffer.
"""

from __future__ import annotations

import hashlib
import itertools
import random
import tarfile
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import numpy as np
import webdataset
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from webdataset.tariterators import group_by_keys, tar_file_expander

from af.data import codecs
from af.data.checks import ShardError, check_member
from af.data.index import Index, SampleEntry, read_meta
from af.data.loader import BadSamples, make_loader
from af.data.plan import WindowItem, mix, mix_array, random_window, window_counts
from af.data.planned import WindowSource
from af.data.schema import MUTE, ROLES, ClipMeta
from af.data.shards import open_shard
from af.data.stores import Location, StoreError
from af.data.windows import Window, cut, padded, stacked, window_specs
from af.errors import UserError
from af.specs import FeatureSpec, MotionSpec
from af.types import DyadBatch

_ORDER, _CUT, _BUFFER = 6, 7, 8  # purposes of hashes, as in `af.data.plan`
_SIGNALS: Final = ("motion.npy", "audio.npy")


class ShardOrder:
    """The endless order of a set's shards: place p is in epoch p // (number of shards with windows)."""

    def __init__(self, index: Index, frames: int, seed: int) -> None:
        per_sample = window_counts(index, frames).sum(1)
        owners = np.array([s.shard for s in index.samples], np.int64)
        #: Number of windows in each shard.
        self.windows = np.bincount(owners, weights=per_sample, minlength=len(index.shards)).astype(np.int64)
        self._used, self._seed = np.flatnonzero(self.windows), seed
        if len(self._used) == 0:
            raise UserError(f"{index.folder}: {len(index.samples)} samples, none of {frames} frames or more")
        self._epoch: tuple[int, np.ndarray] = (-1, self._used)

    def __len__(self) -> int:
        """Number of shards in an epoch."""
        return len(self._used)

    def shard(self, place: int) -> tuple[int, int]:
        """(number of the shard, epoch) at a place."""
        epoch, within = divmod(place, len(self))
        if self._epoch[0] != epoch:
            hashes = mix_array(self._seed, epoch, _ORDER, last=self._used)
            self._epoch = (epoch, self._used[np.argsort(hashes, kind="stable")])
        return int(self._epoch[1][within]), epoch

    def reached(self, first: int, taken: Sequence[int]) -> tuple[int, int]:
        """Progress of slots that began at place `first` and took `taken` windows each: (the first place not finished by
        its slot, number of windows taken after it).
        """
        slots, whole, at = len(taken), 0, []
        places: dict[int, int] = {}
        for slot, left in enumerate(taken):
            place = first + slot
            while left >= (size := int(self.windows[self.shard(place)[0]])):
                places[place], left, place = size, left - size, place + slots
            at.append(place)
        frontier = min(at)
        whole = sum(size for place, size in places.items() if place < frontier)
        return frontier, sum(taken) - whole


@dataclass(frozen=True)
class StreamReader:
    """`data/reader=stream`: whole shards in order, windows mixed in a buffer of `buffer` windows in every worker.

    A stopped run continues at the first shard not read to its end. Windows that other workers took from later shards
    are read again, and windows left in buffers are missing from that epoch; `told` counts both.
    """

    buffer: int = 500

    def __post_init__(self) -> None:
        if self.buffer < 1:
            raise UserError(f"data.reader.buffer: {self.buffer}; expected at least 1")

    def loader(
        self,
        source: WindowSource,
        batch_size: int,
        *,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        state: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> DataLoader:
        """Endless batches for this rank. Raises `UserError` for losers, teachers and balance, which need random
        access.
        """
        for name in ("losers", "teacher", "balance"):
            if getattr(source, name):
                raise UserError(f"data.{name} needs single samples of the shards: choose data/reader=planned")
        stream = WindowStream(
            source, self.buffer, batch_size, rank, world, max(1, workers), self._places(source, state)
        )
        return make_loader(stream, workers, source.seed, batch_size=None, **options)

    def state(
        self,
        source: WindowSource,
        before: Mapping[str, Any] | None,
        samples: int,
        batch_size: int,
        slots: tuple[int, int],
    ) -> dict[str, Any]:
        """The state for resuming after `samples` of all ranks, in batches of `batch_size` over `slots` (ranks, workers
        of each); `before` is the initial state of this process. Equal on all ranks.
        """
        world, workers = slots
        batches = (samples - int((before or {}).get("samples", 0))) // batch_size
        taken = [-(-max(0, batches - worker) // workers) * (batch_size // world) for worker in range(workers)] * world
        places, repeated = [], int((before or {}).get("repeated", 0))
        for order, first, share in zip(_orders(source), self._places(source, before), _shares(source), strict=True):
            place, again = order.reached(first, [int(n * share) for n in taken])
            places.append(place)
            repeated += again
        return {"samples": samples, "places": places, "repeated": repeated}

    def told(self, state: Mapping[str, Any]) -> str:
        """A message for a run that continues from `state`."""
        return (
            f"the stream goes on after {state['samples']} windows at the first shard not read to its end; "
            f"{state['repeated']} windows of this run are read twice so far, and up to {self.buffer} that waited in each "
            "worker's buffer are left out of their epoch"
        )

    @staticmethod
    def _places(source: WindowSource, state: Mapping[str, Any] | None) -> list[int]:
        return list(state["places"]) if state else [0] * len(source.indexes)


def _shares(source: WindowSource) -> list[float]:
    return [weight / sum(source.weights) for weight in source.weights]


def _orders(source: WindowSource) -> list[ShardOrder]:
    return [ShardOrder(index, source.frames, source.seed) for index in source.indexes]


class WindowStream(IterableDataset):
    """Batches for one rank; each of its workers is a slot. `places` are the first places in each set's order."""

    def __init__(
        self,
        source: WindowSource,
        buffer: int,
        batch_size: int,
        rank: int,
        world: int,
        workers: int,
        places: Sequence[int],
        max_bad_rate: float = 0.01,
    ) -> None:
        self.source, self.buffer, self.batch_size, self.places = source, buffer, batch_size, list(places)
        self.rank, self.workers, self.slots = rank, workers, world * workers
        self.bad = BadSamples(max_bad_rate)
        self.orders, self._read = _orders(source), Counter[str]()
        self.specs = [window_specs(index) for index in source.indexes]
        self._chosen = [{sample.key for sample in index.samples} for index in source.indexes]
        if few := next((i for i, o in zip(source.indexes, self.orders, strict=True) if len(o) < self.slots), None):
            warnings.warn(
                f"{few.folder}: {len(few.shards)} shards for {self.slots} workers (of all ranks): some share shards; "
                "make smaller shards (af shards reshard), or take fewer workers",
                stacklevel=3,
            )

    def __iter__(self) -> Iterator[DyadBatch]:
        worker = get_worker_info()
        slot = self.rank * self.workers + (0 if worker is None else worker.id)
        sets = [self._set(number, slot) for number in range(len(self.orders))]
        return iter(
            webdataset.DataPipeline(
                partial(_interleaved, [iter(one) for one in sets], _shares(self.source)),
                webdataset.batched(self.batch_size, collation_fn=stacked, partial=False),
            )
        )

    def _set(self, number: int, slot: int) -> webdataset.DataPipeline:
        """Shuffled windows of one set."""
        source = self.source
        generator = random.Random(mix(source.seed, _BUFFER, slot, number, self.places[number]))
        members = {f"{role}.{signal}" for role in ROLES for signal in _SIGNALS} | {"json"}
        if source.listening:
            members |= {f"{role}.flac" for role in ROLES}
        skip = partial(self._skip, source.indexes[number])
        return webdataset.DataPipeline(
            partial(self._shards, number, slot),
            partial(tar_file_expander, handler=skip, select_files=lambda n: n.partition(".")[2] in members),
            partial(group_by_keys, handler=skip),
            partial(self._windows, number),
            webdataset.shuffle(self.buffer, initial=self.buffer // 2, rng=generator),
        )

    def _skip(self, index: Index, error: Exception) -> bool:
        """webdataset's error handler: skip unreadable samples, unless they are too many or the store is away."""
        if isinstance(error, StoreError) or not isinstance(error, (ShardError, OSError, ValueError, tarfile.TarError)):
            raise error
        missing = 1
        if not isinstance(error, ShardError):  # webdataset appends the location to the error's text
            detail, place = str(error.args[0]), str(error.args[-1])
            shard = _place(place)[0]
            error = ShardError(index.path(shard), "", "truncated", f"not a complete tar file ({detail})")
            missing = max(1, index.shards[shard].samples - self._read[place])
        self.bad.skip(error, missing)
        return True

    def _shards(self, number: int, slot: int) -> Iterator[dict[str, Any]]:
        """The open shards of a slot, endlessly."""
        index, order = self.source.indexes[number], self.orders[number]
        for place in itertools.count(self.places[number] + slot, self.slots):
            shard, epoch = order.shard(place)
            try:
                with open_shard(index, shard) as stream:
                    yield {"url": f"{number}/{shard}/{epoch}", "stream": stream}
            except ShardError as error:
                self.bad.skip(error, index.shards[shard].samples)

    def _windows(self, number: int, samples: Iterator[Mapping[str, Any]]) -> Iterator[Window]:
        source, index = self.source, self.source.indexes[number]
        for sample in samples:
            shard, epoch = _place(sample["__url__"])
            self._read[sample["__url__"]] += 1
            if sample["__key__"] not in self._chosen[number]:  # left out of the index by `data.keep`
                continue
            try:
                decoded = _Sample(index.path(shard), sample, self.specs[number], source)
            except ShardError as error:
                self.bad.skip(error)
                continue
            self.bad.good(1)
            yield from decoded.windows(mix(source.seed, _CUT, epoch, shard))


def _place(url: str) -> tuple[int, int]:
    """(shard, epoch) encoded in the pipeline's address of a shard."""
    _, shard, epoch = map(int, url.split("/"))
    return shard, epoch


class _Sample:
    """One sample of a shard, decoded and checked. Raises `ShardError`."""

    def __init__(
        self, shard: Location, members: Mapping[str, bytes], specs: tuple[MotionSpec, FeatureSpec], source: WindowSource
    ) -> None:
        self.shard, self.key, self.source, self.specs = shard, str(members["__key__"]), source, specs
        if "json" not in members:
            raise ShardError(shard, f"{self.key}.json", "half_sample", "the sample has no json")
        meta = read_meta(shard, self.key, members["json"])
        if (meta.motion_spec, meta.audio_spec) != specs:
            raise ShardError(shard, f"{self.key}.json", "mixed_specs", "feature specs differ from the index")
        self.roles = () if meta.separation == MUTE else ROLES[:1] if meta.one_sided else ROLES
        names = [f"{role}.{signal}" for role in self.roles for signal in _SIGNALS]
        self.arrays = {name: codecs.decode_npy(self._bytes(name, members, meta)) for name in names}
        self.listening: dict[str, np.ndarray] = {}
        for role in self.roles if source.listening else ():
            voice = codecs.decode_audio(self._bytes(f"{role}.flac", members, meta))
            self.listening[role] = source.listening(voice, meta.frames)  # type: ignore[misc]
        places = dict.fromkeys(self.arrays, (0, 0))
        assert meta.valid is not None
        self.entry = SampleEntry(self.key, 0, meta.frames, meta.participants, meta.session, meta.valid, places)

    def _bytes(self, field: str, members: Mapping[str, bytes], meta: ClipMeta) -> bytes:
        if field not in members:
            raise ShardError(self.shard, f"{self.key}.{field}", "absent", "no such member")
        check_member(self.shard, f"{self.key}.{field}", field, members[field], meta, deep=False)
        return members[field]

    def windows(self, seed: int) -> Iterator[Window]:
        """As many windows, in both roles, as the planned reader takes per epoch."""
        frames, block, entry = self.source.frames, self.source.block, self.entry
        if entry.frames < frames:
            return
        count, name = entry.frames // frames, int.from_bytes(hashlib.sha256(self.key.encode()).digest()[:8], "little")
        for role in self.roles:
            for k in range(count):
                hashed = mix(seed, name, ROLES.index(role), k)
                start, reference = random_window(entry.frames, entry.valid[role], (k, count), frames, block, hashed)
                item = WindowItem(0, 0, role, start, reference)  # type: ignore[arg-type]
                window = cut(item, entry, frames, self._rows, *self.specs)
                heard = padded(self.listening[role][start : start + frames], frames) if self.listening else None
                yield replace(window, listening=heard)

    def _rows(self, field: str, start: int, stop: int, _: int) -> np.ndarray:
        return self.arrays[field][start:stop].copy()  # a view would keep the whole sample in memory


def _interleaved(sets: Sequence[Iterator[Window]], shares: Sequence[float]) -> Iterator[Window]:
    """Interleave sets such that each has its share of the first n windows, to within one."""
    given = np.zeros(len(sets))
    for n in itertools.count(1):
        owner = int(np.argmax(np.asarray(shares) * n - given))
        given[owner] += 1
        yield next(sets[owner])
