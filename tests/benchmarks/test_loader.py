from __future__ import annotations

import pytest

from af.errors import UserError
from benchmarks.loader import loader_speeds, reader_speeds
from tests.toy_shards import AUDIO, MOTION, write_split


def test_shares_bytes_and_speeds_by_workers(tmp_path) -> None:
    folder = write_split(tmp_path / "train", [[60, 35], [80]])
    found = loader_speeds(folder, workers=(0, 1), batch_size=2, window_frames=20, seconds=0.05)
    assert found.keys() == {"windows", "pairs", "pairs_cached"}
    # two people's motion and features of 20 frames, and the reference; headers of 512 bytes each
    rows = 20 * 2 * (MOTION.dim * 4 + AUDIO.dim * 2)
    assert rows < found["windows"].bytes_per_sample <= rows + MOTION.dim * 4 + 5 * 512
    assert found["pairs_cached"].bytes_per_sample == 0
    for speed in found.values():
        assert speed.read + speed.decode + speed.collate == pytest.approx(1)
        assert min(speed.decode, speed.collate) > 0
        assert [row["workers"] for row in speed.by_workers] == [0, 1]
        assert all(row["bytes_per_s"] == row["samples_per_s"] * speed.bytes_per_sample for row in speed.by_workers)
        assert all(row["samples_per_s"] > 0 for row in speed.by_workers)


def test_what_the_shards_lack_is_left_out(tmp_path) -> None:
    silent = write_split(tmp_path / "train", [[20]], video=False)
    assert loader_speeds(silent, workers=(0,), batch_size=2, window_frames=10, seconds=0.01).keys() == {"windows"}


def test_shards_with_nothing_to_measure_are_refused(dyads, tmp_path) -> None:
    assert "windows" not in loader_speeds(dyads / "train", workers=(0,), batch_size=2, seconds=0.01)
    with pytest.raises(UserError):
        loader_speeds(tmp_path)


def test_readers_are_compared_on_disk_and_from_a_server(tmp_path) -> None:
    folder = write_split(tmp_path / "train", [[60], [80]], video=False)
    found = reader_speeds(folder, workers=(0,), batch_size=2, window_frames=20, seconds=0.05)
    assert found.keys() == {"disk", "store"}
    for speeds in found.values():
        (planned,), (stream,), (ratio,) = (speeds[name] for name in ("planned", "stream", "stream_over_planned"))
        assert ratio == stream / planned > 0
