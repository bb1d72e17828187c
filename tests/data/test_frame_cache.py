"""Decoded frames on disk: bounded, shared by processes, mended, and never another data set's."""

from __future__ import annotations

import numpy as np

from af.data import codecs
from af.data.disk_cache import FrameCache
from af.data.index import Index, build_index
from af.data.loader import training_loader
from af.data.pairs import PairDataset
from af.data.plan import PairPlan
from af.data.shards import write_shard
from tests.toy_shards import members, meta, write_split


def test_cache_is_bounded_shared_and_heals(tmp_path):
    made: list[str] = []

    def decode(name: str, frames: int = 10):
        made.append(name)
        return np.full((frames, 8, 8, 3), len(name), np.uint8)

    size = 10 * 8 * 8 * 3
    cache = FrameCache(tmp_path, 3 * size)
    for name in ("a", "bb", "a", "ccc", "a", "bb"):
        found = cache.read(name, [9, 0], (10, 8, 8), lambda name=name: decode(name))
        assert found.shape == (2, 8, 8, 3)
        assert (found == len(name)).all()
    assert made == ["a", "bb", "ccc"]
    other = FrameCache(tmp_path, 3 * size)  # another process
    other.read("bb", [1], (10, 8, 8), lambda: decode("bb"))
    assert made == ["a", "bb", "ccc"]
    other.read("dddd", [1], (10, 8, 8), lambda: decode("dddd"))
    files = list(tmp_path.glob("*.frames"))
    assert sum(f.stat().st_size for f in files) <= 3 * size
    assert (cache.read("a", [3], (10, 8, 8), lambda: decode("a")) == 1).all()  # open here, or made again
    (tmp_path / "dddd.frames").write_bytes(b"short")
    assert (FrameCache(tmp_path, 3 * size).read("dddd", [2], (10, 8, 8), lambda: decode("dddd")) == 4).all()
    assert made.count("dddd") == 2
    big = cache.read("big", [0], (1000, 8, 8), lambda: decode("big", 1000))  # larger than the cache: never stored
    assert big.shape == (1, 8, 8, 3)
    assert not (tmp_path / "big.frames").exists()


def test_cache_of_two_data_sets_never_mixes(tmp_path):
    """Shards of the same names with other content, one cache."""
    first = write_split(tmp_path / "1" / "train", [[12]])
    second = tmp_path / "2" / "train"

    other = members(0, 12, 32)
    other["a.mp4"] = other["b.mp4"] = codecs.encode_video(np.zeros((12, 32, 32, 3), np.uint8))
    write_shard(second / "000000.tar", [("000000", meta(0, 12, 32, "train"), other)])
    build_index(second)
    for folder, dark in ((first, False), (second, True), (first, False)):
        data = PairDataset(folder, PairPlan(Index.load(folder)), cache_folder=tmp_path / "cache")
        batch = next(iter(training_loader(data, 2)))
        assert bool((batch.source < -0.9).all()) == dark
