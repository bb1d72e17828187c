"""The streaming reader: what it gives is what the planned one gives, in another order, wherever the shards lie."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from af.data.index import Index, build_index
from af.data.plan import WindowPlan, window_counts
from af.data.planned import PlannedReader, WindowSource
from af.data.shards import ShardReader, write_shard
from af.data.stores import StoreError
from af.data.stream import ShardOrder, StreamReader
from af.data.validate import validate
from af.data.windows import WindowDataset
from af.errors import UserError
from af.types import DyadBatch
from tests.data.test_loader import origin
from tests.data.test_plan import make_index
from tests.faulty_server import FaultyServer
from tests.toy_shards import members, meta, write_split

LENGTHS = [[45, 60], [20], [90], [33, 21, 20], [41]]
FRAMES = 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_split(tmp_path_factory.mktemp("stream") / "train", LENGTHS, video=False)


def source(*folders, weights=None, **options) -> WindowSource:
    indexes = [Index.load(folder) for folder in folders]
    return WindowSource(indexes, weights or [1.0] * len(indexes), frames=FRAMES, **options)


def origins(batch: DyadBatch) -> list[tuple[int, str, int]]:
    return [origin(row[0]) for row in batch.avatar_motion]


def taken(reader: StreamReader, found: WindowSource, windows: int, **options) -> list[tuple[int, str, int]]:
    loader = reader.loader(found, 1, **options)
    return [origins(batch)[0] for batch in itertools.islice(loader, windows)]


def epoch_of(folder: Path) -> Counter:
    """How many windows an epoch has of each (sample, role)."""
    counts = window_counts(Index.load(folder), FRAMES)
    return Counter({(n, role): int(c) for n, row in enumerate(counts) for role, c in zip("ab", row, strict=True) if c})


def clips(windows) -> Counter:
    return Counter((sample, role) for sample, role, _ in windows)


# ------------------------------------------------------------------------------------------------- who reads what


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 9), st.integers(1, 7), st.integers(0, 99))
def test_slots_share_every_epoch_without_overlap(shards, slots, seed):
    order = ShardOrder(make_index([[FRAMES]] * shards), FRAMES, seed)
    places = sorted(p for slot in range(slots) for p in range(slot, 3 * shards, slots))
    for epoch in range(3):
        found = [order.shard(p) for p in places[epoch * shards : (epoch + 1) * shards]]
        assert sorted(found) == [(n, epoch) for n in range(shards)]


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=6),
    st.integers(0, 9),
    st.lists(st.integers(0, 30), min_size=1, max_size=4),
)
def test_where_slots_are_is_found_from_what_they_took(sizes, first, taken):
    order = ShardOrder(make_index([[FRAMES * n] for n in sizes]), FRAMES, 3)
    frontier, again = order.reached(first, taken)
    begun = []  # one by one, the place that each window comes from
    for slot, windows in enumerate(taken):
        places = itertools.count(first + slot, len(taken))
        each = (p for p in places for _ in range(order.windows[order.shard(p)[0]]))
        begun += list(itertools.islice(each, windows))
    through = Counter(begun)
    whole = {p for p, n in through.items() if n == order.windows[order.shard(p)[0]]}
    assert frontier == next(p for p in itertools.count(first) if p not in whole)
    assert again == sum(n for p, n in through.items() if p >= frontier)


@pytest.mark.parametrize(("world", "workers"), [(1, 0), (3, 0), (1, 2)])
def test_an_epoch_has_the_windows_of_the_planned_reader(folder, world, workers):
    expected = epoch_of(folder)
    assert sum(expected.values()) == len(WindowPlan(Index.load(folder), frames=FRAMES))
    found = source(folder, seed=5)
    slots = world * max(1, workers)
    order = ShardOrder(found.indexes[0], FRAMES, 5)
    sizes = [sum(int(order.windows[order.shard(p)[0]]) for p in range(s, len(order), slots)) for s in range(slots)]
    if workers == 0:
        windows = [w for rank, n in enumerate(sizes) for w in taken(StreamReader(1), found, n, rank=rank, world=world)]
    else:  # a loader takes from its workers in turn
        both = taken(StreamReader(1), found, 2 * max(sizes), workers=2)
        windows = [w for worker, n in enumerate(sizes) for w in both[worker::2][:n]]
    assert clips(windows) == expected


def test_windows_are_mixed_and_begin_anywhere_on_a_block(folder):
    found = source(folder, seed=1, block=5)
    once = taken(StreamReader(buffer=30), found, 40)
    assert once == taken(StreamReader(buffer=30), found, 40)
    assert once != taken(StreamReader(buffer=30), dataclasses.replace(found, seed=2), 40)
    assert all(start % 5 == 0 for _, _, start in once)
    assert len({start for _, _, start in once}) > 6
    order = [sample for sample, _, _ in once]
    assert sum(a != b for a, b in itertools.pairwise(order)) > 20  # unmixed, they come clip by clip


@pytest.mark.parametrize("listening", [False, True])
def test_batches_are_those_of_the_planned_reader(folder, listening):
    """The same fields, types and shapes; the same numbers for the same window."""

    def loud(voice, frames):
        return abs(voice.reshape(frames, -1)).mean(1) > 0.25

    found = source(folder, seed=3, listening=loud if listening else None)
    stream, planned = (
        next(iter(reader.loader(found, 6))) for reader in (StreamReader(buffer=20), PlannedReader(group_shards=2))
    )
    for f in dataclasses.fields(DyadBatch):
        mine, theirs = getattr(stream, f.name), getattr(planned, f.name)
        assert (mine is None) == (theirs is None), f.name
        assert mine is None or (mine.shape, mine.dtype) == (theirs.shape, theirs.dtype), f.name
    dataset = WindowDataset(folder, frames=FRAMES, listening=found.listening)
    for n, (sample, role, start) in enumerate(origins(stream)):
        reference = origin(stream.reference[n])[2]
        item = dataclasses.replace(
            WindowPlan(found.indexes[0], frames=FRAMES).item(0),
            sample=sample,
            role=role,
            start=start,
            reference=reference,
        )
        expected = dataset.collate([dataset[item]])
        for f in dataclasses.fields(DyadBatch):
            if getattr(expected, f.name) is not None:
                assert torch.equal(getattr(stream, f.name)[n], getattr(expected, f.name)[0]), f.name


def test_sets_give_their_shares(folder, tmp_path):
    other = tmp_path / "train"
    for shard in range(2):
        clip = 40 + shard
        write_shard(other / f"{shard}.tar", [(str(clip), meta(clip, 60, 32, "train"), members(clip, 60, 32, False))])
    build_index(other)
    windows = taken(StreamReader(buffer=5), source(folder, other, weights=[3, 1]), 40)
    for n in range(1, 41):
        assert abs(sum(sample >= 40 for sample, _, _ in windows[:n]) - n / 4) < 1
    own = [w for w in windows if w[0] < 40]
    assert own == taken(StreamReader(buffer=5), source(folder), 30)  # each in its own order


# ----------------------------------------------------------------------------------------------------- going on


@pytest.mark.parametrize(("world", "then"), [(1, 1), (2, 3), (3, 1)])
def test_a_stopped_stream_loses_nothing_and_counts_what_it_repeats(folder, world, then):
    reader, found = StreamReader(buffer=1), source(folder, seed=4)
    epoch, steps = epoch_of(folder), 6
    before = [w for rank in range(world) for w in taken(reader, found, steps, rank=rank, world=world)]
    state = reader.state(found, None, steps * world, world, (world, 1))
    place, order = state["places"][0], ShardOrder(found.indexes[0], FRAMES, 4)
    done = sum(int(order.windows[order.shard(p)[0]]) for p in range(place))
    assert state == {"samples": steps * world, "places": [place], "repeated": len(before) - done}
    assert str(state["repeated"]) in reader.told(state)
    counts = [
        sum(int(order.windows[order.shard(p)[0]]) for p in range(place + r, len(order), then)) for r in range(then)
    ]
    after = [w for r, n in enumerate(counts) for w in taken(reader, found, n, rank=r, world=then, state=state)]
    union = clips(before) | clips(after)
    assert all(union[name] <= n and clips(before + after)[name] >= n for name, n in epoch.items())
    assert clips(before + after).total() == epoch.total() + state["repeated"]


# ------------------------------------------------------------------------------------------- one person, bad shards


def one_sided(number: int, frames: int) -> tuple:
    described = meta(number, frames, 32, "train", participants=("solo", "solo"), one_sided=True)
    parts = members(number, frames, 32, video=False)
    return f"{number:06d}", described, {name: value for name, value in parts.items() if name.startswith("a.")}


@pytest.mark.parametrize("reader", [StreamReader(buffer=1), PlannedReader()])
def test_one_sided_samples_have_a_user_of_zeros(tmp_path, reader):
    folder = tmp_path / "set" / "train"
    write_shard(
        folder / "000000.tar", [one_sided(0, 40), ("000001", meta(1, 40, 32, "train"), members(1, 40, 32, False))]
    )
    build_index(folder)
    assert validate(tmp_path / "set").ok
    assert ShardReader(folder).read(0, {"motion"}).b.motion is None
    batches = list(itertools.islice(reader.loader(source(folder), 6), 2))
    windows = [w for batch in batches for w in origins(batch)]
    assert clips(windows) == {(0, "a"): 4, (1, "a"): 4, (1, "b"): 4}
    for batch in batches:
        for n, (sample, _, _) in enumerate(origins(batch)):
            assert bool(batch.user_motion[n].any()) == bool(batch.user_audio[n].any()) == (sample == 1)
            assert batch.valid[n].all()


def test_what_cannot_be_read_is_skipped_and_counted(folder, tmp_path):
    copy = write_split(tmp_path / "train", LENGTHS, video=False)
    index = Index.load(copy)
    with open(copy / "000000.tar", "r+b") as file:  # the second of two samples is cut off
        file.truncate(index.samples[1].members["b.motion.npy"][0])
    with open(copy / "000002.tar", "r+b") as file:
        file.seek(index.samples[3].members["a.audio.npy"][0])
        file.write(b"\x93PICKLE")
    source_of = dataclasses.replace(source(folder), indexes=[index])
    loader = StreamReader(buffer=1).loader(source_of, 1)
    with pytest.warns(UserWarning, match="skipped a corrupt sample") as told:
        windows = [origins(b)[0] for b in itertools.islice(loader, 30)]
    assert {sample for sample, _, _ in windows} == {0, 2, 4, 5, 6, 7}
    assert loader.dataset.bad.bad >= 2
    said = " ".join(str(w.message) for w in told)
    assert "000000.tar" in said
    assert "000002.tar: 000003.a.audio.npy" in said


# ------------------------------------------------------------------------------------------------ remote, settings


def test_a_store_that_stumbles_gives_what_the_folder_gives(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("AF_CACHE", str(tmp_path / "cache"))
    with FaultyServer(folder.parent).running() as server:
        server.faults = lambda path, before: ["cut", "503", None][min(before, 2)] if path.endswith(".tar") else None
        monkeypatch.setattr("af.data.stores._LONGEST_WAIT_S", 0.01)
        remote = taken(StreamReader(buffer=9), source(f"{server.url}/train"), 30)
        assert remote == taken(StreamReader(buffer=9), source(folder), 30)
        assert len(list((tmp_path / "cache").glob("*.tar"))) == len(LENGTHS)


def test_a_store_that_stays_away_ends_the_run(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("AF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("AF_STORE_ATTEMPTS", "1")
    with FaultyServer(folder.parent).running() as server:
        found = source(f"{server.url}/train")
        server.faults = lambda path, before: "503"
        with pytest.raises(StoreError, match=r"could not be read in 1 attempts"):
            next(iter(StreamReader().loader(found, 2)))


def test_what_needs_single_samples_is_refused(folder):
    for name, value in (("losers", folder), ("balance", 1.0)):
        with pytest.raises(UserError, match=rf"data\.{name} needs .* data/reader=planned"):
            StreamReader().loader(source(folder, **{name: value}), 2)
    with pytest.raises(UserError, match=r"data\.reader\.buffer: 0"):
        StreamReader(buffer=0)
    with pytest.warns(UserWarning, match="5 shards for 6 workers"):
        StreamReader().loader(source(folder), 2, world=6)


# ----------------------------------------------------------------------------------------------- stock webdataset


def test_the_documented_way_with_stock_webdataset(latents, capsys):
    """The code of docs/data.md, on our shards: every member decoded, both people in either role."""
    text = (Path(__file__).parents[2] / "docs" / "data.md").read_text("utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict = {}
    exec(code.replace("data/demo-latents", str(latents)), names)
    reader = ShardReader(latents / "train")
    expected = [(s.key, str(s.frames)) for s in reader.index.samples for _ in "ab"]
    assert [tuple(line.split()[:2]) for line in capsys.readouterr().out.splitlines()] == expected
    one, other = names["roles"](next(iter(names["samples"])))
    clip = reader.read(0)
    for found, avatar, user in ((one, clip.a, clip.b), (other, clip.b, clip.a)):
        for part, person in ((found["avatar"], avatar), (found["user"], user)):
            assert np.array_equal(part["mp4"], person.video)
            assert np.array_equal(part["flac"], person.audio)
            assert np.array_equal(part["motion.npy"].astype(np.float32), person.motion)
            assert np.array_equal(part["audio.npy"].astype(np.float32), person.audio_features)
            assert np.array_equal(part["face.npy"].astype(np.float32), person.face)
