from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from af.data.index import Index, SampleEntry, ShardEntry
from af.data.plan import (
    OnceBatchSampler,
    PairItem,
    PairPlan,
    PlanBatchSampler,
    WindowPlan,
    fixed_pairs,
    fixed_windows,
    mix,
    mix_array,
)
from af.errors import UserError


def make_index(lengths: list[list[int]], valid: dict | None = None) -> Index:
    samples, shards = [], []
    for shard, frames in enumerate(lengths):
        shards.append(ShardEntry(f"{shard:06d}.tar", 0, "", len(frames), sum(frames), 0))
        for length in frames:
            runs = valid or dict.fromkeys("ab", ((0, length),))
            samples.append(SampleEntry(f"{len(samples):06d}", shard, length, ("p", "q"), "s", runs, {}))
    return Index(Path("toy/train"), "train", tuple(shards), tuple(samples), 32, {})


shard_lengths = st.lists(st.lists(st.integers(1, 300), min_size=0, max_size=4), min_size=1, max_size=8).filter(
    lambda lengths: any(n >= 20 for shard in lengths for n in shard)
)
seeds = st.integers(0, 2**40)


@settings(deadline=None)
@given(st.lists(st.integers(0, 2**64 - 1), max_size=3), st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=9))
def test_the_two_hashes_agree(prefix, values):
    many = mix_array(*prefix, last=np.array(values, np.int64))
    assert many.tolist() == [mix(*prefix, value) for value in values]


def test_the_order_is_fixed_for_good():
    """A change of these numbers changes the data order of every run that is continued: do not."""
    plan = WindowPlan(make_index([[120, 80], [200]]), frames=20, block=5, seed=7, group_shards=1)
    first = [(i.sample, i.role, i.start, i.reference) for i in (plan.item(n) for n in (0, 1, 2, len(plan)))]
    assert first == ORDER


ORDER = [(0, "b", 60, 58), (0, "a", 5, 70), (0, "b", 15, 119), (2, "b", 135, 59)]


# ------------------------------------------------------------------------------------------------------ an epoch


@settings(max_examples=60, deadline=None)
@given(shard_lengths, seeds, st.integers(1, 4), st.integers(0, 3))
def test_an_epoch_has_every_pair_place_once(lengths, seed, group, epoch):
    index = make_index(lengths)
    plan = PairPlan(index, seed=seed, pairs_per_person=3, group_shards=group)
    items = [plan.item(epoch * len(plan) + n) for n in range(len(plan))]
    counted = Counter((i.sample, i.role) for i in items)
    assert counted == {(n, r): 3 for n, s in enumerate(index.samples) for r in "ab" if s.frames >= 2}
    for i in items:
        total = index.samples[i.sample].frames
        assert 0 <= i.source < total
        assert 0 <= i.driving < total
        assert i.source != i.driving
        assert i.position // len(plan) == epoch


