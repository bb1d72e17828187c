"""Conversations whose parts do not fit together: estimated, said, refused beyond a limit, never moved in silence."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pytest
import soxr

from af.data.shards import ShardReader
from af.data.video_writer import write_video
from af.ingest.detection import look_through
from af.ingest.options import IngestOptions
from af.ingest.quality import lip_lag, mouth_changes, shared_lag, voice_changes
from af.ingest.run import run_ingest
from af.ingest.sources import Source, from_manifest
from af.ingest.tracks import faces_in
from af.synth.render import render
from af.synth.session import SessionConfig, simulate

SIZE, SECONDS = 64, 16
OPTIONS = IngestOptions(size=32, detect_every=5)


def face_in_the_middle(frame: np.ndarray) -> np.ndarray:
    height, width = frame.shape[:2]
    return np.array([[0.2 * width, 0.2 * height, 0.6 * width, 0.6 * height, 1.0]])


@dataclass(frozen=True)
class Talk:
    videos: dict[str, np.ndarray]
    audio: dict[str, np.ndarray]

    def write(self, folder: Path, skip_b: int = 0, bleed: float = 0.0, late_audio_a: int = 0) -> Source:
        """b's recording begins `skip_b` frames later and hears `bleed` of a; a's audio is late by frames."""
        heard = self.audio["b"] + bleed * self.audio["a"]
        late = np.roll(self.audio["a"], late_audio_a * 640)
        write_video(folder / "a.mp4", self.videos["a"], late)
        write_video(folder / "b.mp4", self.videos["b"][skip_b:], heard[skip_b * 640 :])
        return Source(a=str(folder / "a.mp4"), b=str(folder / "b.mp4"))


@pytest.fixture(scope="module")
def talk() -> Talk:
    session = simulate(8, SessionConfig(seconds=SECONDS))
    sides = {"a": session.a, "b": session.b}
    return Talk(
        {r: render(s.face, s.appearance, SIZE) for r, s in sides.items()}, {r: s.audio for r, s in sides.items()}
    )


def ingest(out: Path, source: Source, **options):
    how = IngestOptions(**{**asdict(OPTIONS), **options})
    (outcome,) = run_ingest([source], out, how, detector=face_in_the_middle).outcomes
    return outcome


def test_late_audio_is_seen_on_the_lips(talk, tmp_path):
    """To a frame, whichever way; nothing is said of audio that fits, or of another's voice."""
    talk.write(tmp_path)
    look = look_through(str(tmp_path / "a.mp4"), face_in_the_middle, 5)
    lips = mouth_changes(look, faces_in(look)[0])
    for frames in (-12, -5, 5, 12):
        voice = voice_changes(np.roll(talk.audio["a"], frames * 640), len(lips))
        lag = lip_lag(lips, voice)
        assert lag is not None
        assert abs(25 * lag.seconds - frames) <= 1
    fits = lip_lag(lips, voice_changes(talk.audio["a"], len(lips)))
    assert fits is None or abs(25 * fits.seconds) <= 1
    assert lip_lag(lips, voice_changes(talk.audio["b"], len(lips))) is None
    assert lip_lag(lips, np.zeros(len(lips))) is None


def test_late_audio_is_noted_and_kept_or_refused_beyond_the_limit(talk, tmp_path):
    source = talk.write(tmp_path, late_audio_a=5)
    noted = ingest(tmp_path / "noted", source)
    assert noted.reason is None
    (note,) = (n for n in noted.notes if n["kind"] == "offset")
    assert note["text"].startswith(f"{source.a}: its audio is about ")
    assert "s behind its lips" in note["text"]
    assert abs(25 * float(note["text"].split("about ")[1].split()[0]) - 5) <= 1
    refused = ingest(tmp_path / "refused", source, offset_limit_s=0.1)
    assert (refused.reason, refused.clips) == ("offset", 0)
    assert "more than --offset-limit 0.1" in refused.line


def test_a_shared_voice_says_how_far_the_sides_are_apart(talk, tmp_path):
    source = talk.write(tmp_path, skip_b=15, bleed=0.1)
    refused = ingest(tmp_path / "refused", source)
    assert refused.reason == "offset"
    assert f"{source.b}: what is heard in both files is about 0.60 s ahead of {source.a}" in refused.line
    assert "--offset 0.60 would fit" in refused.line
    noted = ingest(tmp_path / "noted", source, offset_limit_s=1.0)
    assert [n["kind"] for n in noted.notes if "--offset 0.60 would fit" in n["text"]] == ["offset"]
    fits = ingest(tmp_path / "fits", source, offset_s=0.6)
    assert fits.reason is None
    assert [n for n in fits.notes if n["kind"] == "offset"] == []
    apart = ingest(tmp_path / "apart", talk.write(tmp_path))
    assert [n for n in apart.notes if n["kind"] == "offset"] == []  # without a shared voice nothing is known


