"""Interlaced, joined, cut and damaged videos: what can be shown is, and what is lost is said."""

from __future__ import annotations

import itertools
import struct
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from af.data.container import MediaError, Notes
from af.data.video import iter_video, read_video
from tests.data.test_video import corners, kinds, place, write
from tests.toy_videos import make_video, scene


def test_interlaced_pictures_are_made_whole(tmp_path):
    """A bright bar moves between the two fields of a picture: its edges must not look like combs."""

    def bar(t: float) -> np.ndarray:
        picture = np.full((96, 128, 3), 40, np.uint8)
        picture[:, 10 + int(8 * t) : 30 + int(8 * t)] = 220
        return picture

    pictures = []
    for n in range(10):
        woven = bar(n + 0.5)
        woven[1::2] = bar(n)[1::2]  # the lower field is the first one
        pictures.append(woven)
    fields = {"flags": "+ildct+ilme", "x264-params": "bff=1"}
    file = write(tmp_path / "in.mkv", pictures, "libx264", "yuv420p", **fields)

    def combs(frame: np.ndarray) -> float:
        rows = frame.mean(-1)
        return float(np.abs(rows[1:-1] - (rows[:-2] + rows[2:]) / 2).mean())

    notes = Notes()
    frames = list(iter_video(file, notes=notes))
    assert len(frames) == len(pictures)
    assert np.mean([combs(f) for f in frames[2:-2]]) < 0.2 * np.mean([combs(p) for p in pictures[2:-2]])
    assert kinds(notes) == ["interlaced"]
    for n, frame in enumerate(frames[1:-1], 1):  # in time, too
        columns = frame[1::2].mean((0, 2))
        assert abs(np.flatnonzero(columns > 130).mean() - (10 + 8 * n + 9.5)) <= 3


def joined(path: Path, *files: Path) -> Path:
    path.write_bytes(b"".join(f.read_bytes() for f in files))
    return path


def test_another_size_of_the_same_shape_is_followed(tmp_path):
    for sizes in ([(96, 128), (48, 64)], [(48, 64), (96, 128)]):
        parts = [
            write(tmp_path / f"{n}.ts", [corners(*size)] * 25, pixels="yuv420p", start_s=float(n))
            for n, size in enumerate(sizes)
        ]
        notes = Notes()
        frames = list(iter_video(joined(tmp_path / "in.ts", *parts), notes=notes))
        assert len(frames) == pytest.approx(50, abs=2)
        assert {f.shape for f in frames} == {(*sizes[0], 3)}
        assert "size" in kinds(notes)
        for frame in frames[:3] + frames[-3:]:
            wanted = cv2.resize(corners(96, 128), frame.shape[1::-1], interpolation=cv2.INTER_AREA)
            assert np.abs(frame.astype(int) - wanted).mean() < 12


def test_another_shape_is_refused_with_both_sizes(tmp_path):
    wide = write(tmp_path / "1.ts", [corners(96, 128)] * 25, pixels="yuv420p")
    tall = write(tmp_path / "2.ts", [corners(128, 96)] * 25, pixels="yuv420p", start_s=1.0)
    with pytest.raises(MediaError, match="from 128 x 96 to 96 x 128") as caught:
        list(iter_video(joined(tmp_path / "in.ts", wide, tall)))
    assert caught.value.reason == "size_change"


def _damaged(source: Path, target: Path, how: str, rng: np.random.Generator, first: int, last: int) -> None:
    """`source` again, with packets from `first` to `last` lost, cut off or of noise."""
    with av.open(str(source)) as whole, av.open(str(target), "w") as out:
        stream = out.add_stream_from_template(whole.streams.video[0])
        for n, packet in enumerate(p for p in whole.demux() if p.size):
            data = bytes(packet)
            if first <= n < last:
                if how == "lost":
                    continue
                at = len(data) // 3
                data = data[:at] if how == "cut" else data[:at] + rng.bytes(len(data) - at)
            copy = av.Packet(data)
            copy.pts, copy.dts, copy.time_base, copy.duration = (
                packet.pts,
                packet.dts,
                packet.time_base,
                packet.duration,
            )
            copy.is_keyframe, copy.stream = packet.is_keyframe, stream
            out.mux(copy)


_DAMAGES = [
    *itertools.product([("libx264", "0"), ("libx264", "2"), ("mpeg4", "0")], ["lost", "cut", "noise"]),
    *itertools.product([("libx265", "0")], ["lost", "cut"]),  # FFmpeg decodes noise in HEVC and VP9 without a word
    (("libvpx-vp9", "0"), "lost"),
]