@settings(max_examples=60, deadline=None)
@given(shard_lengths, seeds, st.integers(1, 40), st.integers(1, 12), st.integers(1, 4))
def test_windows_lie_inside_on_block_borders(lengths, seed, frames, block, group):
    index = make_index(lengths)
    plan = WindowPlan(index, frames=frames, block=block, seed=seed, minimum=1, group_shards=group)
    counted: Counter = Counter()
    for n in range(len(plan)):
        i = plan.item(n)
        total = index.samples[i.sample].frames
        counted[i.sample, i.role] += 1
        assert i.start % block == 0
        assert 0 <= i.start <= max(0, total - frames)
        assert 0 <= i.reference < total
        if total > 2 * frames:
            assert not i.start <= i.reference < i.start + frames
    assert counted == {(n, r): max(1, s.frames // frames) for n, s in enumerate(index.samples) for r in "ab"}


def test_short_samples_are_left_out_unless_asked_for():
    index = make_index([[10, 60]])
    assert {WindowPlan(index, frames=50).item(n).sample for n in range(2)} == {1}
    assert len(WindowPlan(index, frames=50, minimum=10)) == 4
    with pytest.raises(UserError, match="none of which"):
        WindowPlan(index, frames=61)
    assert {i.sample for i in fixed_windows(index, frames=50)} == {1}
    assert {i.sample for i in fixed_windows(index, frames=50, minimum=5)} == {0, 1}


def test_every_start_is_equally_likely():
    plan = WindowPlan(make_index([[87] * 5]), frames=20, block=3, seed=1)
    starts = Counter(plan.item(n).start for n in range(len(plan) * 150))
    expected = len(plan) * 150 / 23
    assert set(starts) == set(range(0, 68, 3))
    assert all(abs(n - expected) < 5 * expected**0.5 for n in starts.values())


def test_weights_of_one_change_nothing():
    index = make_index([[120, 80], [200]])
    plans = [
        WindowPlan(
            index, frames=20, block=5, seed=7,
            weights=weights and [dict.fromkeys("ab", np.full((s.frames - 20) // 5 + 1, 3)) for s in index.samples],
        )
        for weights in (None, True)
    ]  # fmt: skip
    assert [plans[0].item(n) for n in range(50)] == [plans[1].item(n) for n in range(50)]


def test_starts_are_as_likely_as_they_weigh():
    """Two clips, the second with all its weight in one role and two starts."""
    index = make_index([[60], [60]])
    even = np.ones(9, np.int64)
    peaked = np.array([1, 1, 1, 20, 20, 1, 1, 1, 1])
    plan = WindowPlan(index, frames=20, block=5, seed=1, weights=[{"a": even, "b": even}, {"a": even, "b": peaked}])
    epochs = 600
    items = [plan.item(n) for n in range(len(plan) * epochs)]
    by_role = Counter((i.sample, i.role) for i in items)
    assert by_role[1, "b"] > 2.5 * by_role[0, "a"] > 0  # mean weight 5.2 against 1
    starts = Counter(i.start for i in items if (i.sample, i.role) == (1, "b"))
    expected = by_role[1, "b"] * peaked / peaked.sum()
    assert all(abs(starts[5 * n] - e) < 5 * e**0.5 + 1 for n, e in enumerate(expected))


def test_frames_without_a_face_are_not_used():
    valid = {"a": ((3, 5), (10, 12)), "b": ((7, 8),)}
    index = make_index([[100, 100]], valid)
    plan = PairPlan(index, pairs_per_person=50)
    items = [plan.item(n) for n in range(len(plan))]
    assert {i.role for i in items} == {"a"}
    assert {n for i in items for n in (i.source, i.driving)} == {3, 4, 10, 11}
    windows = WindowPlan(index, frames=20, seed=3)
    for n in range(4 * len(windows)):
        i = windows.item(n)
        allowed = {3, 4, 10, 11} if i.role == "a" else {7}
        outside = {f for f in allowed if not i.start <= f < i.start + 20}
        assert i.reference in (outside or allowed)
    assert {i.role for i in fixed_pairs(index)} == {"a"}


def test_epochs_and_seeds_differ_and_repeat():
    index = make_index([[200, 300], [100, 400], [250]])
    orders = {}
    for seed in (0, 1):
        plan = WindowPlan(index, seed=seed)
        for epoch in (0, 1, 5):
            items = tuple(plan.item(epoch * len(plan) + n) for n in range(len(plan)))
            orders[seed, epoch] = tuple((i.sample, i.role, i.start) for i in items)
    assert len(set(orders.values())) == 6
    again = WindowPlan(index, seed=1)
    late = 5 * len(again)  # asked for out of order, in a fresh plan
    assert tuple((i.sample, i.role, i.start) for i in map(again.item, range(late, late + len(again)))) == orders[1, 5]


def test_a_group_needs_only_its_shards():
    index = make_index([[100, 200]] * 9)
    plan = PairPlan(index, seed=4, pairs_per_person=2, group_shards=3)
    shards = [index.samples[plan.item(n).sample].shard for n in range(len(plan))]
    third = len(plan) // 3
    groups = [set(shards[n * third : (n + 1) * third]) for n in range(3)]
    assert [len(g) for g in groups] == [3, 3, 3]
    assert set.union(*groups) == set(range(9))
    assert shards != sorted(shards)


# ------------------------------------------------------------------------------------------------ ranks, restarts


@settings(max_examples=40, deadline=None)
@given(shard_lengths, seeds, st.integers(1, 3), st.integers(1, 5), st.integers(0, 50))
def test_ranks_are_disjoint_complete_and_in_order(lengths, seed, world, batch, start):
    plan = PairPlan(make_index(lengths), seed=seed, pairs_per_person=2)
    steps = 4
    ranks = [list(islice(PlanBatchSampler(plan, batch, rank=r, world=world, start=start), steps)) for r in range(world)]
    joined = [item for step in zip(*ranks, strict=True) for rank_batch in step for item in rank_batch]
    assert joined == [plan.item(start + n) for n in range(steps * batch * world)]


@settings(max_examples=40, deadline=None)
@given(seeds, st.integers(0, 7), st.sampled_from([(1, 12), (2, 6), (3, 4)]), st.sampled_from([(1, 12), (2, 6), (3, 4)]))
def test_going_on_with_other_ranks_is_the_uninterrupted_order(seed, stopped_after, before, after):
    """The same global batch of 12, whatever the number of ranks before and after the stop."""
    plan = WindowPlan(make_index([[300, 100], [150]]), frames=30, seed=seed)

    def run(world: int, batch: int, start: int, steps: int):
        samplers = [iter(PlanBatchSampler(plan, batch, rank=r, world=world, start=start)) for r in range(world)]
        return [[item for s in samplers for item in next(s)] for _ in range(steps)]

    resumed = run(*before, 0, stopped_after) + run(*after, 12 * stopped_after, 10 - stopped_after)
    assert resumed == run(1, 12, 0, 10)


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 7), st.integers(1, 4))
def test_validation_sees_each_item_once(items, batch, world):
    given = [PairItem(n, n, "a", 0, 1) for n in range(items)]
    ranks = [list(OnceBatchSampler(given, batch, rank=r, world=world)) for r in range(world)]
    assert len({len(r) for r in ranks}) == 1
    assert {len(b) for r in ranks for b in r} == {batch}
    seen = [i.sample for r in ranks for b in r for i in b if i.counted]
    assert sorted(seen) == list(range(items))
    in_order = [i.sample for step in zip(*ranks, strict=True) for b in step for i in b if i.counted]
    assert in_order == sorted(in_order)
    assert all(len(OnceBatchSampler(given, batch, rank=r, world=world)) == len(ranks[0]) for r in range(world))


def test_nothing_to_validate_on_is_said():
    with pytest.raises(UserError, match="nothing to validate"):
        OnceBatchSampler([], 4)


def test_fixed_items_cover_and_repeat():
    index = make_index([[130, 50], [99]])
    windows = fixed_windows(index, frames=50, block=10)
    assert [(w.sample, w.role, w.start) for w in windows] == [
        (0, "a", 0),
        (0, "a", 50),
        (0, "b", 0),
        (0, "b", 50),
        (1, "a", 0),
        (1, "b", 0),
        (2, "a", 0),
        (2, "b", 0),
    ]
    assert windows == fixed_windows(index, frames=50, block=10)
    assert [w.start for w in fixed_windows(index, frames=45, block=10) if w.sample == 0 and w.role == "a"] == [0, 50]
    pairs = fixed_pairs(index, pairs_per_person=3)
    assert Counter((p.sample, p.role) for p in pairs) == {(n, r): 3 for n in range(3) for r in "ab"}
    assert [p.position for p in pairs] == list(range(18))
