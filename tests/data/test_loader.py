from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from af.data.index import Index, build_index
from af.data.loader import Counted, training_loader, validation_loader
from af.data.pairs import FaceCentre, PairDataset, pairs_to_float
from af.data.plan import PairPlan, WindowPlan, fixed_pairs, fixed_windows
from af.data.shards import ShardReader, write_shard
from af.data.vary import Vary
from af.data.windows import WindowDataset
from af.errors import UserError
from af.synth.render import EyesAndMouth
from af.types import DyadBatch, PairBatch
from tests.toy_shards import AUDIO, MOTION, STREAMING, members, meta, write_split


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_split(tmp_path_factory.mktemp("loader") / "train", [[60, 35], [80]])


def equal(a, b) -> bool:
    pairs = zip(dataclasses.astuple(a), dataclasses.astuple(b), strict=True)
    return all((x is None and y is None) or torch.equal(x, y) for x, y in pairs)


def origin(row: np.ndarray | torch.Tensor) -> tuple[int, str, int]:
    """(clip, role, frame) that a motion row of the toy shards says it is from."""
    value = float(row[0])
    return int(value // 1000), "b" if value % 1 else "a", int(value % 1000)


# ----------------------------------------------------------------------------------------------------------- pairs


def test_both_ways_are_the_pairs_and_the_pairs_exchanged(folder):
    def regions(face, size):
        return np.full((size, size), face[0], np.float32)

    plan = PairPlan(ShardReader(folder).index, seed=3)
    options = {"cache_bytes": 0, "regions": regions, "faces": True}
    one, both = (
        next(iter(training_loader(PairDataset(folder, plan, both_ways=w, **options), 3))) for w in (False, True)
    )
    for a, b in (("source", "driving"), ("driving", "source")):
        torch.testing.assert_close(getattr(both, a), torch.cat((getattr(one, a), getattr(one, b))))
    torch.testing.assert_close(both.face[:3], one.face)
    torch.testing.assert_close(both.weight[:3], one.weight)
    exchanged = (
        PairDataset(folder, **options)._read(
            dataclasses.replace(plan.item(i), source=plan.item(i).driving, driving=plan.item(i).source)
        )
        for i in range(3)
    )
    faces = torch.from_numpy(np.concatenate([pair.faces for pair in exchanged]))
    torch.testing.assert_close(both.face[3:], faces)
    torch.testing.assert_close(both.weight[3:, 0, 0, 0], faces[:, 0])


@pytest.mark.parametrize("cache_bytes", [0, 2**30])
def test_pairs_are_the_frames_of_the_plan(folder, tmp_path, cache_bytes):
    reader = ShardReader(folder)
    plan = PairPlan(reader.index, seed=3, pairs_per_person=2)
    data = PairDataset(reader, plan, cache_bytes=cache_bytes, cache_folder=tmp_path)
    assert (data.cache is None) == (cache_bytes == 0)
    clips = [reader.read(i, {"video"}) for i in range(3)]
    loader = training_loader(data, 4)
    for b, batch in enumerate(itertools.islice(loader, 5)):
        assert isinstance(batch, PairBatch)
        assert batch.source.shape == batch.driving.shape == (4, 3, 32, 32)
        assert batch.source.dtype == torch.float32
        assert batch.weight is None
        for n in range(4):
            item = plan.item(b * 4 + n)
            video = clips[item.sample].person(item.role).video
            for image, frame in ((batch.source[n], item.source), (batch.driving[n], item.driving)):
                expected = video[frame].transpose(2, 0, 1).astype(np.float32) / 127.5 - 1
                np.testing.assert_allclose(image.numpy(), expected, atol=1e-6)
                assert image.min() >= -1
                assert image.max() <= 1


def test_of_several_driving_frames_the_most_different_face_is_taken(folder):
    plan = PairPlan(Index.load(folder), seed=3, choices=4)
    data = PairDataset(folder, plan, cache_bytes=0, faces=True)
    for position in range(8):
        item = plan.item(position)
        drawn = [item.driving, *item.others]
        assert len(drawn) == 4
        assert item.source not in drawn
        frame = origin(data._read(item).faces[0])[2]  # toy faces say which frame they are from
        assert abs(frame - item.source) == max(abs(n - item.source) for n in drawn)
    one = PairPlan(Index.load(folder), seed=3).item(5)
    assert (one.source, one.driving) == (plan.item(5).source, plan.item(5).driving)


def test_faces_are_grouped_by_name(folder):
    plan = PairPlan(Index.load(folder), seed=3)
    item = plan.item(2)
    whole = PairDataset(folder, plan, cache_bytes=0, faces=True, both_ways=True)._read(item).faces
    groups = {"turn": ["-yaw"], "mean": ["smile", "yaw"]}
    grouped = PairDataset(folder, plan, cache_bytes=0, faces=groups, both_ways=True)._read(item).faces
    np.testing.assert_allclose(grouped, np.stack([-whole[:, 2], whole[:, 1:].mean(1)], 1), rtol=1e-6)
    with pytest.raises(UserError, match="toy does not read jawOpen; it reads mouth_open"):
        PairDataset(folder, plan, faces={"jaw": ["jawOpen"]})


def test_frames_are_shrunk_by_whole_cells(folder):
    index = Index.load(folder)
    plan = PairPlan(index, seed=3)
    whole, half = (
        next(iter(training_loader(PairDataset(folder, plan, cache_bytes=0, image_size=size), 3))).source
        for size in (None, 16)
    )
    torch.testing.assert_close(half, torch.nn.functional.avg_pool2d(whole, 2), atol=1 / 127, rtol=0)
    with pytest.raises(UserError, match="does not divide the 32 px"):
        PairDataset(folder, plan, image_size=24)


def test_varied_pairs_are_the_same_at_every_reading_and_differ_between_positions(folder):
    plan = PairPlan(Index.load(folder), seed=3)
    item = plan.item(0)
    plain = PairDataset(folder, plan, cache_bytes=0)._read(item).frames
    data = PairDataset(folder, plan, cache_bytes=0, vary=Vary(0.2, mirror=False))
    first, again = data._read(item).frames, data._read(item).frames
    other = data._read(dataclasses.replace(item, position=item.position + 1)).frames
    np.testing.assert_array_equal(first, again)
    assert (first != plain).any()
    assert (first != other).any()


def test_bytes_become_floats_on_demand(folder):
    index = Index.load(folder)
    plan = PairPlan(index)
    raw = next(iter(training_loader(PairDataset(folder, plan, cache_bytes=0, uint8=True), 3)))
    ready = next(iter(training_loader(PairDataset(folder, plan, cache_bytes=0), 3)))
    assert raw.source.dtype == torch.uint8
    assert equal(pairs_to_float(raw), ready)


def test_regions_weigh_the_driving_frame(folder):
    def regions(face, size):
        return np.full((size, size), face[0], np.float32)

    plan = PairPlan(Index.load(folder), seed=1)
    data = PairDataset(folder, plan, cache_bytes=0, regions=regions)
    assert data.face_spec.names == ("mouth_open", "smile", "yaw")
    batch = next(iter(training_loader(data, 6)))
    assert batch.weight.shape == (6, 1, 32, 32)
    for n in range(6):
        item = plan.item(n)
        assert batch.weight[n].unique().item() == item.sample * 1000 + item.driving + (0.5 if item.role == "b" else 0)


def test_regions_hear_of_frames_without_face_parameters(tmp_path):
    folder = tmp_path / "train"
    unmarked = {name: value for name, value in members(0, 20, 32).items() if "face" not in name}
    write_shard(
        folder / "000000.tar", [("000000", dataclasses.replace(meta(0, 20, 32, "train"), face_spec=None), unmarked)]
    )
    build_index(folder)
    centre, told = FaceCentre(weight=2.0, y=0.6), lambda face, size: None if face is None else np.ones((size, size))
    for regions, weighed in ((centre, True), (told, False), (EyesAndMouth(), False)):
        data = PairDataset(folder, PairPlan(Index.load(folder), seed=1), cache_bytes=0, regions=regions, both_ways=True)
        weight = next(iter(training_loader(data, 2))).weight
        assert (weight is not None) == weighed
        if weight is not None:
            assert weight.shape == (4, 1, 32, 32)
            assert weight.min() >= 1
            assert np.unravel_index(int(weight[3, 0].argmax()), (32, 32))[0] in (18, 19)  # 0.6 of the height
            assert weight.max() == pytest.approx(3, abs=0.05)


def test_shards_without_video_are_refused(tmp_path):
    folder = write_split(tmp_path / "train", [[20]], video=False)
    with pytest.raises(UserError, match="no video"):
        PairDataset(folder)


# --------------------------------------------------------------------------------------------------------- windows


def test_windows_are_the_rows_of_the_plan(folder):
    reader = ShardReader(folder)
    plan = WindowPlan(reader.index, frames=20, seed=5)
    data = WindowDataset(reader, plan, frames=20, motion_spec=MOTION, audio_spec=AUDIO)
    roles = set()
    for b, batch in enumerate(itertools.islice(training_loader(data, 3), 6)):
        assert isinstance(batch, DyadBatch)
        assert batch.valid.all()
        assert batch.avatar_audio.dtype == torch.float32
        for n in range(3):
            item = plan.item(b * 3 + n)
            other = "b" if item.role == "a" else "a"
            roles.add(item.role)
            frames = range(item.start, item.start + 20)
            assert [origin(r) for r in batch.avatar_motion[n]] == [(item.sample, item.role, t) for t in frames]
            assert [origin(r) for r in batch.user_motion[n]] == [(item.sample, other, t) for t in frames]
            assert origin(batch.reference[n]) == (item.sample, item.role, item.reference)
            clip = reader.read(item.sample, {"audio_features"})
            for name, role in (("avatar_audio", item.role), ("user_audio", other)):
                expected = clip.person(role).audio_features[item.start : item.start + 20]
                np.testing.assert_array_equal(getattr(batch, name)[n].numpy(), expected)
    assert roles == {"a", "b"}


def test_untracked_frames_and_padding_are_not_valid(tmp_path):
    valid = {"a": ((0, 12),), "b": ((5, 30),)}
    folder = write_split(tmp_path / "train", [[30]], video=False, valid=valid)
    data = WindowDataset(folder, frames=40)
    items = fixed_windows(data.reader.index, frames=40, minimum=1)
    batch = next(iter(validation_loader(data, items, 2))).batch
    assert batch.valid.tolist() == [[5 <= t < 12 for t in range(40)]] * 2
    assert (batch.avatar_motion[:, 30:] == 0).all()
    assert origin(batch.avatar_motion[0, 29]) == (0, "a", 29)


def test_other_features_are_refused(folder, tmp_path):
    with pytest.raises(UserError, match=r"(?s)block_frames.*streaming.*utterance|utterance.*streaming"):
        WindowDataset(folder, audio_spec=STREAMING)
    with pytest.raises(UserError, match="af encode"):
        WindowDataset(folder, motion_spec=dataclasses.replace(MOTION, autoencoder="1" * 64))
    described = meta(0, 10, 32, "train", motion_spec=None)
    fields = {k: v for k, v in members(0, 10, 32).items() if "motion" not in k}
    from af.data.shards import write_shard

    write_shard(tmp_path / "000000.tar", [("000000", described, fields)])
    build_index(tmp_path)
    with pytest.raises(UserError, match="no motion latents"):
        WindowDataset(tmp_path)


# ----------------------------------------------------------------------------------------------- order and restart


def batches_of(folder, kind: str, **where):
    index = Index.load(folder)
    if kind == "pairs":
        data = PairDataset(folder, PairPlan(index, seed=9), cache_bytes=0)
    else:
        data = WindowDataset(folder, WindowPlan(index, frames=20, seed=9), frames=20)
    return list(itertools.islice(training_loader(data, **where), 12 // (where["batch_size"] * where.get("world", 1))))


def joined(batches):
    parts = [dataclasses.astuple(b) for b in batches]
    return [torch.cat(column) for column in zip(*parts, strict=True) if column[0] is not None]


@pytest.mark.parametrize("kind", ["pairs", "windows"])
def test_global_order_is_the_same_for_any_ranks_and_workers(folder, kind):
    expected = joined(batches_of(folder, kind, batch_size=6))
    for world, workers in ((1, 2), (2, 0), (2, 2), (3, 0), (3, 2)):
        ranks = [
            batches_of(folder, kind, batch_size=6 // world, rank=r, world=world, workers=workers) for r in range(world)
        ]
        found = joined([b for step in zip(*ranks, strict=True) for b in step])
        assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True)), (world, workers)


def test_going_on_gives_the_uninterrupted_batches(folder):
    whole = batches_of(folder, "windows", batch_size=3)
    later = batches_of(folder, "windows", batch_size=3, start=6, workers=1)
    assert all(equal(x, y) for x, y in zip(later[:2], whole[2:], strict=True))


def test_spawned_workers_read_the_same(folder):
    whole = batches_of(folder, "pairs", batch_size=6)
    spawned = batches_of(folder, "pairs", batch_size=6, workers=1, multiprocessing_context="spawn")
    assert all(equal(x, y) for x, y in zip(spawned, whole, strict=True))


def test_loading_leaves_the_global_random_state_alone(folder):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    batches_of(folder, "windows", batch_size=3, workers=1)
    assert torch.equal(torch.get_rng_state(), before)


# ------------------------------------------------------------------------------------------------------ validation


@pytest.mark.parametrize("world", [1, 2, 3])
def test_validation_counts_each_window_once(folder, world):
    data = WindowDataset(folder, frames=20)
    items = fixed_windows(data.reader.index, frames=20)
    seen, lengths = [], set()
    for r in range(world):
        batches = list(validation_loader(data, items, 4, rank=r, world=world))
        lengths.add(len(batches))
        for counted in batches:
            assert isinstance(counted, Counted)
            assert counted.counted.shape == (4,)
            assert not counted.batch.valid[~counted.counted].any()
            seen += [origin(m[0]) for m in counted.batch.avatar_motion[counted.counted]]
    assert len(lengths) == 1
    assert sorted(seen) == sorted((i.sample, i.role, i.start) for i in items)


def test_validation_pairs(folder):
    pairs = fixed_pairs(Index.load(folder), pairs_per_person=1)
    batches = list(validation_loader(PairDataset(folder, cache_bytes=0), pairs, 4))
    assert sum(int(b.counted.sum()) for b in batches) == 6
