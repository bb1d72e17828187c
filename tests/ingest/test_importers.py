"""Miniature copies of public data sets in their published layouts become conversations and people."""

from __future__ import annotations

import hashlib
import json
import shutil
import tarfile
from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import soundfile

from af.cli import main as cli
from af.data.shards import ShardReader
from af.data.stores import StoreError
from af.data.validate import validate
from af.errors import UserError
from af.ingest.importers import IMPORTERS, import_set
from af.ingest.options import IngestOptions
from af.ingest.sources import SILENCE
from tests.faulty_server import FaultyServer
from tests.toy_videos import disc_detector, disc_video, make_video, scene

A, B = "V00_S0809_I00000582_P0947", "V00_S0809_I00000582_P0948A"


def imported(name: str, folder: Path):
    sources, rejected, _ = import_set(name, str(folder), IngestOptions(), folder / "out")
    return sources, Counter(r.reason for r in rejected)


def voice(path: Path, seconds: float, hertz: float) -> None:
    t = np.arange(int(48000 * seconds)) / 48000
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * hertz * t), 48000, subtype="PCM_16")


@pytest.fixture(scope="module")
def recordings(tmp_path_factory) -> Path:
    """Two people for 2.4 s, at 30 and 29.97 fps without audio, their voices of 48 kHz, and what goes with them."""
    folder = tmp_path_factory.mktemp("recordings")
    for number, (name, rate) in enumerate(((A, Fraction(30)), (B, Fraction(30000, 1001)))):
        frames = np.stack(list(scene(72, seed=number)))
        make_video(folder / f"{name}.mp4", [n / rate for n in range(72)], frames)
        voice(folder / f"{name}.wav", 2.4, 300 + 200 * number)
        (folder / f"{name}.json").write_text(json.dumps({"id": name, "metadata:vad": []}))
        np.savez(folder / f"{name}.npz", **{"boxes_and_keypoints:is_valid_box": np.ones(72, bool)})
    return folder


def seamless(recordings: Path, folder: Path, layout: str) -> Path:
    """One whole interaction of dev, one without a partner, one without a voice, one of three people."""
    copies = {name: [name] for name in (A, B)}
    copies[A] += ["V00_S0809_I00000583_P0947", "V01_S0001_I00000001_P0001"]
    copies[A] += [f"V01_S0002_I00000001_P000{n}" for n in (1, 2, 3)]
    copies[B] += ["V01_S0001_I00000001_P0002"]
    split = folder / "improvised" / "dev"
    for number, (name, names) in enumerate(copies.items()):
        for copied in names:
            for suffix in ("mp4", "wav", "json", "npz"):
                if suffix == "wav" and copied.endswith("P0002") and "I00000001" in copied:
                    continue
                kind = {"mp4": "video", "wav": "audio", "json": "vad", "npz": "boxes_and_keypoints"}[suffix]
                home = {"folder": split / "0000" / f"000{number}", "raw": split / kind}.get(
                    layout, folder / str(number)
                )
                home.mkdir(parents=True, exist_ok=True)
                shutil.copy(recordings / f"{name}.{suffix}", home / f"{copied}.{suffix}")
    if layout == "tar":  # the people of one interaction are in different archives
        (split / "0000").mkdir(parents=True)
        for number in (0, 1):
            with tarfile.open(split / "0000" / f"000{number}.tar", "w") as tar:
                for path in sorted((folder / str(number)).iterdir()):
                    tar.add(path, path.name)
            shutil.rmtree(folder / str(number))
    return folder


