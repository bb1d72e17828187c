from __future__ import annotations

import dataclasses
import itertools
import shutil
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from af.data.index import Index
from af.data.loader import training_loader, validation_loader
from af.data.mixture import ROUND, MixedPlan, joined, roots
from af.data.plan import PlanBatchSampler, WindowPlan, fixed_windows
from af.data.shards import ShardReader
from af.data.stores import RemotePath
from af.data.validate import validate
from af.data.windows import WindowDataset
from af.errors import UserError
from tests.data.test_plan import make_index
from tests.toy_shards import MOTION, STREAMING, write_split

LENGTHS = ([[90, 40], [60]], [[50], [110]], [[70, 70, 70]])
weights = st.lists(st.floats(0.5, 100), min_size=1, max_size=3)


def mixed(weights, seed: int = 3) -> MixedPlan:
    plans = [WindowPlan(make_index(lengths), frames=20, seed=seed) for lengths in LENGTHS[: len(weights)]]
    return MixedPlan(plans, weights, seed=seed)


def owner(plan: MixedPlan, sample: int) -> tuple[int, int]:
    """(set, sample within it) of a sample of the joined index."""
    for n, part in enumerate(plan.plans):
        if sample < len(part.index.samples):
            return n, sample
        sample -= len(part.index.samples)
    raise AssertionError


@settings(max_examples=10, deadline=None)
@given(weights, st.integers(0, 5), st.integers(0, 2**40))
def test_every_set_has_its_share_and_goes_through_its_own_plan(weights, turn, seed):
    plan = mixed(weights, seed)
    assert sum(plan.shares) == ROUND
    for share, weight in zip(plan.shares, weights, strict=True):
        assert abs(share - ROUND * weight / sum(weights)) <= 1
    first = turn * ROUND
    seen: dict[int, list] = {n: [] for n in range(len(weights))}
    for position in range(first, first + ROUND):
        item = plan.item(position)
        assert item.position == position
        n, sample = owner(plan, item.sample)
        seen[n].append((sample, item.role, item.start, item.reference))
    for n, share in enumerate(plan.shares):
        own = [plan.plans[n].item(turn * share + k) for k in range(share)]
        assert seen[n] == [(i.sample, i.role, i.start, i.reference) for i in own]


def test_shares_hold_over_short_stretches_too():
    plan = mixed([0.7, 0.3])
    counts = Counter(owner(plan, plan.item(p).sample)[0] for p in range(200))
    assert 0.2 < counts[1] / 200 < 0.4


def test_the_order_of_a_mixture_is_fixed_for_good():
    """A change of these numbers changes the data order of every run that is continued: do not."""
    plan = mixed([0.7, 0.3])
    assert [(i.sample, i.role, i.start) for i in map(plan.item, (0, 1, 2, 5000))] == ORDER


ORDER = [(2, "a", 20), (1, "b", 20), (1, "a", 8), (2, "a", 35)]


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 3), st.integers(1, 5), st.integers(0, 2500))
def test_ranks_are_disjoint_and_go_on_anywhere(world, batch, start):
    plan, again = mixed([3, 1, 2]), mixed([3, 1, 2])
    ranks = [
        list(itertools.islice(PlanBatchSampler(plan, batch, rank=r, world=world, start=start), 4)) for r in range(world)
    ]
    taken = [item for step in zip(*ranks, strict=True) for batches in step for item in batches]
    assert taken == [again.item(start + n) for n in range(4 * batch * world)]


# --------------------------------------------------------------------------------------------------------- reading


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    root = tmp_path_factory.mktemp("sets")
    for name, lengths in (("one", [[60, 35], [80]]), ("two", [[45], [50]])):
        write_split(root / name / "train", lengths, video=False)
        write_split(root / name / "val", [[lengths[0][0]]], video=False)
    return root


def dataset(sets, frames: int = 20) -> tuple[WindowDataset, MixedPlan]:
    indexes = [Index.load(sets / name / "train") for name in ("one", "two")]
    plans = [WindowPlan(i, frames=frames, seed=5) for i in indexes]
    plan = MixedPlan(plans, [1, 2], seed=5)
    return WindowDataset(ShardReader(joined(indexes)), plan, frames=frames, motion_spec=MOTION), plan