@pytest.mark.parametrize("offset", [0.6, -0.4])
def test_an_offset_begins_where_both_record(talk, tmp_path, offset):
    source = talk.write(tmp_path)
    (tmp_path / "m.csv").write_text(f"a,b,offset\na.mp4,b.mp4,{offset}\n")
    (source,), _ = from_manifest(tmp_path / "m.csv")
    outcome = ingest(tmp_path / "out", source)
    skipped = {"a": max(0, round(25 * offset)), "b": max(0, -round(25 * offset))}
    assert outcome.kept_s == pytest.approx(SECONDS - abs(offset), abs=1e-9)
    reader = ShardReader(tmp_path / "out" / "train")
    clip, meta = reader.read(0), reader.read_meta(0)
    for role in "ab":
        there = talk.audio[role][skipped[role] * 640 :][: len(clip.person(role).audio)]
        assert np.corrcoef(there, clip.person(role).audio[: len(there)])[0, 1] > 0.95
        assert meta.extra["first_s"][role] == pytest.approx(skipped[role] / 25)
    again = ingest(tmp_path / "out", Source(a=source.a, b=source.b, offset=0.2))  # made anew, not taken for done
    assert again.kept_s == pytest.approx(SECONDS - 0.2, abs=1e-9)


def test_drift_is_measured_at_both_ends():
    """One recorder is fast by a thousandth."""
    session = simulate(3, SessionConfig(seconds=60))
    one, other = session.a.audio, session.b.audio + 0.1 * session.a.audio
    slow = soxr.resample(other, 16000, 16016).astype(np.float32)
    lag, drift = shared_lag(one, slow)
    assert lag is not None
    assert drift == pytest.approx(1e-3, abs=2.5e-4)
    assert shared_lag(one, other)[1] == pytest.approx(0, abs=2e-4)
    assert shared_lag(one, session.b.audio) == (None, None)
    assert shared_lag(one, np.zeros_like(one)) == (None, None)


@pytest.mark.parametrize(("offset", "words"), [("x", "not a number"), ("nan", "expected seconds"), ("1e9", "expected")])
def test_offsets_that_are_none_are_named(tmp_path, offset, words):
    (tmp_path / "m.csv").write_text(f"a,b,offset\nx,y,{offset}\n")
    _, (rejected,) = from_manifest(tmp_path / "m.csv")
    assert words in rejected.line


def test_one_audio_track_for_both_and_a_voice_in_both_are_noted(talk, tmp_path):
    source = talk.write(tmp_path, bleed=0.3)
    kinds = {n["kind"] for n in ingest(tmp_path / "bleed", source).notes}
    assert "bleed" in kinds
    assert "mixed" not in kinds
    same = Source(a=source.a, b=source.b, audio_a=source.b)
    assert "mixed" in {n["kind"] for n in ingest(tmp_path / "same", same).notes}
    assert {"mixed", "bleed"}.isdisjoint(n["kind"] for n in ingest(tmp_path / "own", talk.write(tmp_path)).notes)


def test_an_offset_longer_than_the_recording_is_said(talk, tmp_path):
    outcome = ingest(tmp_path / "out", talk.write(tmp_path), offset_s=100.0)
    assert outcome.reason == "offset"
    assert "before the other begins" in outcome.line


def test_lengths_are_said_to_count_from_where_both_record(talk, tmp_path):
    """A file of 10 s does not last 1 s: that is what is left of it."""
    outcome = ingest(tmp_path / "out", talk.write(tmp_path), offset_s=SECONDS - 1)
    assert outcome.reason == "length_mismatch"
    assert f"from where both record ({SECONDS - 1:g} s into the one that began first)" in outcome.line


def test_audio_of_one_frame_changes_nowhere():
    assert voice_changes(np.ones(640, np.float32), 1).tolist() == [0.0]


def test_one_video_has_one_clock(tmp_path):
    (tmp_path / "m.csv").write_text("video,offset\nx,0.5\n")
    _, (rejected,) = from_manifest(tmp_path / "m.csv")
    assert "one clock" in rejected.line
