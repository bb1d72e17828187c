from __future__ import annotations

import json
import os
import shutil
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from af.cli import main as cli
from af.data.parts import Share
from af.data.shards import ShardReader
from af.data.validate import validate
from af.data.video_writer import write_video
from af.errors import UserError
from af.ingest.detection import HaarDetector, make_detector
from af.ingest.options import IngestOptions
from af.ingest.run import run_ingest
from af.ingest.sources import Source
from tests.toy_videos import disc_detector, disc_video, make_video, scene, tone

OPTIONS = IngestOptions(size=32, detect_every=3)


def ingest(out: Path, *sources: Source, options: IngestOptions = OPTIONS, **where):
    return run_ingest(sources, out, options, detector=disc_detector, **where)


def pair(folder: Path, a: str = "a.mp4", b: str = "b.mp4", **more) -> Source:
    return Source(a=str(folder / a), b=str(folder / b), **more)


def loudest_hertz(sound: np.ndarray) -> float:
    return float(np.argmax(np.abs(np.fft.rfft(sound))) * 16000 / len(sound))


# ------------------------------------------------------------------------------------------------------- ingesting


def test_a_pair_becomes_a_valid_sample(tmp_path):
    """Moving faces, separate sound for one, a name with everything a shell could trip over."""
    odd = tmp_path / "a, b = c's (1) äö"
    odd.mkdir()
    disc_video(odd / "user = 1.mp4", 70, 300, face=lambda t: (40 + t / 2, 48, 12))
    disc_video(odd / "avatar, 2.mp4", 72, 900, seed=1, face=lambda t: (64, 40, 16))
    soundfile.write(odd / "voice #2.wav", np.repeat(tone(71, 600)[:, None], 2, 1), 16000)
    source = Source(
        a=str(odd / "user = 1.mp4"),
        b=str(odd / "avatar, 2.mp4"),
        audio_b=str(odd / "voice #2.wav"),
        participant_a="ann",
        participant_b="bob",
        session="talk",
    )
    report = ingest(tmp_path / "out", source)
    assert report.failed == ()
    assert report.to_json()["clips"] == 1
    assert validate(tmp_path / "out").ok
    reader = ShardReader(tmp_path / "out" / "train")
    clip, meta = reader.read(0), reader.read_meta(0)
    assert (meta.frames, meta.participants, meta.session, meta.image_size) == (70, ("ann", "bob"), "talk", 32)
    assert meta.source == {"a": "user = 1.mp4", "b": "avatar, 2.mp4"}
    assert meta.valid_mask("a").all()
    assert meta.time_range_s == (0.0, 2.8)
    assert abs(loudest_hertz(clip.a.audio) - 300) < 3
    assert abs(loudest_hertz(clip.b.audio) - 600) < 3
    for role in "ab":  # the face is in the middle of every crop and half as wide
        for frame in clip.person(role).video:
            x, y, width, height, _ = disc_detector(frame)[0]
            assert abs(x + width / 2 - 16) < 2
            assert abs(y + height / 2 - 16) < 2
            assert abs(width - 16) < 3


def test_side_by_side_and_other_rates(tmp_path):
    """One 30 fps video with two faces; the left channel is the left person."""
    left = scene(90, (96, 96), seed=1, face=lambda t: (48, 48, 12))
    right = scene(90, (96, 96), seed=2, face=lambda t: (40, 50, 14))
    frames = np.stack([np.concatenate(p, 1) for p in zip(left, right, strict=True)])
    make_video(tmp_path / "mute.mp4", [Fraction(n, 30) for n in range(90)], frames)
    both = np.stack([tone(75, 300), tone(75, 700)], 1)
    soundfile.write(tmp_path / "both.wav", both, 16000)
    make_stereo(tmp_path / "mute.mp4", both, tmp_path / "call.mkv")
    soundfile.write(tmp_path / "l.wav", tone(75, 500), 16000)
    video = str(tmp_path / "call.mkv")
    cases = [
        (Source(video=video), "mixed", (None, None)),
        (Source(video=video, stereo=True), "stereo", (300, 700)),
        (Source(video=video, audio_a=str(tmp_path / "l.wav"), audio_b="silence"), "tracks", (500, 0)),
    ]
    for number, (source, separation, hertz) in enumerate(cases):
        report = ingest(tmp_path / str(number), source)
        assert report.failed == (), report.failed
        reader = ShardReader(tmp_path / str(number) / "train")
        clip, meta = reader.read(0), reader.read_meta(0)
        assert (meta.frames, meta.separation, meta.extra["layout"]) == (75, separation, "side_by_side")
        assert meta.participants[0] != meta.participants[1]
        for role, expected in zip("ab", hertz, strict=True):
            x, _, width, _, _ = disc_detector(clip.person(role).video[40])[0]
            assert abs(x + width / 2 - 16) < 2
            if expected is not None:
                assert abs(loudest_hertz(clip.person(role).audio) - expected) < 3