def test_a_mixture_reads_from_the_right_folders(sets):
    data, plan = dataset(sets)
    alone = [WindowDataset(p.index.folder, p, frames=20) for p in plan.plans]
    seen = set()
    for position in range(60):
        item = plan.item(position)
        n, sample = owner(plan, item.sample)
        seen.add((n, sample))
        expected = alone[n][dataclasses.replace(item, sample=sample)]
        assert torch.equal(data[item].avatar_motion, expected.avatar_motion)  # columns 1… differ between the sets
        assert torch.equal(data[item].user_audio, expected.user_audio)
    assert len(seen) == 5


def test_the_order_of_a_mixture_is_the_same_for_any_ranks_and_workers(sets):
    def taken(world: int, workers: int) -> torch.Tensor:
        ranks = []
        for rank in range(world):
            loader = training_loader(dataset(sets)[0], 6 // world, rank=rank, world=world, start=990, workers=workers)
            ranks.append([b.avatar_motion for b in itertools.islice(loader, 4)])
        return torch.cat([b for step in zip(*ranks, strict=True) for b in step])

    expected = taken(1, 0)
    for world, workers in ((1, 2), (2, 0), (2, 2), (3, 0), (3, 2)):
        assert torch.equal(taken(world, workers), expected), (world, workers)


def test_validation_counts_each_window_of_every_set_once(sets):
    index = joined([Index.load(sets / name / "val") for name in ("one", "two")])
    data, items = WindowDataset(ShardReader(index), frames=20), fixed_windows(index, frames=20)
    assert {i.sample for i in items} == {0, 1}
    counted = sum(int(b.counted.sum()) for r in range(2) for b in validation_loader(data, items, 4, rank=r, world=2))
    assert counted == len(items)


def test_sets_that_do_not_fit_together_are_named(sets, tmp_path):
    one = Index.load(sets / "one" / "train")
    other = Index.load(write_split(tmp_path / "streaming" / "train", [[30]], video=False, audio=STREAMING))
    with pytest.raises(UserError, match=r"one/train and .*streaming/train differ in audio \(.*mode: 'utterance' and"):
        joined([one, other])
    larger = Index.load(write_split(tmp_path / "larger" / "train", [[30]], video=False, size=64))
    with pytest.raises(UserError, match=r"one/train has images of 32 pixels, .*larger/train of 64"):
        joined([one, larger])
    bare = dataclasses.replace(one, folder=tmp_path / "bare", specs={**one.specs, "motion": None})
    with pytest.raises(UserError, match=r"one/train has motion features, .*bare has none"):
        joined([one, bare])
    faceless = dataclasses.replace(one, specs={**one.specs, "face": None})
    assert joined([one, faceless]).specs["face"] is None
    assert joined([one]) is one


def test_a_missing_shard_of_any_set_is_named(sets, tmp_path):
    shutil.copytree(sets, tmp_path / "sets")
    data, plan = dataset(tmp_path / "sets")
    (tmp_path / "sets" / "two" / "train" / "000001.tar").unlink()
    item = next(plan.item(p) for p in range(200) if plan.item(p).sample == 4)
    with pytest.raises(FileNotFoundError, match=r"two/train/000001\.tar"):
        data.reader.read(item.sample)
    assert validate(tmp_path / "sets" / "one").ok


def test_what_a_root_can_be(monkeypatch, tmp_path):
    monkeypatch.setenv("AF_CACHE", str(tmp_path))
    assert list(roots("data/a").values()) == [1.0]
    assert {str(k): v for k, v in roots({"data/a": 3, "data/b": 0.5}).items()} == {"data/a": 3.0, "data/b": 0.5}
    listed = roots([{"root": "s3://b/c", "weight": 2}, {"root": "data/a", "weight": 1}])
    assert [type(k) for k in listed] == [RemotePath, type(tmp_path)]
    for wrong, said in (
        (None, "set the location"),
        ({}, "set the location"),
        ({"data/a": 0}, "weight 0 of data/a"),
        ({"s3": "//b/c: 0.7"}, r"\[\{root: URL"),  # what the command line makes of a URL as a key
        ([{"root": "data/a"}], "in a list"),
        ([{"root": "data/a", "weight": 1}, {"root": "data/a", "weight": 2}], "twice"),
    ):
        with pytest.raises(UserError, match=said):
            roots(wrong)
    with pytest.raises(UserError, match="less than 1/1000"):
        mixed([1, 1e-5])
