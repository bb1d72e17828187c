"""Everything that can be wrong with shards, met while training: skipped and counted, or refused; nothing is executed."""

from __future__ import annotations

import io
import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from af.cli.main import main
from af.clock import SAMPLE_RATE
from af.data import codecs
from af.data.checks import ShardError
from af.data.index import Index
from af.data.loader import training_loader
from af.data.pairs import PairDataset
from af.data.plan import PairPlan, WindowItem, WindowPlan
from af.data.shards import ShardReader
from af.data.windows import WindowDataset
from af.errors import UserError
from tests.data.test_shards import Bomb, pickled_npy
from tests.toy_shards import write_split

VICTIM = 1
EXECUTED = Path("/tmp/af-was-executed")


def overwrite(folder: Path, field: str, data: bytes | Callable[[bytes], bytes]) -> None:
    """Other bytes in the place of a member of the victim, as long as it is (the index still fits)."""
    index = Index.load(folder)
    sample = index.samples[VICTIM]
    offset, size = sample.members[field]
    with open(index.path(sample.shard), "r+b") as file:
        file.seek(offset)
        old = file.read(size)
        new = data(old) if callable(data) else data.ljust(size, b"\0")
        assert len(new) == size
        file.seek(offset)
        file.write(new)


def edit_index(folder: Path, change: Callable[[dict], None]) -> None:
    content = json.loads((folder / "index.json").read_text())
    change(content)
    (folder / "index.json").write_text(json.dumps(content))


def longer(rows: bytes) -> bytes:
    """A header that promises another number of rows."""
    return rows.replace(b"(40, 6)", b"(39, 6)")


def pickle_bytes() -> bytes:
    import pickle

    return pickle.dumps(Bomb())


def half(folder: Path) -> None:
    edit_index(folder, lambda index: index["entries"][VICTIM]["members"].pop("b.motion.npy"))


MOTION = "a.motion.npy"
FAULTS = {
    "bad npy": (lambda f: overwrite(f, MOTION, b"\x93NUMPY\x01\x00"), {"bad_npy"}),
    "junk": (lambda f: overwrite(f, MOTION, lambda old: b"\xff" * len(old)), {"bad_npy"}),
    "wrong length": (lambda f: overwrite(f, MOTION, longer), {"wrong_length"}),
    "half sample": (half, {"absent"}),
    "pickle in npy": (lambda f: overwrite(f, MOTION, pickled_npy()), {"pickle", "wrong_length", "bad_npy"}),
    "pickle for npy": (lambda f: overwrite(f, MOTION, pickle_bytes()), {"bad_npy"}),
    "not finite": (lambda f: overwrite(f, MOTION, lambda old: old[:-4] + np.float32(np.nan).tobytes()), {"not_finite"}),
    "too large": (lambda f: overwrite(f, MOTION, lambda old: old[:-4] + np.float32(-1e30).tobytes()), {"out_of_range"}),
}


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_split(tmp_path / "train", [[40], [40], [40]], video=False)


@pytest.fixture(autouse=True)
def nothing_is_executed():
    EXECUTED.unlink(missing_ok=True)
    yield
    assert not EXECUTED.exists()


def windows(folder: Path, rate: float) -> tuple[WindowDataset, list]:
    plan = WindowPlan(Index.load(folder), frames=40)
    data = WindowDataset(folder, plan, frames=40, max_bad_rate=rate)
    return data, [plan.item(n) for n in range(12)]


@pytest.mark.filterwarnings("ignore:skipped a corrupt sample")
@pytest.mark.parametrize("fault", FAULTS)
def test_a_corrupt_sample_is_skipped_counted_and_stops_above_the_rate(folder, fault):
    damage, reasons = FAULTS[fault]
    damage(folder)
    data, items = windows(folder, 0.5)
    victims = [item for item in items if item.sample == VICTIM]
    for item in victims:
        with pytest.raises(ShardError, match=r"000001\.tar: 000001\.[ab]\.motion\.npy: ") as caught:
            data._read(item)
        assert caught.value.reason in reasons
    batches = list(itertools.islice(training_loader(data, 4), 3))
    assert sum(len(b.avatar_motion) for b in batches) == 12  # others in their place
    assert all(b.valid.all() for b in batches)
    assert data.bad.bad >= len(victims) > 0
    assert data.bad.read == 12
    strict, _ = windows(folder, 0.0)
    with pytest.raises(UserError, match="could not be read, more than the allowed share"):
        list(itertools.islice(training_loader(strict, 4), 3))


@pytest.mark.filterwarnings("ignore:skipped a corrupt sample")
def test_a_tar_cut_off_while_training_reads_is_skipped_and_counted(folder):
    data, items = windows(folder, 0.5)
    entry = data.reader.index.samples[VICTIM]
    os.truncate(folder / "000001.tar", entry.members["a.motion.npy"][0] + 200)
    with pytest.raises(ShardError, match="cut off") as caught:
        data._read(next(item for item in items if item.sample == VICTIM))
    assert caught.value.reason == "truncated"
    list(itertools.islice(training_loader(data, 4), 3))
    assert data.bad.bad > 0
    with pytest.raises(UserError, match=r"000001\.tar: \d+ bytes, index\.json says"):
        windows(folder, 0.5)  # a new run sees it at once