def make_stereo(video: Path, sound: np.ndarray, path: Path) -> None:
    import av

    with av.open(str(video)) as source, av.open(str(path), "w") as out:
        copied = out.add_stream_from_template(source.streams.video[0])
        track = out.add_stream("pcm_s16le", rate=16000)
        track.layout = "stereo"
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = copied
                out.mux(packet)
        whole = (sound * 32767).astype(np.int16).reshape(1, -1)
        block = av.AudioFrame.from_ndarray(whole, format="s16", layout="stereo")
        block.sample_rate, block.pts, block.time_base = 16000, 0, Fraction(1, 16000)
        out.mux(track.encode(block))
        out.mux(track.encode(None))


def test_scene_cuts_and_gaps_make_clips(tmp_path):
    """60 frames, a cut, 60 frames of which 30 without a face, a cut, 90 frames: clips of 60 and of 90."""

    def frames():
        yield from scene(60, seed=1)
        yield from scene(60, seed=9, face=lambda t: (64, 48, 12) if t < 15 or t >= 45 else None)
        yield from scene(90, seed=5)

    write_video(tmp_path / "a.mp4", frames(), tone(210, 400))
    disc_video(tmp_path / "b.mp4", 210, 500)
    report = ingest(tmp_path / "out", pair(tmp_path))
    reader = ShardReader(tmp_path / "out" / "train")
    metas = [reader.read_meta(i) for i in range(len(reader))]
    assert [tuple(round(25 * s) for s in m.time_range_s) for m in metas] == [(0, 60), (120, 210)]
    for i, m in enumerate(metas):  # sound of the same instants, silence nowhere
        assert abs(loudest_hertz(reader.read(i, {"audio"}).a.audio) - 400) < 3
        assert m.session == metas[0].session
    outcome = report.outcomes[0]
    assert set(outcome.dropped_s) == {"no_face", "too_short"}
    assert outcome.dropped_s["no_face"] == pytest.approx(1.1, abs=0.2)
    assert outcome.kept_s + sum(outcome.dropped_s.values()) == pytest.approx(8.4)


BAD = {
    "no sound": (lambda f: disc_video(f / "a.mp4", 60, None), "no_audio", "a.mp4: has no audio"),
    "no face": (lambda f: disc_video(f / "b.mp4", 60, face=lambda t: None), "no_face", "b.mp4: no face found in 2.4 s"),
    "0 bytes": (lambda f: (f / "a.mp4").write_bytes(b""), "empty", "a.mp4: the file is empty"),
    "missing": (lambda f: (f / "b.mp4").unlink(), "missing", "b.mp4: no such file"),
    "not a video": (lambda f: (f / "a.mp4").write_text("hello"), "not_media", "a.mp4: not a video"),
    "cut off": (
        lambda f: (f / "a.mp4").write_bytes((f / "a.mp4").read_bytes()[:-4000]),
        "not_media",
        "a.mp4: not a video or audio file, or cut off",
    ),
    "too long": (lambda f: disc_video(f / "b.mp4", 120), "length_mismatch", "a.mp4: lasts 2.40 s, but"),
    "too short": (
        lambda f: [disc_video(f / n, 40) for n in ("a.mp4", "b.mp4")],
        "no_clip",
        "no stretch of 2 s with both faces",
    ),
    "only sound": (
        lambda f: os.replace(shutil.copy(f / "s.wav", f / "t.wav"), f / "a.mp4"),
        "no_video",
        "a.mp4: has no video",
    ),
}


