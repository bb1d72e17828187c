"""Small made-up videos for the tests of this folder."""

from __future__ import annotations

import zlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from af.data.video_writer import write_video

FACE_COLOUR = np.array([230, 60, 40])


def make_video(
    path: Path,
    times: list[Fraction],
    frames: np.ndarray,
    *,
    rotate: int = 0,
    codec: str = "libx264",
    ticks: int = 90000,
) -> None:
    """A video whose frame i is shown at times[i] seconds."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        stream.codec_context.time_base = stream.time_base = Fraction(1, 90000)
        stream.options = {"crf": "10", "bf": "0"}
        if rotate:
            stream.set_display_rotation(rotate)
        for time, frame in zip(times, frames, strict=True):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            picture.pts, picture.time_base = round(time * 90000), Fraction(1, 90000)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))


def scene(frames: int, size: tuple[int, int] = (96, 128), *, seed: int = 0, face=lambda t: (64.0, 48.0, 12.0)):
    """Frames of a textured room with a red disc, the "face": `face(t)` is its (x, y, radius), None for no face.

    In its lower half is a dark "mouth" that opens and closes.
    """
    rng = np.random.default_rng(seed)
    room = np.kron(rng.integers(0, 120, (size[0] // 8 + 1, size[1] // 8 + 1)), np.ones((8, 8)))[: size[0], : size[1]]
    picture = np.stack([room * 0.5, room, room], -1).astype(np.uint8)
    y, x = np.mgrid[: size[0], : size[1]]
    for t in range(frames):
        frame = picture.copy()
        where = face(t)
        if where is not None:
            frame[(x - where[0]) ** 2 + (y - where[1]) ** 2 < where[2] ** 2] = FACE_COLOUR
            opening = where[2] * (0.1 + 0.15 * (1 + np.sin(1.9 * t)))
            frame[(np.abs(x - where[0]) < where[2] / 3) & (np.abs(y - where[1] - where[2] / 2) < opening)] = 10
        yield frame


def disc_detector(frame: np.ndarray) -> np.ndarray:
    """The box around the red disc: a stand-in for a face detector."""
    red = (frame[..., 0] > 150) & (frame[..., 1] < 120)
    if red.sum() < 20:
        return np.zeros((0, 5))
    rows, columns = np.flatnonzero(red.any(1)), np.flatnonzero(red.any(0))
    return np.array([[columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1, 1.0]])


def tone(frames: int, hertz: float) -> np.ndarray:
    """A sine of `frames` frames' length at 16 kHz."""
    return (0.3 * np.sin(2 * np.pi * hertz * np.arange(frames * 640) / 16000)).astype(np.float32)


def disc_video(path: Path, frames: int, hertz: float | None = 440.0, **options) -> Path:
    """A 25 fps video of a `scene` with a tone (None: without sound); other names show other rooms."""
    options.setdefault("seed", zlib.crc32(path.name.encode()))
    write_video(path, scene(frames, **options), None if hertz is None else tone(frames, hertz))
    return path
