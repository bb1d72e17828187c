"""Media files through PyAV in bounded memory: any video as constant 25 fps RGB, any sound as 16 kHz mono
(`af.data.video_writer` writes them).

Times are counted from the start of the file (the earliest stream), so that pictures and sound stay together whatever
their containers' offsets are.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import soxr
from av.video.reformatter import VideoReformatter
from jaxtyping import Float32, UInt8

from af.clock import FPS, SAMPLE_RATE, frames_to_samples, seconds_to_samples
from af.data.notes import Notes
from af.data.video_writer import write_video
from af.errors import UserError

__all__ = ["MediaError", "MediaInfo", "fit_audio", "iter_video", "probe", "read_audio", "read_video", "write_video"]

#: Sound that starts later than the clock says by more than this gets silence before it (dropped packets).
_GAP_S = 0.04


class MediaError(UserError):
    """A media file cannot be used: `reason` is a short word for counting, the text names file and reason."""

    def __init__(self, path: Path | str, reason: str, text: str) -> None:
        super().__init__(f"{path}: {text}")
        self.path, self.reason, self.text = str(path), reason, text

    def __reduce__(self) -> tuple[Any, ...]:  # errors travel from worker processes
        return (type(self), (self.path, self.reason, self.text))


@dataclass(frozen=True)
class MediaInfo:
    """What a file says about itself. Durations in seconds (None: not told); sizes in pixels as shown upright."""

    width: int
    height: int
    rate: float | None
    video_s: float | None
    audio_s: float | None
    has_audio: bool


@contextlib.contextmanager
def _opened(path: Path | str) -> Iterator[Any]:
    """An input container; every failure to read it is a `MediaError` naming the file."""
    path = Path(path)
    if not path.exists():
        raise MediaError(path, "missing", "no such file")
    if path.is_dir():
        raise MediaError(path, "not_media", "is a folder, not a video or sound file")
    if path.stat().st_size == 0:
        raise MediaError(path, "empty", "the file is empty (0 bytes)")
    try:
        # "file:" keeps names with ":" or "%" from being read as protocols or patterns
        container = av.open(f"file:{os.path.abspath(path)}", metadata_errors="replace")
    except av.error.PermissionError as error:
        raise MediaError(path, "unreadable", f"cannot be read ({error.strerror})") from error
    except (av.error.FFmpegError, UnicodeDecodeError) as error:
        text = getattr(error, "strerror", error)
        raise MediaError(path, "not_media", f"not a video or sound file, or cut off ({text})") from error
    with container:
        try:
            yield container
        except av.error.FFmpegError as error:
            raise MediaError(path, "damaged", f"damaged or cut off: decoding failed ({error.strerror})") from error


def _start_s(container: Any) -> Fraction:
    return Fraction(container.start_time or 0, av.time_base)


def _stream_s(container: Any, stream: Any) -> float | None:
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    return None if container.duration is None else container.duration / av.time_base


def probe(path: Path | str) -> MediaInfo:
    """Sizes, rate and durations as the file declares them. Raises `MediaError` for anything that is not a video."""
    with _opened(path) as container:
        if not container.streams.video:
            raise MediaError(path, "no_video", "has no video stream")
        stream, sound = container.streams.video[0], container.streams.audio
        context = stream.codec_context
        return MediaInfo(
            width=context.width,
            height=context.height,
            rate=float(stream.average_rate) if stream.average_rate else None,
            video_s=_stream_s(container, stream),
            audio_s=_stream_s(container, sound[0]) if sound else None,
            has_audio=bool(sound),
        )


def _timed_pictures(container: Any, stream: Any) -> Iterator[tuple[Fraction, Fraction, Any]]:
    """(time, duration, decoded picture) in increasing time, in seconds from the start of the file."""
    start, last = _start_s(container), None
    step = 1 / Fraction(stream.average_rate or stream.guessed_rate or FPS)
    for picture in container.decode(stream):
        if picture.pts is None:
            time = last + step if last is not None else Fraction(0)
        else:
            time = picture.pts * picture.time_base - start
        if last is not None and time <= last:
            continue  # repeated or disordered time stamps: the first picture of an instant counts
        duration = picture.duration * picture.time_base if picture.duration else step
        yield time, duration, picture
        last = time


def _at_constant_rate(pictures: Iterable[tuple[Fraction, Fraction, Any]]) -> Iterator[Any]:
    """The picture nearest in time to each instant n/25, n = 0, 1, ... (ties: the earlier one), as long as they last."""
    current, time, end, n = None, Fraction(0), Fraction(0), 0
    for next_time, duration, picture in pictures:
        while current is not None and Fraction(n, FPS) <= (time + next_time) / 2:
            yield current
            n += 1
        current, time, end = picture, next_time, next_time + duration
    # the last picture stays as long as it lasts; half a frame of rounding either way
    while current is not None and Fraction(n, FPS) < end - Fraction(1, 2 * FPS):
        yield current
        n += 1


class _ToRgb:
    """Decoded pictures to upright RGB arrays with square pixels, scaled so that no side exceeds `max_side`."""

    def __init__(self, max_side: int | None) -> None:
        self.reformatter, self.max_side = VideoReformatter(), max_side
        self.last: tuple[Any, np.ndarray] = (None, np.empty(0))

    def __call__(self, picture: Any, aspect: Fraction | None) -> UInt8[np.ndarray, "Y X 3"]:
        if self.last[0] is picture:  # shown again
            return self.last[1]
        height, width = picture.height, picture.width
        if aspect and aspect != 1:
            width = max(1, round(width * aspect))
        if self.max_side and max(height, width) > self.max_side:
            scale = self.max_side / max(height, width)
            height, width = max(1, round(height * scale)), max(1, round(width * scale))
        rgb = self.reformatter.reformat(
            picture, width=width, height=height, format="rgb24", interpolation="AREA", threads=1
        )
        array: np.ndarray = rgb.to_ndarray()
        if turns := round((picture.rotation or 0) / 90) % 4:
            array = np.ascontiguousarray(np.rot90(array, turns))
        self.last = (picture, array)
        return array


def iter_video(
    path: Path | str, *, max_side: int | None = None, notes: Notes | None = None, bad: set[int] | None = None
) -> Iterator[UInt8[np.ndarray, "Y X 3"]]:
    """Frames of any video at constant 25 fps (nearest time stamp), upright RGB, one at a time.

    `max_side` scales down while converting (cheap previews). `notes` gets what is noteworthy but usable; `bad` gets the
    numbers of frames whose picture the decoder could not restore: they are no faces to learn from. Raises `MediaError` for unreadable files, files without
    video, and at the end when the file stops more than half a second before its declared end (truncated).
    """
    with _opened(path) as container:
        if not container.streams.video:
            raise MediaError(path, "no_video", "has no video stream")
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        stream.codec_context.thread_count = 1
        declared, convert, n = _stream_s(container, stream), _ToRgb(max_side), 0
        for picture in _at_constant_rate(_timed_pictures(container, stream)):
            yield convert(picture, stream.sample_aspect_ratio)
            n += 1
        if n == 0:
            raise MediaError(path, "no_frames", "no picture could be decoded")
        if declared is not None and n / FPS < declared - 0.5:
            raise MediaError(
                path, "truncated", f"cut off: says {declared:.2f} s but the pictures end at {n / FPS:.2f} s"
            )


def read_video(
    path: Path | str, *, start: int = 0, stop: int | None = None, max_side: int | None = None
) -> UInt8[np.ndarray, "T Y X 3"]:
    """Frames [start, stop) at 25 fps of a video, in memory at once (for short clips and tests; else `iter_video`)."""
    chosen: list[np.ndarray] = []
    with contextlib.closing(iter_video(path, max_side=max_side)) as frames:  # type: ignore[type-var]
        for n, frame in enumerate(frames):
            if stop is not None and n >= stop:
                break
            if n >= start:
                chosen.append(frame)
    if not chosen:
        raise MediaError(path, "no_frames", f"has no frames in [{start}, {stop})")
    return np.stack(chosen)


def read_audio(
    path: Path | str, *, channel: int | None = None, notes: Notes | None = None
) -> Float32[np.ndarray, " S"]:
    """The first sound track as 16 kHz mono in [-1, 1], sample 0 at the start of the file.

    Channels are averaged, or `channel` (0 left, 1 right) is taken alone; gaps in the time stamps become silence.
    `notes` gets what is noteworthy but usable. Raises `MediaError` for unreadable files and files without sound.
    """
    with _opened(path) as container:
        if not container.streams.audio:
            raise MediaError(path, "no_audio", "has no sound")
        stream = container.streams.audio[0]
        start = _start_s(container)
        rate = stream.codec_context.sample_rate
        if channel is not None and channel >= stream.codec_context.channels:
            raise MediaError(path, "no_audio", f"has {stream.codec_context.channels} sound channel, not {channel + 1}")
        to_float = av.AudioResampler(format="fltp", rate=rate)
        resampler = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32")
        pieces: list[np.ndarray] = []
        written = 0  # samples at the file's own rate handed to the resampler

        def append(block: np.ndarray) -> None:
            nonlocal written
            written += len(block)
            pieces.append(block if rate == SAMPLE_RATE else resampler.resample_chunk(np.ascontiguousarray(block)))

        for raw in container.decode(stream):
            time = None if raw.pts is None else raw.pts * raw.time_base - start
            for block in to_float.resample(raw):
                planes = block.to_ndarray()
                mono = planes.mean(0, dtype=np.float32) if channel is None else planes[channel]
                if time is not None:
                    shift = round(time * rate) - written
                    if shift > _GAP_S * rate or (written == 0 and shift > 0):
                        append(np.zeros(shift, np.float32))
                    elif shift < -_GAP_S * rate or (written == 0 and shift < 0):
                        mono = mono[-shift:]
                append(mono)
                time = None
        if rate != SAMPLE_RATE and written:
            pieces.append(resampler.resample_chunk(np.zeros(0, np.float32), last=True))
        if not written:
            raise MediaError(path, "no_audio", "its sound track holds no samples")
        out = np.concatenate(pieces)
        declared = _stream_s(container, stream)
        if declared is not None and seconds_to_samples(declared - 0.5) > len(out):
            raise MediaError(
                path,
                "truncated",
                f"cut off: says {declared:.2f} s but the sound ends at {len(out) / SAMPLE_RATE:.2f} s",
            )
        return np.clip(np.nan_to_num(out), -1.0, 1.0)


def fit_audio(audio: Float32[np.ndarray, " S"], frames: int) -> Float32[np.ndarray, " S"]:
    """`audio` cut, or padded with silence, to exactly the samples of `frames` frames."""
    wanted = frames_to_samples(frames)
    return np.pad(audio[:wanted], (0, max(0, wanted - len(audio))))