def test_bad_input_is_named_and_the_rest_goes_on(tmp_path):
    sources, expected = [], []
    for n, (damage, reason, line) in enumerate(BAD.values()):
        folder = tmp_path / f"in {n}"
        folder.mkdir()
        for name in ("a.mp4", "b.mp4"):
            disc_video(folder / name, 60)
        soundfile.write(folder / "s.wav", tone(60, 300), 16000)
        damage(folder)
        sources.append(pair(folder))
        expected.append((reason, line))
    good = tmp_path / "good"
    good.mkdir()
    sources.insert(4, pair(good))
    expected.insert(4, (None, ""))
    for name in ("a.mp4", "b.mp4"):
        disc_video(good / name, 60)
    out = tmp_path / "out"
    report = ingest(out, *sources)
    for source, outcome, (reason, line) in zip(sources, report.outcomes, expected, strict=True):
        assert outcome.reason == reason, outcome
        assert line in outcome.line
        assert "\n" not in outcome.line
        if reason and reason != "no_clip":
            assert str(Path(source.a).parent) in outcome.line
    assert [p.name for p in (out / "train").iterdir() if p.suffix == ".tar"] == [f"{sources[4].id}.tar"]
    assert not [p for p in out.rglob("*") if p.name.endswith(".tmp")]
    assert validate(out).ok
    written = json.loads((out / "ingest_report.json").read_text())
    assert written["failed"] == {reason: sum(r == reason for r, _ in expected) for reason, _ in expected if reason}
    # a second run looks at nothing again; a mended file is taken up
    before = (out / "train" / f"{sources[4].id}.tar").stat().st_mtime_ns
    assert ingest(out, *sources).done_before == len(sources)
    disc_video(tmp_path / "in 2" / "a.mp4", 60)
    again = ingest(out, *sources)
    assert again.done_before == len(sources) - 1
    assert again.to_json()["clips"] == 2
    assert (out / "train" / f"{sources[4].id}.tar").stat().st_mtime_ns == before
    assert validate(out).ok


def test_a_lost_shard_is_made_again_and_a_spoilt_file_takes_its_clips_away(tmp_path):
    for name in ("a.mp4", "b.mp4"):
        disc_video(tmp_path / name, 60)
    source = pair(tmp_path)
    ingest(tmp_path / "out", source)
    shard = tmp_path / "out" / "train" / f"{source.id}.tar"
    content = shard.read_bytes()
    shard.unlink()
    ingest(tmp_path / "out", source)
    assert shard.read_bytes() == content
    (tmp_path / "a.mp4").write_bytes(b"")
    report = ingest(tmp_path / "out", source)
    assert report.outcomes[0].reason == "empty"
    assert not shard.exists()


def _broken_detector(frame):
    raise ZeroDivisionError("a bug")


def test_accidents_are_reported_and_tried_again(tmp_path):
    for name in ("a.mp4", "b.mp4"):
        disc_video(tmp_path / name, 60)
    report = run_ingest([pair(tmp_path)], tmp_path / "out", OPTIONS, detector=_broken_detector)
    assert report.outcomes[0].reason == "unexpected"
    assert "ZeroDivisionError: a bug" in report.outcomes[0].line
    assert ingest(tmp_path / "out", pair(tmp_path)).failed == ()


def test_too_little_memory_is_said_and_tried_again(tmp_path, monkeypatch):
    for name in ("a.mp4", "b.mp4"):
        disc_video(tmp_path / name, 60)

    def too_large(*_):
        raise av.error.MemoryError(12, "Cannot allocate memory")

    with monkeypatch.context() as patch:
        patch.setattr("af.data.video._ToRgb.__call__", too_large)
        (outcome,) = ingest(tmp_path / "out", pair(tmp_path)).outcomes
    assert (outcome.reason, "more memory than there is" in outcome.line) == ("memory", True)
    assert ingest(tmp_path / "out", pair(tmp_path)).failed == ()


def test_other_settings_are_refused(tmp_path):
    for name in ("a.mp4", "b.mp4"):
        disc_video(tmp_path / name, 60)
    ingest(tmp_path / "out", pair(tmp_path))
    with pytest.raises(UserError, match=r"size: 32 there, 48 asked for.*--out"):
        ingest(tmp_path / "out", pair(tmp_path), options=IngestOptions(size=48, detect_every=3))
    twice = ingest(tmp_path / "out", pair(tmp_path), pair(tmp_path))
    assert [o.reason for o in twice.outcomes] == [None, "listed_twice"]


