"""Samples that cannot be read are replaced in a fixed way and counted; too many stop a training."""

from __future__ import annotations

import itertools
import warnings

import pytest

from af.data.index import Index
from af.data.loader import training_loader, validation_loader
from af.data.pairs import PairDataset
from af.data.plan import WindowPlan, fixed_pairs, fixed_windows
from af.data.windows import WindowDataset
from af.errors import UserError
from tests.data.test_loader import origin
from tests.toy_shards import write_split


def corrupt(folder, sample: int, field: str) -> None:
    index = Index.load(folder)
    offset, size = index.samples[sample].members[field]
    with open(index.path(index.samples[sample].shard), "r+b") as file:
        file.seek(offset)
        file.write(b"\xff" * size)


@pytest.mark.parametrize("workers", [0, 2])
def test_corrupt_samples_are_replaced_in_a_fixed_way_and_counted(tmp_path, workers):
    folder = write_split(tmp_path / "train", [[30, 30], [30]], video=False)
    corrupt(folder, 1, "a.motion.npy")
    plan = WindowPlan(Index.load(folder), frames=10)
    data = WindowDataset(folder, plan, frames=10, max_bad_rate=0.1)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        batches = list(
            itertools.islice(
                training_loader(data, 4, workers=workers, prefetch_factor=2) if workers else training_loader(data, 4), 6
            )
        )
    found = [origin(m[0]) for b in batches for m in b.avatar_motion]
    for position, where in enumerate(found):
        item = plan.item(position)
        while item.sample == 1:
            item = plan.item(item.position + 1)
        assert where == (item.sample, item.role, item.start)
    assert data.bad.bad > 0
    assert data.bad.read >= len(found)
    if not workers:
        assert len(told) == 1
        assert "000000.tar: 000001.a.motion.npy" in str(told[0].message)


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_corrupt_samples_stop_the_run(tmp_path, workers):
    folder = write_split(tmp_path / "train", [[30, 30]], video=False)
    corrupt(folder, 0, "b.audio.npy")
    data = WindowDataset(folder, WindowPlan(Index.load(folder), frames=10), frames=10, max_bad_rate=0.02)
    endless = iter(training_loader(data, 4, workers=workers))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(UserError, match=r"(?s)21 of \d+ samples.*2\.00%.*000000\.b\.audio"):
            list(endless)


def test_corrupt_samples_in_validation_do_not_count(tmp_path):
    folder = write_split(tmp_path / "val", [[30, 30]])
    corrupt(folder, 0, "a.mp4")
    corrupt(folder, 1, "b.motion.npy")
    index = Index.load(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pairs = fixed_pairs(index, pairs_per_person=1)
        for cache_bytes in (0, 2**30):
            batch = next(iter(validation_loader(PairDataset(folder, cache_bytes=cache_bytes), pairs, 4)))
            assert batch.counted.tolist() == [(p.sample, p.role) != (0, "a") for p in pairs]
        windows = fixed_windows(index, frames=30)
        batch = next(iter(validation_loader(WindowDataset(folder, frames=30), windows, 4)))
        assert batch.counted.tolist() == [w.sample == 0 for w in windows]
        assert not batch.batch.valid[2:].any()
