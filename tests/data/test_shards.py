from __future__ import annotations

import io
import json
import multiprocessing
import pickle
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset

from af.data import codecs
from af.data.checks import ShardError
from af.data.index import Index, build_index
from af.data.shards import ShardReader, write_shard
from af.data.validate import validate
from af.errors import UserError
from tests.toy_shards import AUDIO, MOTION, STREAMING, members, meta, rows, write_split

FRAMES, SIZE = 6, 32


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("shards")
    write_split(root / "train", [[FRAMES, 9], [12]], size=SIZE)
    write_split(root / "val", [[FRAMES]], size=SIZE)
    return root


@pytest.fixture
def copy(written, tmp_path) -> Path:
    """A copy that a test may break."""
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        for file in (written / split).iterdir():
            (tmp_path / split / file.name).write_bytes(file.read_bytes())
    return tmp_path


def read_tar(path: Path) -> list[tuple[tarfile.TarInfo, bytes]]:
    with tarfile.open(path) as tar:
        return [(info, tar.extractfile(info).read() if info.isreg() else b"") for info in tar]


def write_tar(path: Path, entries: list[tuple[tarfile.TarInfo | str, bytes]]) -> None:
    with tarfile.open(path, "w") as tar:
        for info, data in entries:
            info = tarfile.TarInfo(info) if isinstance(info, str) else info
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def replace(path: Path, name: str, data: bytes | None, new_name: str | None = None) -> None:
    """Rewrite one member of a tar (None: leave it out)."""
    entries: list[tuple[tarfile.TarInfo | str, bytes]] = []
    for info, old in read_tar(path):
        if info.name == name:
            if data is None and new_name is None:
                continue
            entries.append((new_name or name, old if data is None else data))
        else:
            entries.append((info.name, old))
    write_tar(path, entries)


def changed_json(path: Path, name: str, **changes) -> bytes:
    old = next(data for info, data in read_tar(path) if info.name == name)
    return json.dumps({**json.loads(old), **changes}).encode()


# --------------------------------------------------------------------------------------------------------- correct


def test_round_trip(written):
    index = Index.load(written / "train")
    assert [s.key for s in index.samples] == ["000000", "000001", "000002"]
    assert [s.frames for s in index.samples] == [FRAMES, 9, 12]
    assert (index.frames, index.split, index.image_size) == (FRAMES + 9 + 12, "train", SIZE)
    assert index.specs["audio"] == AUDIO.to_json()
    reader = ShardReader(index)
    for i in (2, 0, 1):
        clip, made = reader.read(i), members(i, index.samples[i].frames, SIZE)
        for role in "ab":
            person = clip.person(role)
            np.testing.assert_array_equal(person.motion, made[f"{role}.motion.npy"])
            np.testing.assert_array_equal(person.audio_features, made[f"{role}.audio.npy"].astype(np.float32))
            np.testing.assert_array_equal(person.audio, codecs.decode_audio(made[f"{role}.flac"]))
            np.testing.assert_array_equal(person.video, codecs.decode_video(made[f"{role}.mp4"]))
        assert clip.meta["session"] == f"train-{i}"
    only = reader.read(0, {"motion"})
    assert only.a.video is None
    assert only.a.motion is not None
    np.testing.assert_array_equal(reader.read_rows(2, "b.motion.npy", 3, 7), rows(2, "b", 12, MOTION.dim)[3:7])
    assert validate(written).ok


def test_same_samples_same_bytes(tmp_path):
    first = write_split(tmp_path / "1" / "train", [[FRAMES]])
    second = write_split(tmp_path / "2" / "train", [[FRAMES]])
    assert (first / "000000.tar").read_bytes() == (second / "000000.tar").read_bytes()