@pytest.mark.parametrize(("coding", "how"), _DAMAGES)
@pytest.mark.parametrize("first", [30, 34, 44])
def test_what_damage_spoils_is_said(tmp_path, coding, how, first):
    """Every frame that is not called bad is the one of the whole file; after the next key picture all are good."""
    moving = list(scene(100, face=lambda t: (20 + t * 0.8, 48 + 20 * np.sin(t / 5), 14.0)))
    codec, bframes = coding
    options = {"g": "20", "bf": bframes, **({"sc_threshold": "0"} if codec == "libx264" else {"qscale": "2"})}
    encoded = write(tmp_path / "encoded.mkv", moving, codec, "yuv420p", **options)
    whole, rng = tmp_path / "whole.mkv", np.random.default_rng(first)
    _damaged(encoded, whole, how, rng, 0, 0)
    _damaged(encoded, tmp_path / "in.mkv", how, rng, first, first + 4)
    notes, bad = Notes(), set()
    frames = list(iter_video(tmp_path / "in.mkv", notes=notes, bad=bad))
    right = read_video(whole)
    wrong = {n for n in range(len(right)) if np.abs(frames[n].astype(int) - right[n]).max(-1).mean() > 4}
    assert wrong <= bad
    assert bad <= set(range(first - 4, 40 if first < 40 else 60))
    assert kinds(notes) == ["corruption"]


def test_a_damaged_video_stays_upright(tmp_path):
    """What the container says of its pictures still counts after the damage."""
    file = write(tmp_path / "whole.mp4", [corners(64, 96)] * 60, pixels="yuv420p", g="20", bf="0")
    data = bytearray(file.read_bytes())
    at = data.index(b"tkhd") + 44
    data[at : at + 36] = struct.pack(">9i", 0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30)
    file.write_bytes(data)
    _damaged(file, tmp_path / "in.mov", "noise", np.random.default_rng(0), 25, 28)
    bad: set[int] = set()
    frames = list(iter_video(tmp_path / "in.mov", bad=bad))
    assert bad
    assert len(frames) > 50
    for frame in (frames[0], frames[-1]):
        assert np.abs(frame.astype(int) - place(corners(64, 96), (0, 1, -1, 0))).mean() < 8


def test_lost_packets_of_a_transport_stream_are_noticed(tmp_path):
    moving = list(scene(100, face=lambda t: (20 + t * 0.8, 48 + 20 * np.sin(t / 5), 14.0)))
    whole = write(tmp_path / "whole.ts", moving, "libx264", "yuv420p", g="50", bf="0", sc_threshold="0")
    data = np.frombuffer(whole.read_bytes(), np.uint8).reshape(-1, 188)
    kept = np.ones(len(data), bool)
    kept[len(data) // 3 : len(data) // 3 + 4] = False
    (tmp_path / "in.ts").write_bytes(data[kept].tobytes())
    bad: set[int] = set()
    frames, right = list(iter_video(tmp_path / "in.ts", bad=bad)), read_video(whole)
    count = min(len(frames), len(right))
    wrong = {n for n in range(count) if np.abs(frames[n].astype(int) - right[n]).max(-1).mean() > 4}
    assert bad
    assert wrong <= bad
    assert len(bad) <= 52


@pytest.mark.parametrize("late_s", [0.08, 1.0])
def test_pictures_that_begin_after_the_sound_are_not_seen_before(tmp_path, late_s):
    """The start of a file is lost up to a key picture, or its camera came on late; two frames are a matter of codecs."""
    frames = list(scene(30, (64, 96)))
    with av.open(str(tmp_path / "in.mkv"), "w") as container:
        pictures, sound = container.add_stream("ffv1", rate=25), container.add_stream("pcm_s16le", rate=16000)
        pictures.width, pictures.height, pictures.pix_fmt = 96, 64, "yuv444p"
        sound.codec_context.layout = "mono"
        noise = av.AudioFrame.from_ndarray(np.ones((1, 32000), np.int16), format="s16", layout="mono")
        noise.sample_rate, noise.pts = 16000, 0
        container.mux(sound.encode(noise))
        for n, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            picture.pts, picture.time_base = n + round(25 * late_s), Fraction(1, 25)
            container.mux(pictures.encode(picture))
        container.mux(pictures.encode(None))
    notes, bad = Notes(), set()
    shown = list(iter_video(tmp_path / "in.mkv", notes=notes, bad=bad))
    assert len(shown) == 30 + round(25 * late_s)
    assert bad == (set(range(25)) if late_s == 1 else set())
    assert ["its images begin at 1.00 s" in note.text for note in notes] == [True] * (late_s == 1)


@pytest.mark.parametrize(("every", "noted"), [(1, False), (3, True)])
def test_few_pictures_a_second_are_noted(tmp_path, every, noted):
    frames = np.stack(list(scene(40)))[::every]
    make_video(tmp_path / "in.mp4", [Fraction(n * every, 25) for n in range(len(frames))], frames)
    notes = Notes()
    assert len(list(iter_video(tmp_path / "in.mp4", notes=notes))) == pytest.approx(40, abs=3)
    assert [note.text.split(": ", 1)[1] for note in notes] == ["8.33 images per second: movements are jerky"] * noted
