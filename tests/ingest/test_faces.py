"""Several faces in an image, and images that stand still: whose face is taken, and what is said about it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from af.cli import main as cli
from af.data.container import Notes
from af.data.shards import ShardReader
from af.data.video_writer import write_video
from af.ingest.detection import look_through
from af.ingest.options import FACES, IngestOptions
from af.ingest.run import run_ingest
from af.ingest.sources import Source, from_manifest
from af.ingest.tracks import faces_in
from af.synth.render import render
from af.synth.session import SessionConfig, simulate

SMALL, LARGE = 48, 96
OPTIONS = IngestOptions(size=32, detect_every=5)
#: (x, y, side) of the two faces' images in a frame of 160 x 96 pixels.
PLACES = {"small": (108, 24, SMALL), "large": (0, 0, LARGE)}


def both(frame: np.ndarray) -> np.ndarray:
    """The boxes of the two drawn faces, the large one first; the middle of any other image."""
    if frame.shape[:2] != (96, 160):
        height, width = frame.shape[:2]
        return np.array([[0.2 * width, 0.2 * height, 0.6 * width, 0.6 * height, 1.0]])
    return np.array(
        [[x + 0.2 * s, y + 0.2 * s, 0.6 * s, 0.6 * s, 1.0] for x, y, s in (PLACES["large"], PLACES["small"])]
    )


def stage(small: np.ndarray, large: np.ndarray):
    for one, other in zip(small, large, strict=True):
        frame = np.full((96, 160, 3), 90, np.uint8)
        for image, (x, y, side) in ((one, PLACES["small"]), (other, PLACES["large"])):
            frame[y : y + side, x : x + side] = image
        yield frame


@pytest.fixture(scope="module")
def people(tmp_path_factory) -> Path:
    """small.mp4: the small one talks, the large one listens; large.mp4 the other way round; still.mp4: the large one is a
    image; frozen.mp4: both are; alone.mp4: one talking face.
    """
    folder = tmp_path_factory.mktemp("people")
    session = simulate(8, SessionConfig(seconds=8))
    talker, listener = session.a, session.b
    talks, listens = ({s: render(p.face, p.appearance, s) for s in (SMALL, LARGE)} for p in (talker, listener))
    stands = np.repeat(listens[LARGE][:1], session.frames, 0)
    videos = {
        "small": stage(talks[SMALL], listens[LARGE]),
        "large": stage(listens[SMALL], talks[LARGE]),
        "still": stage(talks[SMALL], stands),
        "frozen": stage(np.repeat(talks[SMALL][:1], session.frames, 0), stands),
        "alone": iter(talks[LARGE]),
    }
    for name, frames in videos.items():
        write_video(folder / f"{name}.mp4", frames, talker.audio)
    return folder


def ingest(out: Path, a: Path, b: Path, detector=both, audio_a: str | None = None, **options):
    source = Source(a=str(a), b=str(b), audio_a=audio_a)
    (outcome,) = run_ingest([source], out, IngestOptions(**{**asdict(OPTIONS), **options}), detector=detector).outcomes
    return outcome


def taken(out: Path) -> str:
    """Which of the two faces a's crops show."""
    x, _, side = ShardReader(out / "train").read_meta(0).crop_boxes["a"][0]
    return "small" if x + side / 2 > 100 else "large"


def test_all_faces_are_found(people):
    look = look_through(str(people / "small.mp4"), both, 5)
    assert [round(float(np.nanmedian(path[:, 2]))) for path in faces_in(look)] == [58, 29]


@pytest.mark.parametrize(
    ("video", "voice", "expected", "why"),
    [
        ("small", None, "small", "which moves with the voice"),
        ("large", None, "large", "which moves with the voice"),
        ("still", None, "small", "which moves with the voice"),
        ("still", "silence", "small", "the largest that moves"),
        ("small", "silence", "large", "the largest; it is not clear which one speaks"),
    ],
)
def test_the_face_that_moves_with_the_voice_is_taken_and_said(people, tmp_path, video, voice, expected, why):
    outcome = ingest(tmp_path / "out", people / f"{video}.mp4", people / "alone.mp4", audio_a=voice)
    assert outcome.reason is None
    assert taken(tmp_path / "out") == expected
    (note,) = (n for n in outcome.notes if n["kind"] == "faces")
    assert note["text"].startswith(f"{people / video}.mp4: 2 faces")
    assert why in note["text"]
    assert "--face" in note["text"]


