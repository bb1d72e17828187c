"""Reading plans: the endless, deterministic order of training, and validation with each item once.

A plan maps a position (the number of samples taken by all ranks since the start) to an item that says exactly what to
read. Positions [k*L, (k+1)*L) are epoch k of a plan of length L. Plans do not depend on ranks or workers, so a run can
continue at any position with any number of either.

Within an epoch the shards are shuffled and divided into groups of `group_shards`, and the items of a group are
shuffled: a reader of remote shards needs one group at a time. Every shuffle and draw is a hash of (seed, epoch, item):
there is no state, no dependence on a library's random generator, and at most a few groups are in memory.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Generic, Literal, TypeVar

import numpy as np
from jaxtyping import Int

from af.data.index import Index
from af.data.schema import ROLES, Spans
from af.errors import UserError

Role = Literal["a", "b"]
_MASK: Final = 2**64 - 1
_SHARDS, _ITEMS, _DRAWS, _FIXED = 1, 2, 3, 4  # purposes: equal numbers have unrelated hashes for different purposes
_GROUPS_KEPT: Final = 4


# ------------------------------------------------------------------------------------------------------------ hashes


Number = TypeVar("Number", int, np.ndarray)


def _scramble(value: Number) -> Number:
    """One step of SplitMix64 (Steele et al. 2014), of integers or uint64 arrays: every input bit moves every output bit."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def mix(*values: int) -> int:
    """A 64-bit hash of integers."""
    state = 0
    for value in values:
        state = _scramble(state ^ _scramble(value & _MASK))
    return state


def mix_array(*prefix: int, last: np.ndarray) -> np.ndarray:
    """`mix(*prefix, n)` for every n of an integer array, as uint64."""
    return _scramble(mix(*prefix) ^ _scramble(last.astype(np.uint64)))


def _below(hashed: int, n: int) -> int:
    """Map a hash to [0, n), uniformly up to n / 2^64."""
    return (hashed * n) >> 64


# ------------------------------------------------------------------------------------------------------------- items


@dataclass(frozen=True)
class PairItem:
    """Two different frames of one person in one sample. `counted` is False for repeats that fill a batch.

    With `others` the reader takes that one of them and `driving` which differs most from `source`.
    """

    position: int
    sample: int
    role: Role
    source: int
    driving: int
    counted: bool = True
    others: tuple[int, ...] = ()


@dataclass(frozen=True)
class WindowItem:
    """Frames [start, start + N) of a sample, with `role` as the avatar and the other person as the user.

    `reference` is the frame used as portrait. `counted` is False for repeats that fill a batch.
    """

    position: int
    sample: int
    role: Role
    start: int
    reference: int
    counted: bool = True


Item = TypeVar("Item", PairItem, WindowItem)


# ------------------------------------------------------------------------------------------------------------- plans


Value = TypeVar("Value")


def kept(cache: dict[Any, Value], key: Any, make: Callable[[], Value], most: int) -> Value:
    """`cache[key]`, made when it is not there; of more than `most` values the oldest goes."""
    if key not in cache:
        cache[key] = make()
        if len(cache) > most:
            del cache[next(iter(cache))]
    return cache[key]


class Plan(Generic[Item]):
    """An endless order of items."""

    seed: int

    def item(self, position: int) -> Item:
        """The item at `position` >= 0."""
        raise NotImplementedError


