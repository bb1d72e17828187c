"""What is measured of clips: known signals give the values that they have by definition."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

from af.data.index import Index
from af.data.shards import ShardReader
from af.ingest.measures import crosstalk_db, look_at_face, loudness_lufs, pose_measures, voice_measures
from af.ingest.options import IngestOptions
from af.ingest.page import PAGE
from af.ingest.report import REPORT
from af.ingest.run import run_ingest
from af.ingest.sources import Source
from af.synth.session import SessionConfig, simulate
from tests.toy_videos import disc_detector, disc_video

RATE = 16000


def sine(hertz: float, seconds: float = 4.0) -> np.ndarray:
    return np.sin(2 * np.pi * hertz * np.arange(int(RATE * seconds)) / RATE).astype(np.float32)


def test_loudness_is_that_of_the_standard():
    """A full-scale sine of 997 Hz is at -3.01 LUFS; pauses do not count; silence is at the gate."""
    assert loudness_lufs(sine(997)) == pytest.approx(-3.01, abs=0.06)
    assert loudness_lufs(0.1 * sine(997)) == pytest.approx(-23.01, abs=0.06)
    paused = np.concatenate([0.1 * sine(997), np.zeros(RATE * 20, np.float32)])
    assert loudness_lufs(paused) == pytest.approx(-23.01, abs=0.5)
    assert loudness_lufs(sine(40)) < loudness_lufs(sine(997)) - 4  # K weighting
    assert loudness_lufs(np.zeros(10, np.float32)) == -70


@pytest.fixture(scope="module")
def voices():
    session = simulate(10, SessionConfig(seconds=16))
    return session.a.audio, session.b.audio


@pytest.mark.parametrize("level", [-25.0, -15.0, -6.0])
def test_crosstalk_is_the_level_of_the_leak(voices, level):
    """Through a room, of one voice into the other's microphone and not the other way."""
    a, b = voices
    room = np.zeros(800)
    room[[10, 200, 500, 700]] = 1, 0.5, -0.4, 0.2
    leak = np.convolve(a, room)[: len(a)]
    heard = (b + 10 ** (level / 20) * a.std() / leak.std() * leak).astype(np.float32)
    assert crosstalk_db(heard, a) == pytest.approx(level, abs=1.5)
    assert crosstalk_db(a, heard) < -25
    late = np.pad(heard, (RATE // 2, 0))[: len(heard)]
    moved = voice_measures({"a": a, "b": late}, "b", 400, lag_s=0.5)["crosstalk"]
    assert moved == pytest.approx(level, abs=1.5)


def test_crosstalk_of_separate_of_equal_and_of_silent_tracks(voices):
    a, b = voices
    assert crosstalk_db(b, a) < -25
    assert crosstalk_db(a, a) == pytest.approx(0, abs=0.1)
    assert crosstalk_db(a, 0 * a) is None
    assert crosstalk_db(a[:1000], b[:1000]) is None
    assert voice_measures({"a": a}, "a", 400)["crosstalk"] is None  # alone


def test_sharpness_falls_with_blur_and_with_small_faces_not_with_the_size_of_the_frame():
    rng = np.random.default_rng(0)
    image = np.kron(rng.integers(60, 200, (64, 64, 1)), np.ones((4, 4, 3))).astype(np.uint8)
    box = np.array([0.0, 0, 256])
    found = look_at_face(image, box)
    sharp = found["sharpness"]
    assert found["brightness"] == pytest.approx(130, abs=10)
    assert 90 < found["contrast"] < 140
    assert found["colour"] == 0
    red = image.copy()
    red[64:192, 64:192, 1:] -= 50  # the middle alone
    assert look_at_face(red, box)["colour"] == 50
    blurred = [look_at_face(cv2.GaussianBlur(image, (0, 0), sigma), box)["sharpness"] for sigma in (1, 2, 4)]
    assert sharp > blurred[0] > blurred[1] > blurred[2]
    small = cv2.resize(image, (48, 48), interpolation=cv2.INTER_AREA)
    assert look_at_face(small, box * 48 / 256)["sharpness"] < 0.5 * sharp
    large = cv2.resize(image, (512, 512), interpolation=cv2.INTER_NEAREST)
    assert look_at_face(large, 2 * box)["sharpness"] == pytest.approx(sharp, rel=0.35)


def test_pose_is_a_range_in_degrees():
    pose = np.radians(np.stack([np.linspace(-40, 10, 101), np.linspace(0, 20, 101), np.full(101, 3.0)], 1))
    found = pose_measures(pose)
    assert found["yaw_deg"] == pytest.approx(37.5, abs=1)
    assert found["pitch_deg"] == pytest.approx(18, abs=1)
    assert found["roll_deg"] == pytest.approx(0, abs=1e-6)
    assert pose_measures(None) == pose_measures(pose[:0]) == dict.fromkeys(found)


def test_clips_are_measured_dropped_by_a_condition_and_shown(tmp_path):
    """A blurred video is dropped with its numbers; the page shows both, with images of each."""
    for name, hertz in (("a", 300), ("b", 500), ("c", 700)):
        disc_video(tmp_path / f"{name}.mp4", 75, hertz)
    pairs = [Source(a=str(tmp_path / f"{x}.mp4"), b=str(tmp_path / f"{y}.mp4")) for x, y in ("ab", "bc")]
    disc_video(tmp_path / "mute.mp4", 75, None)
    pairs.append(Source(single=str(tmp_path / "mute.mp4")))
    (tmp_path / "broken.mp4").write_bytes(b"x")
    pairs.append(Source(a=str(tmp_path / "a.mp4"), b=str(tmp_path / "broken.mp4")))
    out = tmp_path / "out"
    options = IngestOptions(size=32, detect_every=3)
    run_ingest(pairs, out, options, detector=disc_detector)
    samples = Index.load(out / "train").samples
    sample = next(s for s in samples if len(s.roles) == 2)
    alone = next(s for s in samples if len(s.roles) == 1)
    assert alone.quality.keys() == {"a"}
    assert alone.quality["a"]["loudness"] is None  # unknown, not silent
    media = ShardReader(out / "train").read_meta(samples.index(sample)).extra["media"]
    assert media["a"]["audio"]["track"] == "1 of 1: the only one"
    assert media["a"]["video"]["fps"] == pytest.approx(25, abs=0.1)
    measured = sample.quality["a"]
    assert measured["face_px"] == pytest.approx(24, abs=3)  # the disc's diameter
    assert measured["valid"] == 1
    assert measured["voice"] > 0.9
    assert measured["yaw_deg"] is None
    strict = tmp_path / "strict"
    report = run_ingest(
        pairs, strict, IngestOptions(size=32, detect_every=3, keep="face_px > 100"), detector=disc_detector
    )
    assert {o.reason for o in report.outcomes} == {"quality", "not_media"}
    assert not list(strict.glob("train/*.tar"))
    assert "not face_px > 100 (face_px 2" in report.outcomes[0].line
    (cut,) = json.loads((strict / REPORT).read_text())["outcomes"][0]["cuts"]
    assert cut["quality"]["b"]["sharpness"] > 0
    for folder, kept in ((out, 3), (strict, 0)):
        page = (folder / PAGE).read_text()
        assert page.count('<article class="kept-card">') == kept
        assert page.count('<article class="dropped-card">') == 4 - kept
        assert page.count("data:image/jpeg;base64,") == 4
        assert "http" not in page