@pytest.mark.slow
def test_workers_give_the_same_shards(tmp_path):
    sources = []
    for n in range(2):
        for name in ("a", "b"):
            disc_video(tmp_path / f"{name}{n}.mp4", 55 + n)
        sources.append(pair(tmp_path, f"a{n}.mp4", f"b{n}.mp4"))
    ingest(tmp_path / "1", *sources)
    ingest(tmp_path / "2", *sources, workers=2)
    first = {p.name: p.read_bytes() for p in (tmp_path / "1" / "train").glob("*.tar")}
    assert len(first) == 2
    assert first == {p.name: p.read_bytes() for p in (tmp_path / "2" / "train").glob("*.tar")}


def test_shares_ingest_what_one_run_does(tmp_path, capsys):
    for name in "abcdef":
        disc_video(tmp_path / f"{name}.mp4", 55)
    sources = [
        pair(tmp_path, f"{a}.mp4", f"{b}.mp4", participant_a=a, participant_b=b) for a, b in ("ab", "bc", "de", "fa")
    ]
    where = {"fractions": (0.5, 0.25, 0.25)}
    ingest(tmp_path / "one", *sources, **where)
    first = ingest(tmp_path / "two", *sources, **where, share=Share(2, 2))
    assert len(first.outcomes) == 2
    assert "share 2/2 is done; 2 of 4 parts" in capsys.readouterr().out
    assert not list((tmp_path / "two").rglob("index.json"))
    last = ingest(tmp_path / "two", *sources, **where, share=Share(1, 2))
    assert len(last.outcomes) == 4
    one, two = (
        {f.relative_to(r): f.read_bytes() for f in r.rglob("*.tar")} for r in (tmp_path / "one", tmp_path / "two")
    )
    assert one == two
    reports = [json.loads((tmp_path / name / "ingest_report.json").read_text()) for name in ("one", "two")]
    assert reports[0] == reports[1]
    assert validate(tmp_path / "two").ok


# ------------------------------------------------------------------------------------------------ detectors and cli


def test_haar_sees_no_face_in_noise_and_travels():
    import pickle

    detector = pickle.loads(pickle.dumps(HaarDetector()))
    frame = np.random.default_rng(0).integers(0, 255, (90, 120, 3), np.uint8)
    assert detector(frame).shape == (0, 5)


def test_an_opencv_without_cascades_is_named(monkeypatch):
    import cv2

    monkeypatch.delattr(cv2, "CascadeClassifier")
    with pytest.raises(UserError, match="opencv-python-headless<5"):
        make_detector("haar")


def test_command_line(tmp_path, capsys, monkeypatch):
    import af.ingest.run as module

    monkeypatch.setattr(module, "make_detector", lambda name, model=None: disc_detector)
    for name in ("a b.mp4", "c=d.mp4"):
        disc_video(tmp_path / name, 60)
    (tmp_path / "m.csv").write_text("a,b\nmissing.mp4,c=d.mp4\n")
    out = tmp_path / "out"
    command = [
        "ingest",
        "--pair",
        str(tmp_path / "a b.mp4"),
        str(tmp_path / "c=d.mp4"),
        "--out",
        str(out),
        "--size",
        "32",
    ]
    assert cli.main([*command, "--manifest", str(tmp_path / "m.csv"), "--participants", "x", "y"]) == 0
    printed = capsys.readouterr()
    assert "1 clips" in printed.out
    assert f"dropped: {tmp_path / 'missing.mp4'}: no such file" in printed.err
    assert cli.main([*command, "--participants", "x", "y"]) == 0
    assert "1 of 1 were done before" in capsys.readouterr().out
    assert cli.main(["ingest", "--out", str(out)]) == 1
    assert "nothing to ingest" in capsys.readouterr().err
    assert cli.main(["shards", "validate", str(out)]) == 0
    assert "nothing wrong" in capsys.readouterr().out
    assert cli.main(["shards", "stats", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)[0]
    assert (found["samples"], found["people"], found["image_size"], found["valid"]) == (1, 2, 32, 1.0)
    assert cli.main(["shards", "stats", str(out)]) == 0
    assert "GB of mp4" in capsys.readouterr().out
    tar = next((out / "train").glob("*.tar"))
    tar.write_bytes(tar.read_bytes()[: tar.stat().st_size // 2])
    assert cli.main(["shards", "validate", str(out), "--quick"]) == 1
    assert "truncated" in capsys.readouterr().out
    assert cli.main(["shards", "index", str(out)]) == 1
    assert str(tar) in capsys.readouterr().err