class EndlessPlan(Plan[Item]):
    """The shuffled order; subclasses define the items of each sample.

    `counts` are items per sample and epoch. Raises `UserError` when there is nothing to plan.
    """

    def __init__(self, index: Index, counts: np.ndarray, *, seed: int, group_shards: int) -> None:
        if group_shards < 1:
            raise ValueError(f"group_shards must be at least 1, got {group_shards}")
        self.index, self.seed, self.group_shards = index, seed, group_shards
        self._first = np.concatenate(([0], np.cumsum(counts)))  # index of each sample's first item, in file order
        if self._first[-1] == 0:
            raise UserError(
                f"{index.folder}: {len(index.samples)} samples, none of which can be used for {type(self).__name__}"
            )
        shard_of = np.array([s.shard for s in index.samples])
        self._shard_items = np.bincount(shard_of, weights=counts, minlength=len(index.shards)).astype(np.int64)
        # samples of a shard are adjacent in the index, so its items are one range
        self._shard_first = np.concatenate(([0], np.cumsum(self._shard_items)))[:-1]
        self._epochs: dict[int, tuple[list[np.ndarray], list[int]]] = {}
        self._groups: dict[tuple[int, int], np.ndarray] = {}

    def __len__(self) -> int:
        """Number of items in an epoch."""
        return int(self._first[-1])

    def item(self, position: int) -> Item:
        """The item at `position` >= 0."""
        epoch, within = divmod(position, len(self))
        groups, starts = kept(self._epochs, epoch, lambda: self._epoch(epoch), 2)
        g = bisect.bisect_right(starts, within) - 1
        numbers = kept(self._groups, (epoch, g), lambda: self._group(epoch, groups[g]), _GROUPS_KEPT)
        number = int(numbers[within - starts[g]])
        sample = int(np.searchsorted(self._first, number, side="right")) - 1
        return self._make(position, sample, number - int(self._first[sample]), mix(self.seed, epoch, _DRAWS, number))

    def _make(self, position: int, sample: int, k: int, hashed: int) -> Item:
        """The k-th item of a sample in an epoch; `hashed` is its random number."""
        raise NotImplementedError

    def _epoch(self, epoch: int) -> tuple[list[np.ndarray], list[int]]:
        """Shards of each group, and the position of each group's first item in the epoch."""
        hashes = mix_array(self.seed, epoch, _SHARDS, last=np.arange(len(self._shard_items)))
        order = np.argsort(hashes, kind="stable")
        order = order[self._shard_items[order] > 0]
        groups = [order[i : i + self.group_shards] for i in range(0, len(order), self.group_shards)]
        sizes = np.cumsum([0] + [int(self._shard_items[g].sum()) for g in groups])
        return groups, [int(n) for n in sizes[:-1]]

    def _group(self, epoch: int, shards: np.ndarray) -> np.ndarray:
        """Shuffled item numbers of a group."""
        numbers = np.concatenate([self._shard_first[s] + np.arange(self._shard_items[s]) for s in np.sort(shards)])
        return numbers[np.argsort(mix_array(self.seed, epoch, _ITEMS, last=numbers), kind="stable")]