def test_stock_webdataset_reads_them(written):
    urls = [str(p) for p in sorted((written / "train").glob("*.tar"))]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [s["__key__"] for s in samples] == ["000000", "000001", "000002"]
    for s in samples:
        fields = {f"{role}.{part}" for role in "ab" for part in ("mp4", "flac", "motion.npy", "audio.npy", "face.npy")}
        assert fields | {"json"} == {name for name in s if not name.startswith("__")}
        assert len(codecs.decode_npy(s["a.motion.npy"])) == json.loads(s["json"])["frames"]


def test_index_again_reads_only_new_shards(written, copy, monkeypatch):
    folder = copy / "train"
    before = build_index(folder)
    import af.data.index as module

    read: list[str] = []
    real = module._index_shard
    monkeypatch.setattr(module, "_index_shard", lambda path, number: read.append(path.name) or real(path, number))
    assert build_index(folder) == before
    assert read == []
    write_shard(folder / "000005.tar", [("000009", meta(9, 4, SIZE, "train"), members(9, 4, SIZE))])
    after = build_index(folder)
    assert read == ["000005.tar"]
    assert [s.key for s in after.samples] == ["000000", "000001", "000002", "000009"]
    assert Index.load(folder) == after
    (folder / "000000.tar").unlink()
    assert [s.key for s in build_index(folder).samples] == ["000002", "000009"]


def _rows_in_worker(reader, i):
    return reader.read_rows(i, "a.motion.npy", 0, 2)[:, 0].tolist()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_reader_travels_to_workers(written, method):
    reader = ShardReader(written / "train")
    reader.read(0, {"motion"})  # files open before the fork
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.starmap(_rows_in_worker, [(reader, i) for i in (2, 0, 1, 2)]) == [
            [i * 1000.0, i * 1000 + 1.0] for i in (2, 0, 1, 2)
        ]
    assert reader.read(1, {"motion"}).a.motion[0, 0] == 1000


# --------------------------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: m.pop("b.mp4"), "half_sample"),
        (lambda m: m.update({"a.secret.npy": np.zeros((FRAMES, 2), np.float32)}), "unknown_field"),
        (lambda m: m.update({"a.motion.npy": np.zeros((FRAMES + 1, MOTION.dim), np.float32)}), "wrong_length"),
        (lambda m: m.update({"a.motion.npy": np.zeros((FRAMES, MOTION.dim + 1), np.float32)}), "wrong_width"),
        (lambda m: m.update({"a.motion.npy": np.full((FRAMES, MOTION.dim), np.nan, np.float32)}), "not_finite"),
        (lambda m: m.update({"a.motion.npy": np.zeros((FRAMES, MOTION.dim))}), "bad_dtype"),
        (lambda m: m.update({"a.flac": np.zeros(10, np.float32)}), "bad_type"),
    ],
)
def test_wrong_samples_are_not_written(tmp_path, change, reason):
    wrong = members(0, FRAMES, SIZE)
    change(wrong)
    with pytest.raises(ShardError) as caught:
        write_shard(tmp_path / "000000.tar", [("000000", meta(0, FRAMES, SIZE, "train"), wrong)])
    assert caught.value.reason == reason
    assert list(tmp_path.iterdir()) == []


def test_wrong_keys_are_not_written(tmp_path):
    sample = (meta(0, FRAMES, SIZE, "train"), members(0, FRAMES, SIZE, video=False))
    for keys in (["a.b"], ["../x"], ["0", "0"], [""]):
        with pytest.raises(ShardError, match=r"keys must be unique"):
            write_shard(tmp_path / "000000.tar", [(key, *sample) for key in keys])
    assert list(tmp_path.iterdir()) == []


class Bomb:
    def __reduce__(self):
        return (Path.touch, (Path("/tmp/af-was-executed"),))