@pytest.mark.parametrize("layout", ["folder", "raw", "tar"])
def test_seamless_interaction_in_each_of_its_layouts(layout, recordings, tmp_path, monkeypatch, capsys):
    import af.ingest.run as module

    monkeypatch.setattr(module, "make_detector", lambda name, model=None: disc_detector)
    folder = seamless(recordings, tmp_path / "set", layout)
    _, reasons = imported("seamless", folder)
    assert reasons == {"unpaired": 2, "missing_file": 1}
    words = ["--from", "seamless", str(folder), "--size", "32", "--out", str(tmp_path / "out")]
    assert cli.main(["ingest", *words]) == 0
    said = capsys.readouterr().err
    assert "I00000583: a conversation has two people, here are 1: V00_P0947" in said
    assert "there is no voice of V01_P0002" in said
    assert "all went to train" not in said  # the set has its own splits
    assert validate(tmp_path / "out").ok
    reader = ShardReader(tmp_path / "out" / "val")
    meta, clip = reader.read_meta(0), reader.read(0)
    assert len(reader) == 1
    assert (meta.dataset, meta.licence) == ("Seamless Interaction", "CC-BY-NC-4.0")
    assert (meta.session, meta.participants) == ("V00_S0809_I00000582", ("V00_P0947", "V00_P0948A"))
    assert meta.frames == 60
    for person, hertz in ((clip.a, 300), (clip.b, 500)):
        spectrum = np.abs(np.fft.rfft(person.audio))
        assert abs(spectrum.argmax() * 16000 / len(person.audio) - hertz) < 2


def test_what_a_user_says_goes_before_the_set(recordings, tmp_path, monkeypatch, capsys):
    import af.ingest.run as module

    monkeypatch.setattr(module, "make_detector", lambda name, model=None: disc_detector)
    folder, out = seamless(recordings, tmp_path / "set", "raw"), str(tmp_path / "out")
    words = ["ingest", "--from", "seamless", str(folder), "--size", "32", "--out", out]
    assert cli.main([*words, "--licence", "bought"]) == 0
    assert ShardReader(tmp_path / "out" / "val").read_meta(0).licence == "bought"
    capsys.readouterr()
    for more, said in (
        (["--single", str(folder)], "--from goes alone"),
        (["--from", "voxceleb", str(folder)], "importers of seamless, realtalk, vico, responsenet, candor, hdtf"),
        (["--from", "hdtf", "ftp://host/set"], "unknown protocol ftp"),
        (["--from", "vico", str(folder)], "nothing in it is named as in ViCo"),
        (["--from", "vico", str(folder / "gone")], "no such folder"),
    ):
        assert cli.main([*words, *more]) == 1
        assert said in capsys.readouterr().err


def test_realtalk_is_side_by_side_with_voices_that_somebody_separated(tmp_path):
    (tmp_path / "videos").mkdir()
    disc_video(tmp_path / "5hxY5Svr2aM.avi.mp4", 10).rename(tmp_path / "5hxY5Svr2aM.avi")
    with tarfile.open(tmp_path / "videos" / "videos_00.tar", "w") as tar:
        tar.add(tmp_path / "5hxY5Svr2aM.avi", "5hxY5Svr2aM.avi")
        tar.add(tmp_path / "5hxY5Svr2aM.avi", "abcdefghijk.avi")
        tar.add(tmp_path / "5hxY5Svr2aM.avi", "lmnopqrstuv.avi")
    (tmp_path / "5hxY5Svr2aM.avi").unlink()
    (tmp_path / "voices").mkdir()
    for name in ("5hxY5Svr2aM.p0", "5hxY5Svr2aM.p1", "lmnopqrstuv.p1"):
        voice(tmp_path / "voices" / f"{name}.wav", 0.4, 200)
    sources, reasons = imported("realtalk", tmp_path)
    assert reasons == {"missing_file": 1}
    assert [(s.session, s.participants[1], Path(s.audio_b or "none").name) for s in sources] == [
        ("5hxY5Svr2aM", "5hxY5Svr2aM-p1", "5hxY5Svr2aM.p1.wav"),
        ("abcdefghijk", "abcdefghijk-p1", "none"),
    ]
    assert all(s.video.endswith(f"videos_00.tar/{s.session}.avi") for s in sources)