class PairPlan(EndlessPlan[PairItem]):
    """Pairs of frames for the autoencoder: per epoch, `pairs_per_person` random pairs of each person in each sample.

    Both frames have a tracked face and differ. People with fewer than two such frames are left out. Each pair has
    `choices` driving frames to choose from.
    """

    def __init__(
        self, index: Index, *, seed: int = 0, pairs_per_person: int = 8, choices: int = 1, group_shards: int = 16
    ) -> None:
        self.pairs_per_person, self.choices = pairs_per_person, choices
        self._people = [[r for r in ROLES if _count(s.valid[r]) >= 2] for s in index.samples]
        counts = np.array([len(people) * pairs_per_person for people in self._people], np.int64)
        super().__init__(index, counts, seed=seed, group_shards=group_shards)

    def _make(self, position: int, sample: int, k: int, hashed: int) -> PairItem:
        role = self._people[sample][k // self.pairs_per_person]
        runs = self.index.samples[sample].valid[role]
        return _pair(position, sample, role, runs, hashed, self.choices)  # type: ignore[arg-type]


class WindowPlan(EndlessPlan[WindowItem]):
    """Windows of `frames` frames for the denoiser, in both role orders.

    Per epoch and role order, a sample of T frames has T // frames windows (at least one). The k-th starts at random in
    the k-th of as many equal stretches: starts are equally likely and cover the clip evenly. Starts are multiples of
    `block` (the block of streaming audio features; 1 otherwise). Samples shorter than `minimum` frames (default: one
    window) are left out; the reader pads those below `frames`. With `weights` (`af.data.events.start_weights`) starts
    are as likely as their weights: stretches have equal weight, and a role order of a sample has windows in proportion
    to its mean weight (at least one).
    """

    def __init__(
        self,
        index: Index,
        *,
        frames: int = 50,
        block: int = 1,
        seed: int = 0,
        minimum: int | None = None,
        group_shards: int = 16,
        weights: Sequence[Mapping[str, np.ndarray]] | None = None,
    ) -> None:
        if frames < 1 or block < 1:
            raise ValueError(f"frames and block must be positive, got {frames} and {block}")
        self.frames, self.block = frames, block
        self._windows = window_counts(index, frames, minimum)
        self._weight_sums: list[dict[str, np.ndarray]] | None = None
        if weights is not None:
            self._weight_sums = [{role: np.cumsum(w[role]) for role in ROLES} for w in weights]
            means = np.array([[w[role].mean() for role in ROLES] for w in weights])
            overall = (means * self._windows).sum() / max(1, self._windows.sum())
            balanced = np.maximum(1, np.rint(self._windows * means / overall)).astype(np.int64)
            self._windows = np.where(self._windows > 0, balanced, 0)
        super().__init__(index, self._windows.sum(1), seed=seed, group_shards=group_shards)

    def _make(self, position: int, sample: int, k: int, hashed: int) -> WindowItem:
        first = int(self._windows[sample][0])
        number, k = (0, k) if k < first else (1, k - first)
        role, windows = ROLES[number], int(self._windows[sample][number])
        sums = None if self._weight_sums is None else self._weight_sums[sample][role]
        entry, sizes = self.index.samples[sample], (self.frames, self.block)
        start, reference = random_window(entry.frames, entry.valid[role], (k, windows), *sizes, hashed, sums)
        return WindowItem(position, sample, role, start, reference)  # type: ignore[arg-type]


def window_counts(index: Index, frames: int, minimum: int | None = None) -> Int[np.ndarray, "samples roles"]:
    """Number of windows of `frames` frames per epoch, for each sample and role of the avatar; 0 for samples below
    `minimum` frames (default: one window).
    """
    least = frames if minimum is None else minimum
    counts = [
        [max(1, s.frames // frames) * (s.frames >= least and role in s.avatars) for role in ROLES]
        for s in index.samples
    ]
    return np.array(counts, np.int64).reshape(-1, len(ROLES))


def random_window(
    total: int,
    tracked: Spans,
    turn: tuple[int, int],
    frames: int,
    block: int,
    hashed: int,
    weight_sums: np.ndarray | None = None,
) -> tuple[int, int]:
    """(start, reference frame) of window k of n, `turn` = (k, n), in a sample of `total` frames: random within the k-th
    of n equal stretches of all starts (or of their weights). `hashed` is the window's random number.
    """
    k, windows = turn
    end = max(0, total - frames) // block + 1 if weight_sums is None else int(weight_sums[-1])
    place = ((k << 64) + mix(hashed, 0)) * end // (windows << 64)  # a uniform random number, rounded down
    start = block * (place if weight_sums is None else int(np.searchsorted(weight_sums, place, side="right")))
    return start, _reference(tracked, total, start, frames, mix(hashed, 1))


def fixed_windows(index: Index, *, frames: int = 50, block: int = 1, minimum: int | None = None) -> list[WindowItem]:
    """Adjacent windows from each sample's start, in both role orders, for validation.

    Starts are multiples of both `frames` and `block`. The remainder at a sample's end is left out, and so are samples
    below `minimum` frames (default: one window); a sample shorter than a window has one, which the reader pads.
    """
    stride = -(-frames // block) * block
    items: list[WindowItem] = []
    for n, sample in enumerate(index.samples):
        if sample.frames < (frames if minimum is None else minimum):
            continue
        for role in sample.avatars:
            for start in range(0, max(1, sample.frames - frames + 1), stride):
                hashed = mix(_FIXED, n, ROLES.index(role), start)
                reference = _reference(sample.valid[role], sample.frames, start, frames, hashed)
                items.append(WindowItem(len(items), n, role, start, reference))  # type: ignore[arg-type]
    return items


def fixed_pairs(index: Index, *, pairs_per_person: int = 2, seed: int = 0) -> list[PairItem]:
    """Fixed random pairs for validation, `pairs_per_person` for each person with two tracked frames."""
    items: list[PairItem] = []
    for n, sample in enumerate(index.samples):
        for role in ROLES:
            if _count(sample.valid[role]) < 2:
                continue
            for k in range(pairs_per_person):
                hashed = mix(seed, _FIXED, n, ROLES.index(role), k)
                items.append(_pair(len(items), n, role, sample.valid[role], hashed))  # type: ignore[arg-type]
    return items


def _count(runs: Spans) -> int:
    return sum(stop - start for start, stop in runs)


def _nth(runs: Spans, n: int) -> int:
    """The n-th frame of the runs."""
    for start, stop in runs:
        if n < stop - start:
            return start + n
        n -= stop - start
    raise IndexError(n)


def _pair(position: int, sample: int, role: Role, runs: Spans, hashed: int, choices: int = 1) -> PairItem:
    count = _count(runs)
    source = _below(mix(hashed, 0), count)
    drawn = [_below(mix(hashed, n), count - 1) for n in range(1, choices + 1)]
    driving, *others = (_nth(runs, n + (n >= source)) for n in drawn)
    return PairItem(position, sample, role, _nth(runs, source), driving, others=tuple(others))


def _reference(runs: Spans, total: int, start: int, frames: int, hashed: int) -> int:
    """A random tracked frame outside [start, start + frames), else within it, else any frame."""
    stop = start + frames
    outside = tuple(
        (low, high)
        for first, last in runs
        for low, high in ((first, min(last, start)), (max(first, stop), last))
        if low < high
    )
    chosen = outside or runs or ((0, total),)
    return _nth(chosen, _below(hashed, _count(chosen)))


# ---------------------------------------------------------------------------------------------------------- batches


class PlanBatchSampler(Generic[Item]):
    """Batches for one rank from an endless plan, as a DataLoader's `batch_sampler`.

    Global batch g has the positions [start + g*G, start + (g+1)*G), G = batch_size * world; rank r takes its slice in
    order. `start` is the number of samples taken before by all ranks: a run stopped after n steps continues with start
    = n * G, for any number of ranks or workers. Every iteration begins at `start`.
    """

    def __init__(self, plan: Plan[Item], batch_size: int, *, rank: int = 0, world: int = 1, start: int = 0) -> None:
        if batch_size < 1 or not 0 <= rank < world or start < 0:
            raise ValueError(f"batch_size {batch_size}, rank {rank} of {world}, start {start}")
        self.plan: Plan[Item] = plan
        self.batch_size, self.rank, self.world, self.start = batch_size, rank, world, start

    def __iter__(self) -> Iterator[list[Item]]:
        first = self.start + self.rank * self.batch_size
        while True:
            yield [self.plan.item(first + n) for n in range(self.batch_size)]
            first += self.batch_size * self.world


class OnceBatchSampler(Generic[Item]):
    """Every item exactly once over all ranks, in equally many, equally large batches, so no rank hangs.

    Batches are filled up with repeated items, marked `counted=False`.
    """

    def __init__(self, items: Sequence[Item], batch_size: int, *, rank: int = 0, world: int = 1) -> None:
        if not items:
            raise UserError("nothing to validate on: the split has no usable sample")
        if batch_size < 1 or not 0 <= rank < world:
            raise ValueError(f"batch_size {batch_size}, rank {rank} of {world}")
        self.items: Sequence[Item] = items
        self.batch_size, self.rank, self.world = batch_size, rank, world

    def __len__(self) -> int:
        return -(-len(self.items) // (self.batch_size * self.world))

    def __iter__(self) -> Iterator[list[Item]]:
        for b in range(len(self)):
            first = (b * self.world + self.rank) * self.batch_size
            yield [self._at(first + n) for n in range(self.batch_size)]

    def _at(self, n: int) -> Item:
        if n < len(self.items):
            return self.items[n]
        return replace(self.items[n % len(self.items)], counted=False)
