"""Videos of one person: one-sided shards, from files, folders and manifests, with or without a voice."""

from __future__ import annotations

import io
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

from af.cli import main as cli
from af.data.contents import extract, stats
from af.data.rearrange import split_by_identity
from af.data.schema import MUTE
from af.data.shards import ShardReader
from af.data.validate import validate
from af.errors import UserError
from af.ingest.options import IngestOptions
from af.ingest.run import run_ingest
from af.ingest.sources import Source, from_flags, from_manifest
from tests.toy_videos import disc_detector, disc_video

OPTIONS = IngestOptions(size=32, detect_every=3)


@pytest.fixture(scope="module")
def people(tmp_path_factory) -> Path:
    """A folder with a talking, a mute and a broken video, and one in a folder below."""
    folder = tmp_path_factory.mktemp("people")
    (folder / "more").mkdir()
    disc_video(folder / "voiced.mp4", 70)
    disc_video(folder / "mute.mp4", 60, None)
    disc_video(folder / "more" / "Third.MP4", 60)
    (folder / "broken.mp4").write_bytes(b"no video")
    (folder / "notes.txt").write_text("no video either")
    return folder


def test_a_folder_of_people_becomes_one_sided_shards(people, tmp_path):
    sources, rejected = from_flags([], [], [], [], singles=[str(people)])
    assert not rejected
    report = run_ingest(sources, tmp_path / "out", OPTIONS, detector=disc_detector)
    found = {Path(o.name).name: (o.clips, o.reason) for o in report.outcomes}
    assert found == {
        "voiced.mp4": (1, None),
        "mute.mp4": (1, None),
        "Third.MP4": (1, None),
        "broken.mp4": (0, "not_media"),
    }
    assert [n["kind"] for o in report.outcomes for n in o.notes if "mute.mp4" in n["text"]] == ["mute"]
    checked = validate(tmp_path / "out")
    assert checked.ok, checked.text(9)
    reader = ShardReader(tmp_path / "out" / "train")
    metas = {reader.read_meta(i).source["a"]: (i, reader.read_meta(i)) for i in range(len(reader))}
    assert {name: meta.separation for name, (_, meta) in metas.items()} == {
        "voiced.mp4": "tracks", "Third.MP4": "tracks", "mute.mp4": MUTE
    }  # fmt: skip
    for i, meta in metas.values():
        assert meta.one_sided
        assert reader.index.samples[i].roles == ("a",)
        assert meta.participants[0] == meta.participants[1]
        assert not meta.valid_mask("b").any()
        assert meta.extra["layout"] == "single"
    clips = {name: reader.read(i) for name, (i, _) in metas.items()}
    assert clips["voiced.mp4"].a.audio.any()
    assert not clips["mute.mp4"].a.audio.any()
    assert clips["mute.mp4"].b.video is None
    assert stats(tmp_path / "out")[0].one_sided == 3
    assert stats(tmp_path / "out")[0].valid == 1.0
    shown = extract(tmp_path / "out" / "train", metas["voiced.mp4"][0], tmp_path / "shown")
    assert [p.name for p in shown] == ["avatar.mp4", "avatar.wav", "avatar.png"]
    made = split_by_identity(tmp_path / "out", tmp_path / "split", (1, 1, 1), shard_bytes=10**6)
    assert sorted(len(index.samples) for index in made) == [1, 1, 1]
    assert validate(tmp_path / "split").ok


def test_who_says_that_somebody_is_silent_gets_a_voice_of_silence(people, tmp_path):
    source = Source(single=str(people / "mute.mp4"), audio_a="silence", participant_a="Ann", split="val")
    run_ingest([source], tmp_path / "out", OPTIONS, detector=disc_detector)
    meta = ShardReader(tmp_path / "out" / "val").read_meta(0)
    assert (meta.separation, meta.participants) == ("tracks", ("Ann", "Ann"))