def test_vico_pairs_a_speaker_with_a_silent_listener(tmp_path):
    for place in ("videos", "audios"):
        (tmp_path / place).mkdir()
    for name in ("u1", "u2", "u3"):
        disc_video(tmp_path / "videos" / f"{name}.speaker.mp4", 10, None)
        voice(tmp_path / "audios" / f"{name}.wav", 0.4, 200)
    disc_video(tmp_path / "videos" / "u1.listener.mp4", 10, None)
    listed = "video_id,uuid,speaker_id,listener_id\nv,u1,7,9\nv,u2,7,9\nw,u3,8,\n"
    (tmp_path / "listening_head.csv").write_text(listed)
    (tmp_path / "talking_head.csv").write_text("video_id,uuid,speaker_id\nv,u1,7\n")
    sources, reasons = imported("vico", tmp_path)
    assert reasons == {"missing_file": 1}
    assert [(s.session, s.participants, s.audio_b, s.roles) for s in sources] == [
        ("u1", ("vico-7", "vico-9"), SILENCE, ("a", "b")),
        ("u3", ("vico-8", "vico-8"), None, ("a",)),
    ]


def test_responsenet_pairs_equal_names(tmp_path):
    for name, without in (("0001", ""), ("0002", "listener"), ("0003", "audio/listener")):
        for kind, suffix in (("video", "mp4"), ("audio", "wav")):
            for person in ("speaker", "listener"):
                if not without or without not in f"{kind}/{person}":
                    (home := tmp_path / "val" / kind / person / "sp1").mkdir(parents=True, exist_ok=True)
                    (home / f"{name}.{suffix}").write_bytes(f"{name}{person}{kind}".encode())
    sources, reasons = imported("responsenet", tmp_path)
    assert reasons == {"unpaired": 1, "missing_file": 1}
    (source,) = sources
    assert (source.session, source.split) == ("sp1/0001", "val")
    assert [Path(p).relative_to(tmp_path).as_posix() for p in source.files] == [
        "val/video/speaker/sp1/0001.mp4",
        "val/video/listener/sp1/0001.mp4",
        "val/audio/speaker/sp1/0001.wav",
        "val/audio/listener/sp1/0001.wav",
    ]


def test_candor_takes_the_video_of_each_person(tmp_path):
    odd = (("c3", "", ""), ("c5", ("../c1/processed/x", "y"), "y"), ("c6", "xx", "x"))
    for call, people, videos in (("c1", "xy", "xy"), ("c2", "xz", "x"), *odd):
        (home := tmp_path / call / "processed").mkdir(parents=True)
        (home / "channel_map.json").write_text(json.dumps(dict(zip("LR", people, strict=False))))
        for person in [*videos, call]:
            (home / f"{person}.mp4").write_bytes(f"{call}{person}".encode())
    with tarfile.open(tmp_path / "part.tar", "w") as tar:
        tar.add(tmp_path / "c1", "c4")
    sources, reasons = imported("candor", tmp_path)
    assert reasons == {"missing_file": 1, "bad_row": 3}
    assert sorted((s.session, s.participants, Path(s.b).name, s.audio_a) for s in sources) == [
        ("c1", ("candor-x", "candor-y"), "y.mp4", None),
        ("c4", ("candor-x", "candor-y"), "y.mp4", None),
    ]