@pytest.mark.parametrize(("wish", "expected"), [("left", "large"), ("right", "small"), ("largest", "large")])
def test_another_face_can_be_asked_for(people, tmp_path, wish, expected):
    assert ingest(tmp_path / "out", people / "small.mp4", people / "alone.mp4", face=wish).reason is None
    assert taken(tmp_path / "out") == expected


def test_a_single_users_video_shows_the_one_who_speaks(people):
    from af.data.audio import read_audio
    from af.ingest.crops import face_frames

    notes = Notes()
    voice = read_audio(people / "still.mp4")
    frames = list(face_frames(people / "still.mp4", 32, detector=both, notes=notes, voice=voice))
    assert np.ptp(np.stack(frames).astype(int), axis=0).max() > 30  # the large one is an image
    (note,) = (n for n in notes if n.kind == "faces")
    assert "for another one crop the video" in note.text


def test_a_row_can_ask_for_its_own_face(people, tmp_path):
    assert "talking" in FACES
    table = tmp_path / "m.csv"
    table.write_text(f"a,b,face_a\n{people / 'small.mp4'},{people / 'alone.mp4'},Left\n")
    (source,), _ = from_manifest(table)
    run_ingest([source], tmp_path / "out", OPTIONS, detector=both)
    assert taken(tmp_path / "out") == "large"
    table.write_text("a,b,face_a\nx,y,middle\n")
    _, (rejected,) = from_manifest(table)
    assert "face_a 'middle': allowed are talking, largest, left, right" in rejected.line


def test_a_picture_that_never_moves_is_dropped_by_name(people, tmp_path):
    for number, (video, face) in enumerate([("frozen", "talking"), ("still", "largest")]):
        outcome = ingest(tmp_path / str(number), people / f"{video}.mp4", people / "alone.mp4", face=face)
        assert (outcome.reason, outcome.clips) == ("still", 0)
        assert outcome.line.startswith(f"{people / video}.mp4: the image never changes")


def test_a_call_that_froze_is_noted(people, tmp_path):
    from af.data.audio import read_audio
    from af.data.video import read_video

    frames = read_video(people / "alone.mp4")
    held = np.concatenate([frames[:50], np.repeat(frames[49:50], 75, 0), frames[50:]])
    write_video(tmp_path / "froze.mp4", held, np.resize(read_audio(people / "alone.mp4"), len(held) * 640))
    outcome = ingest(tmp_path / "out", tmp_path / "froze.mp4", people / "small.mp4", length_tolerance_s=9)
    (note,) = (n for n in outcome.notes if n["kind"] == "movement")
    assert outcome.reason is None
    assert "froze.mp4: the image is frozen for 3.0 of 8.0 s, longest for 3.0 s from 2.0 s on" in note["text"]


def test_notes_are_in_the_report_and_on_the_console(people, tmp_path, capsys, monkeypatch):
    import json

    import af.ingest.run as module

    monkeypatch.setattr(module, "make_detector", lambda name, model=None: both)
    out = tmp_path / "out"
    command = ["ingest", "--pair", str(people / "small.mp4"), str(people / "alone.mp4"), "--out", str(out)]
    assert cli.main([*command, "--size", "32"]) == 0
    said = capsys.readouterr().err
    assert "noted: 1 x faces, 1 x mixed" in said
    assert "  faces: " in said
    report = json.loads((out / "ingest_report.json").read_text())
    assert report["notes_by_kind"] == {"faces": 1, "mixed": 1}  # both have one sound here
    assert report["outcomes"][0]["notes"][0]["kind"] == "faces"
    assert cli.main([*command, "--size", "32"]) == 0  # what was done before keeps its notes
    assert "noted: 1 x faces, 1 x mixed" in capsys.readouterr().err