def test_people_and_conversations_share_a_folder_and_its_splits(people, tmp_path):
    talk = Source(a=str(people / "voiced.mp4"), b=str(people / "more" / "Third.MP4"), participant_a="ann", session="s")
    solo = Source(single=str(people / "mute.mp4"), participant_a="Ann")
    run_ingest([talk], tmp_path / "out", OPTIONS, detector=disc_detector, split="test")
    report = run_ingest([talk, solo], tmp_path / "out", OPTIONS, detector=disc_detector, fractions=(1, 0, 0))
    assert {o.split for o in report.outcomes} == {"test"}  # Ann is one person
    assert validate(tmp_path / "out").ok
    reader = ShardReader(tmp_path / "out" / "test")
    assert sorted(len(s.roles) for s in reader.index.samples) == [1, 2]


def test_a_manifest_may_list_single_people(people, tmp_path):
    (tmp_path / "list.csv").write_text(
        "a,b,single,participant_a,participant_b\n"
        f",,{people / 'voiced.mp4'},ann,\n"
        f"{people / 'voiced.mp4'},{people / 'mute.mp4'},,ann,ben\n"
        f",,{people / 'mute.mp4'},ann,ben\n"
        f"{people / 'voiced.mp4'},,,ann,\n"
    )
    sources, rejected = from_manifest(tmp_path / "list.csv")
    assert [(s.roles, s.participants) for s in sources] == [(("a",), ("ann", "ann")), (("a", "b"), ("ann", "ben"))]
    assert ["participant_b is for two people" in r.line or "either two videos" in r.line for r in rejected] == [
        True
    ] * 2


def test_folders_are_searched_through_links_and_archives(people, tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "linked").symlink_to(people / "more")
    (folder / "loop").symlink_to(folder)
    (folder / ".hidden.mp4").write_bytes(b"")
    with tarfile.open(folder / "some.tar", "w") as tar:
        tar.add(people / "voiced.mp4", "voiced.mp4")
    sources, _ = from_flags([], [], [], [], singles=[str(folder)])
    assert [s.single for s in sources] == [
        str(folder / "some.tar" / "voiced.mp4"),
        str(folder / "linked" / "Third.MP4"),
    ]


def test_a_folder_without_videos_is_named(tmp_path):
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UserError, match=r"nothing: no video there"):
        from_flags([], [], [], [], singles=[str(tmp_path / "nothing")])


def test_the_command_takes_people(people, tmp_path, monkeypatch, capsys):
    import af.ingest.run as module

    monkeypatch.setattr(module, "make_detector", lambda name, model=None: disc_detector)
    words = ["--single", str(people / "voiced.mp4"), "--single", str(people / "more"), "--size", "32"]
    assert cli.main(["ingest", *words, "--out", str(tmp_path / "out")]) == 0
    assert "2 clips" in " ".join(capsys.readouterr().out.split())  # titles wrap at long paths
    assert cli.main(["ingest", *words, "--out", str(tmp_path / "other"), "--offset", "1"]) == 1
    assert "--offset is for two videos" in capsys.readouterr().err


def test_media_are_read_inside_an_archive(people, tmp_path):
    """A path through a tar gives what the file itself gives; a member that is not there is missing."""
    with tarfile.open(tmp_path / "all.tar", "w") as tar:
        tar.add(people / "voiced.mp4", "deep/voiced.mp4")
        tar.addfile(tarfile.TarInfo("empty.mp4"), io.BytesIO())
    inside = [Source(single=str(tmp_path / "all.tar" / name)) for name in ("deep/voiced.mp4", "empty.mp4", "gone.mp4")]
    report = run_ingest(inside, tmp_path / "out", OPTIONS, detector=disc_detector)
    assert [o.reason for o in report.outcomes] == [None, "empty", "missing"]
    shutil.copy(people / "voiced.mp4", tmp_path / "voiced.mp4")
    run_ingest([Source(single=str(tmp_path / "voiced.mp4"))], tmp_path / "plain", OPTIONS, detector=disc_detector)
    one, other = (ShardReader(tmp_path / name / "train").read(0) for name in ("out", "plain"))
    np.testing.assert_array_equal(one.a.video, other.a.video)
    np.testing.assert_array_equal(one.a.audio, other.a.audio)
    again = run_ingest(inside, tmp_path / "out", OPTIONS, detector=disc_detector)
    assert again.done_before == 3