def test_a_set_behind_a_url_is_fetched_once_and_read_like_a_folder(recordings, tmp_path, monkeypatch):
    monkeypatch.setenv("AF_STORE_ATTEMPTS", "2")
    web, out = tmp_path / "web", tmp_path / "out"
    seamless(recordings, web / "my set", "raw")
    video = web / "my set" / "improvised" / "dev" / "video" / f"{A}.mp4"
    sums = f"{hashlib.sha256(video.read_bytes()).hexdigest()}  video/{video.name}\n"
    (video.parents[1] / "SHA256SUMS").write_text(sums)
    with FaultyServer(web).running() as server:

        def read(place):
            sources, rejected, _ = import_set("seamless", f"{server.url}/{place}", IngestOptions(), out)
            return sources, Counter(r.reason for r in rejected)

        server.faults = lambda path, before: "cut" if path.endswith(".mp4") else None
        with pytest.raises(StoreError, match=r"\.mp4: could not be read in 2 attempts.*what was fetched is kept"):
            read("my%20set")
        server.faults = lambda path, before: "short" if path.endswith(f"{A}.mp4") and before == 2 else None
        sources, reasons = read("my%20set")
        assert ([s.session for s in sources], reasons) == (["V00_S0809_I00000582"], {"unpaired": 2, "missing_file": 1})
        assert sources[0].split == "val"
        assert Path(sources[0].a).read_bytes() == video.read_bytes()
        assert not list(out.rglob("*.npz"))  # not needed, so not fetched
        server.asked.clear()
        assert read("my set")[0] == sources  # the same URL in another spelling
        assert [path for path in server.asked if path.endswith((".mp4", ".wav"))] == []
        Path(sources[0].a).unlink()
        video.write_bytes(video.read_bytes()[:-1] + b"!")
        with pytest.raises(UserError, match=r"SHA-256 is .*; deleted"):
            read("my%20set")
        (web / "notes").mkdir()
        for place, said in (("none", "no such file"), ("notes", "lists no files that end with .mp4, .tar, .wav")):
            with pytest.raises(UserError, match=said):
                read(place)


def test_a_tar_behind_a_url_keeps_its_split(recordings, tmp_path):
    seamless(recordings, tmp_path / "improvised" / "dev", "folder")
    archive = tmp_path / "web" / "improvised" / "dev" / "0000" / "0005.tar"
    archive.parent.mkdir(parents=True)
    with tarfile.open(archive, "w") as tar:
        for path in (tmp_path / "improvised").rglob(f"{A[:19]}*"):
            tar.add(path, path.name)
    with FaultyServer(tmp_path / "web").running() as server:
        place = f"{server.url}/improvised/dev/0000/0005.tar"
        (source,), rejected, options = import_set("seamless", place, IngestOptions(), tmp_path / "out")
    assert (source.split, rejected, options.licence) == ("val", [], "CC-BY-NC-4.0")


def test_hdtf_is_of_people_alone_and_says_which_clips_are_missing(tmp_path):
    for name in ("Radio11_0", "RD_Radio12_000", "WDA_AmyKlobuchar0_000", "AmyKlobuchar1_0", "WRA_Whole"):
        disc_video(tmp_path / f"{name}.mp4", 10)
    (tmp_path / "RD_annotion_time.txt").write_text("Radio11.mp4 00:30-01:00 01:30-02:30\nRadio12.mp4 00:25-01:00\n")
    (tmp_path / "WRA_annotion_time.txt").write_text("Whole.mp4 00:05-01:00\n")
    sources, rejected, _ = import_set("hdtf", str(tmp_path), IngestOptions(), tmp_path / "out")
    assert {s.participants[0] for s in sources} == {"hdtf-Radio11", "hdtf-Radio12", "hdtf-AmyKlobuchar", "hdtf-Whole"}
    assert len(sources) == 5
    assert [r.line.partition(": ")[2] for r in rejected] == ["1 of its 3 clips are not there, such as Radio11_1.mp4"]


def test_every_importer_is_documented():
    text = (Path(__file__).parents[2] / "docs" / "datasets.md").read_text()
    for name, importer in IMPORTERS.items():
        assert f"--from {name}" in text
        assert importer.dataset in text


def test_a_broken_archive_is_named(tmp_path):
    (tmp_path / "0000.tar").write_bytes(b"no tar" * 999)
    with pytest.raises(UserError, match=r"0000\.tar: not a complete tar"):
        imported("seamless", tmp_path)