@pytest.mark.filterwarnings("ignore:skipped a corrupt sample")
def test_a_broken_video_is_skipped_and_counted(tmp_path):
    folder = write_split(tmp_path / "train", [[30], [30]])
    for role in "ab":
        overwrite(folder, f"{role}.mp4", pickle_bytes())
    plan = PairPlan(Index.load(folder))
    for cache_bytes in (0, 2**24):
        data = PairDataset(folder, plan, cache_bytes=cache_bytes, cache_folder=tmp_path / "frames", max_bad_rate=0.5)
        batch = next(iter(training_loader(data, 8)))
        assert len(batch.source) == 8
        assert data.bad.bad > 0


@pytest.mark.parametrize("frame", [0, 17, 39])
def test_a_reference_frame_outside_of_its_window_is_checked_too(tmp_path, frame):
    folder = write_split(tmp_path / "train", [[40], [40]], video=False)
    overwrite(folder, MOTION, lambda old: _with_row(old, frame, np.nan))
    data = WindowDataset(folder, frames=10)
    start = 20 if frame < 20 else 0  # where the window does not hold the frame
    with pytest.raises(ShardError, match=r"000001\.a\.motion\.npy: holds NaN"):
        data._read(WindowItem(0, VICTIM, "a", start, frame))
    assert torch.isfinite(
        data._read(WindowItem(0, VICTIM, "a", start, 19 if start == 0 else 39 - start)).reference
    ).all()


def _with_row(data: bytes, row: int, value: float, frames: int = 40) -> bytes:
    """An npy of `frames` rows of float32 or float16 with `value` in the first column of one."""
    array = codecs.decode_npy(data).copy()
    assert len(array) == frames
    array[row, 0] = value
    return codecs.encode_npy(array)


@pytest.mark.parametrize("field", ["a.motion.npy", "b.audio.npy", "a.face.npy"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
def test_numbers_that_cannot_be_are_refused_by_every_reader_and_found_by_validate(tmp_path, capsys, field, value):
    folder = write_split(tmp_path / "train", [[40], [40]], video=False)
    with np.errstate(over="ignore"):  # in half precision 1e30 is infinite
        overwrite(folder, field, lambda old: _with_row(old, 5, value))
    reason = "out_of_range" if value == 1e30 and field != "b.audio.npy" else "not_finite"
    reader = ShardReader(folder)
    name = {"motion.npy": "motion", "audio.npy": "audio_features", "face.npy": "face"}[field[2:]]
    for read in (lambda: reader.read_rows(VICTIM, field, 4, 6), lambda: reader.read(VICTIM, {name})):
        with pytest.raises(ShardError, match=rf"000001\.{field}: holds") as caught:
            read()
        assert caught.value.reason == reason
    assert len(reader.read_rows(VICTIM, field, 6, 40)) == 34  # only what is read counts
    assert main(["shards", "validate", str(tmp_path)]) == 1
    assert reason in capsys.readouterr().out


@pytest.mark.parametrize("value", [np.nan, np.inf, 20_000.0])
def test_sound_of_numbers_that_cannot_be_is_refused(value):
    wave = np.zeros(640, np.float32)
    wave[7] = value
    buffer = io.BytesIO()
    soundfile.write(buffer, wave, SAMPLE_RATE, format="WAV", subtype="FLOAT")
    with pytest.raises(codecs.CodecError, match="expected -1 to 1"):
        codecs.decode_audio(buffer.getvalue())


TRICKS = {
    "shard above": lambda i: i["shards"][1].update(name="../../secret.tar"),
    "absolute shard": lambda i: i["shards"][1].update(name="/etc/passwd"),
    "hidden shard": lambda i: i["shards"][1].update(name=".secret.tar"),
    "another protocol": lambda i: i["shards"][1].update(name="http://elsewhere/x.tar"),
    "no tar": lambda i: i["shards"][1].update(name="index.json"),
    "path in a key": lambda i: i["entries"][1].update(key="../../000001"),
    "unknown member": lambda i: i["entries"][1]["members"].update({"a.pkl": [0, 10]}),
    "bytes behind the end": lambda i: i["entries"][1]["members"].update({"a.motion.npy": [0, 10**12]}),
    "negative offset": lambda i: i["entries"][1]["members"].update({"a.motion.npy": [-5, 10]}),
    "no such shard": lambda i: i["entries"][1].update(shard=7),
    "a shard from the end": lambda i: i["entries"][1].update(shard=-1),
    "frames that are not there": lambda i: i["entries"][1]["valid"].update(a=[[0, 10**9]]),
    "no frames": lambda i: i["entries"][1].update(frames=0),
}


@pytest.mark.parametrize("trick", TRICKS)
def test_an_index_names_nothing_but_its_shards(folder, trick, capsys):
    edit_index(folder, TRICKS[trick])
    with pytest.raises(UserError, match=r"train/index\.json: .* is not allowed in an index; make it again"):
        Index.load(folder)
    with pytest.raises(UserError):
        ShardReader(folder)
    assert main(["shards", "validate", str(folder)]) == 1
    assert "no_index" in capsys.readouterr().out
    assert main(["shards", "index", str(folder)]) == 0  # the shards themselves are whole
    assert Index.load(folder)