def pickled_npy() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([Bomb()], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def npy(*shape: int) -> bytes:
    return codecs.encode_npy(np.zeros(shape, np.float32))


TAR = "train/000000.tar"
FAULTS = {
    "truncated tar": (lambda r: (r / TAR).write_bytes((r / TAR).read_bytes()[:-9000]), "truncated", "000001"),
    "no end mark": (lambda r: (r / TAR).write_bytes((r / TAR).read_bytes()[:-10240].rstrip(b"\0")), "truncated", ""),
    "not a tar": (lambda r: (r / TAR).write_bytes(b"hello"), "truncated", ""),
    "bad npy": (lambda r: replace(r / TAR, "000001.b.motion.npy", b"junk"), "bad_npy", "000001.b.motion.npy"),
    "short npy": (lambda r: replace(r / TAR, "000001.b.motion.npy", npy(9, 6)[:-1]), "bad_npy", "000001.b.motion.npy"),
    "pickle": (lambda r: replace(r / TAR, "000000.a.face.npy", pickled_npy()), "pickle", "000000.a.face.npy"),
    "wrong rows": (lambda r: replace(r / TAR, "000000.a.motion.npy", npy(5, 6)), "wrong_length", "000000.a.motion.npy"),
    "wrong width": (lambda r: replace(r / TAR, "000000.a.motion.npy", npy(6, 7)), "wrong_width", "000000.a.motion.npy"),
    "wrong sound length": (
        lambda r: replace(r / TAR, "000000.a.flac", codecs.encode_audio(np.zeros(100, np.float32))),
        "wrong_length",
        "000000.a.flac",
    ),
    "wrong video length": (
        lambda r: replace(r / TAR, "000000.b.mp4", codecs.encode_video(np.zeros((5, SIZE, SIZE, 3), np.uint8))),
        "wrong_length",
        "000000.b.mp4",
    ),
    "wrong video size": (
        lambda r: replace(r / TAR, "000000.b.mp4", codecs.encode_video(np.zeros((FRAMES, 64, 64, 3), np.uint8))),
        "wrong_size",
        "000000.b.mp4",
    ),
    "no video": (lambda r: replace(r / TAR, "000000.b.mp4", b"\0" * 99), "bad_mp4", "000000.b.mp4"),
    "half sample": (lambda r: replace(r / TAR, "000000.b.mp4", None), "half_sample", "000000.b.mp4"),
    "no json": (lambda r: replace(r / TAR, "000000.json", None), "half_sample", "000000.json"),
    "broken json": (lambda r: replace(r / TAR, "000000.json", b"{"), "bad_json", "000000.json"),
    "unknown json field": (
        lambda r: replace(r / TAR, "000000.json", changed_json(r / TAR, "000000.json", other=1)),
        "bad_json",
        "000000.json",
    ),
    "path in a name": (
        lambda r: replace(r / TAR, "000000.json", None, "../000000.json"),
        "bad_name",
        "../000000.json",
    ),
    "absolute name": (lambda r: replace(r / TAR, "000000.json", None, "/etc/x.json"), "bad_name", "/etc/x.json"),
    "dot in the key": (
        lambda r: replace(r / TAR, "000000.json", None, "000.000.json"),
        "unknown_field",
        "000.000.json",
    ),
    "unknown field": (
        lambda r: replace(r / TAR, "000000.a.flac", None, "000000.a.pkl"),
        "unknown_field",
        "000000.a.pkl",
    ),
    "link": (
        lambda r: write_tar(r / TAR, [*read_tar(r / TAR), (_link("000001.a.flac"), b"")]),
        "bad_name",
        "000001.a.flac",
    ),
    "checksum": (lambda r: _flip_last_data_byte(r / TAR), "checksum", ""),
    "not indexed": (lambda r: write_split_again(r / "train" / "000007.tar"), "not_indexed", ""),
    "missing shard": (lambda r: (r / TAR).unlink(), "missing", ""),
    "no index": (lambda r: (r / "train/index.json").unlink(), "no_index", ""),
    "split says otherwise": (
        lambda r: replace(r / TAR, "000000.json", changed_json(r / TAR, "000000.json", split="test")),
        "wrong_split",
        "000000.json",
    ),
    "other features": (
        lambda r: replace(r / TAR, "000001.json", changed_json(r / TAR, "000001.json", audio_spec=STREAMING.to_json())),
        "mixed_specs",
        "000001.json",
    ),
    "person in two splits": (
        lambda r: replace(
            r / TAR, "000001.json", changed_json(r / TAR, "000001.json", participants=["val-0-a", "someone"])
        ),
        "identity_overlap",
        "",
    ),
    "not a number": (
        lambda r: replace(r / TAR, "000000.a.motion.npy", codecs.encode_npy(np.full((6, 6), np.inf, np.float32))),
        "not_finite",
        "000000.a.motion.npy",
    ),
}


def _link(name: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
    return info


def _flip_last_data_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    info, content = next((i, d) for i, d in read_tar(path) if i.name == "000000.a.face.npy")
    data[info.offset_data + len(content) - 1] ^= 1
    path.write_bytes(bytes(data))


def write_split_again(path: Path) -> None:
    write_shard(path, [("000050", meta(50, 4, SIZE, "train"), members(50, 4, SIZE))])


@pytest.mark.parametrize("fault", FAULTS)
def test_validate_finds_and_names(copy, fault):
    Path("/tmp/af-was-executed").unlink(missing_ok=True)
    damage, reason, member = FAULTS[fault]
    damage(copy)
    report = validate(copy)
    assert not report.ok
    found = [p for p in report.problems if p.reason == reason]
    assert found, report.problems
    assert any(p.member.startswith(member) and str(copy / "train") in p.file and p.detail for p in found), found
    assert set(report.counts) <= {reason, "checksum", "half_sample"}, report.counts
    json.dumps(report.to_json())
    assert not Path("/tmp/af-was-executed").exists()


@pytest.mark.parametrize(
    "fault", ["truncated tar", "not a tar", "half sample", "broken json", "path in a name", "link", "other features"]
)
def test_index_refuses_what_it_can_see(copy, fault):
    FAULTS[fault][0](copy)
    before = (copy / "train/index.json").read_bytes()
    with pytest.raises(ShardError) as caught:
        build_index(copy / "train")
    assert "000000.tar" in str(caught.value)
    assert (copy / "train/index.json").read_bytes() == before  # the old index stays whole


def test_index_refuses_a_key_of_two_shards(copy):
    shutil.copy(copy / "train" / "000000.tar", copy / "train" / "000009.tar")
    with pytest.raises(ShardError, match=r"000009\.tar.*also in 000000\.tar"):
        build_index(copy / "train")


def test_reader_refuses_broken_members(copy):
    replace(copy / TAR, "000000.a.motion.npy", pickled_npy())
    replace(copy / TAR, "000001.a.motion.npy", npy(3, 6))
    build_index(copy / "train")
    reader = ShardReader(copy / "train")
    for i, reason in ((0, "pickle"), (1, "wrong_length")):
        with pytest.raises(ShardError, match=rf"00000{i}\.a\.motion\.npy") as caught:
            reader.read(i, {"motion"})
        assert caught.value.reason == reason
        with pytest.raises(ShardError):
            reader.read_rows(i, "a.motion.npy", 0, 2)
        assert pickle.loads(pickle.dumps(caught.value)).reason == reason
    with pytest.raises(ValueError, match="unknown fields"):
        reader.read(0, {"smell"})


def test_stale_or_absent_index_is_refused(copy):
    with pytest.raises(UserError, match=r"did you mean .*train"):
        Index.load(copy)
    (copy / TAR).write_bytes((copy / TAR).read_bytes() + b"\0" * 512)
    with pytest.raises(UserError, match="af shards index"):
        Index.load(copy / "train")
    (copy / "train/index.json").write_text("{}")
    with pytest.raises(UserError, match="broken index"):
        Index.load(copy / "train")


def test_a_split_that_is_not_there_is_said_with_those_that_are(copy):
    with pytest.raises(UserError, match=r"there is no split test, only train, val.*af shards split"):
        Index.load(copy / "test")
    with pytest.raises(UserError, match=r"no index of shards there; did you mean .*train"):
        Index.load(copy)
