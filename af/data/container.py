"""Opening media files: declared properties, choice of streams, and errors that name the fault."""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import av
from av.stream import Disposition

from af.data.archives import is_inside, open_binary, stamp
from af.errors import UserError

#: Images that are never the main video of a file: covers, previews, tiles of a larger image.
_NOT_VIDEO: Final = (
    Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image | Disposition.dependent
)
#: Tracks offered beside the main one.
_ASIDE: Final = (
    Disposition.comment | Disposition.hearing_impaired | Disposition.visual_impaired | Disposition.descriptions
)
_NEAR_S: Final = 0.1
#: ISO media brands of still images (HEIF, AVIF); their sequences ("msf1", "avis") are videos.
STILL_BRANDS: Final = frozenset({"heic", "heix", "heim", "heis", "mif1", "avif"})


class MediaError(UserError):
    """A media file cannot be used. `reason` is a short word for counting; the text names file and reason."""

    def __init__(self, path: Path | str, reason: str, text: str) -> None:
        super().__init__(f"{path}: {text}")
        self.path, self.reason, self.text = str(path), reason, text

    def __reduce__(self) -> tuple[Any, ...]:  # errors travel from worker processes
        return (type(self), (self.path, self.reason, self.text))


@dataclass(frozen=True)
class MediaInfo:
    """What a file declares about itself: seconds (None: not declared), and whether it has audio."""

    video_s: float | None
    audio_s: float | None
    has_audio: bool


@contextlib.contextmanager
def opened(path: Path | str) -> Iterator[Any]:
    """An input container; every failure to read it is a `MediaError` naming the file."""
    path = Path(path)
    try:
        if path.is_dir():
            raise MediaError(path, "not_media", "is a folder, not a video or audio file")
        if stamp(path).size == 0:
            raise MediaError(path, "empty", "the file is empty (0 bytes)")
    except (FileNotFoundError, NotADirectoryError):
        raise MediaError(path, "missing", "no such file") from None
    except OSError as error:  # name too long, folder without permission
        raise MediaError(path, "unreadable", f"cannot be read ({error.strerror or error})") from error
    # "file:" keeps names with ":" or "%" from being read as protocols or patterns
    file: Any = open_binary(path) if is_inside(path) else f"file:{os.path.abspath(path)}"
    try:
        container = av.open(file, metadata_errors="replace")
    except av.error.PermissionError as error:
        raise MediaError(path, "unreadable", f"cannot be read ({error.strerror})") from error
    except (av.error.FFmpegError, UnicodeDecodeError) as error:
        text = getattr(error, "strerror", error)
        raise MediaError(path, "not_media", f"not a video or audio file, or cut off ({text})") from error
    with container:
        try:
            yield container
        except MemoryError as error:  # FFmpeg's own, too
            text = "reading it needs more memory than there is: scale the image down, or use a larger machine"
            raise MediaError(path, "memory", text) from error
        except av.error.FFmpegError as error:
            raise MediaError(path, "damaged", f"damaged or cut off: decoding failed ({error.strerror})") from error


def start_s(container: Any) -> Fraction:
    """Time stamp of the file's earliest stream, in seconds: the origin of all times."""
    return Fraction(container.start_time or 0, av.time_base)


def stream_s(container: Any, stream: Any) -> float | None:
    """Declared duration of a stream, in seconds."""
    if container.format.name == "avi" and stream.frames:  # from its header; other values are FFmpeg's estimates
        return float(stream.frames * stream.time_base)
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    return None if container.duration is None else container.duration / av.time_base


def says_s(path: Path | str, container: Any, stream: Any, ends_s: float) -> float | None:
    """Declared duration of a stream that ends at `ends_s`. A duration of the whole file (Matroska, WebM) counts only if
    no stream lasts that long; otherwise this stream is merely shorter than another.
    """
    said = stream_s(container, stream)
    if said is None or stream.duration is not None or ends_s > said - _NEAR_S:
        return said
    with opened(path) as again:
        start = start_s(again)
        last = max(
            ((p.pts + (p.duration or 0)) * p.time_base - start for p in again.demux() if p.pts is not None), default=0
        )
    return None if last > said - _NEAR_S else said


def damaged_packet(error: av.error.FFmpegError) -> bool:
    """Whether the error concerns a single packet, after which decoding can continue."""
    return isinstance(error, av.error.InvalidDataError)


def refuse_still(path: Path | str, container: Any) -> None:
    """Raise `MediaError` for a still image, which FFmpeg opens as a video of one frame or one tile."""
    brand = str(container.metadata.get("major_brand", "")).strip()
    names = container.format.name.split(",")
    if brand in STILL_BRANDS or any(n == "image2" or (n.endswith("_pipe") and n != "gif_pipe") for n in names):
        raise MediaError(path, "still", "is a still image (or an animation that is read as one), not a video")


def main_video(path: Path | str, container: Any, notes: Notes) -> Any:
    """The main video stream: the default one, else the largest; never a cover or still image. Raises `MediaError`."""
    refuse_still(path, container)
    moving = [s for s in container.streams.video if not s.disposition & _NOT_VIDEO]
    if not moving:
        cover = " but a cover or a still image" if container.streams.video else ""
        raise MediaError(path, "no_video", f"has no video stream{cover}")
    first, *others = sorted(  # an animation may include a still image for programs that show no animations
        moving, key=lambda s: (s.frames == 1, not _preferred(s), -s.codec_context.width * s.codec_context.height)
    )
    if others:
        sizes = ", ".join(f"{s.codec_context.width}x{s.codec_context.height}" for s in others)
        notes.add("tracks", f"{path}: {1 + len(others)} video tracks: number {first.index} is taken, not {sizes}")
    return first


def ranked(streams: Sequence[Any]) -> list[Any]:
    """Streams of one kind in a player's order of preference: default ones first, commentaries last."""
    return sorted(streams, key=lambda s: (not _preferred(s), bool(s.disposition & _ASIDE)))


def _preferred(stream: Any) -> bool:
    return bool(stream.disposition & Disposition.default) and not stream.disposition & _ASIDE


def probe(path: Path | str) -> MediaInfo:
    """Declared durations. Raises `MediaError` for anything that is not a video."""
    with opened(path) as container:
        stream, audio = main_video(path, container, Notes()), ranked(container.streams.audio)
        audio_s = stream_s(container, audio[0]) if audio else None
        return MediaInfo(stream_s(container, stream), audio_s, has_audio=bool(audio))


@dataclass(frozen=True)
class Note:
    """One remark: a short word for counting, and a sentence that names the file."""

    kind: str
    text: str


class Notes:
    """Collects notes in order, without repetitions (a file may be read more than once)."""

    def __init__(self) -> None:
        self._notes: dict[Note, None] = {}

    def add(self, kind: str, text: str) -> None:
        """Note `text` under `kind`, a word that the report counts (tracks, channels, level, colour, ...)."""
        self._notes[Note(kind, text)] = None

    def __iter__(self) -> Iterator[Note]:
        return iter(self._notes)


#: By a file's first bytes: start of the first chunk, its header (name, size), header bytes included in the size,
#: alignment of chunks, and start of the name of the chunk with the samples.
_CHUNKS: Final = {
    b"RIFF": (12, "<4sI", 0, 2, b"data"),
    b"riff": (40, "<16sQ", 24, 8, b"data"),  # Sony Wave64
    b"caff": (8, ">4sq", 0, 1, b"data"),
}


def _chunks(path: Path | str) -> Iterator[tuple[bytes, int, bool]]:
    """(name, declared size, whether it holds the samples) of each chunk; the last may have a size below 0, left
    open.
    """
    with open_binary(path) as file:
        if (kind := file.read(4)) not in _CHUNKS:
            return
        start, header, counted, aligned, wanted = _CHUNKS[kind]
        file.seek(start)
        while len(chunk := file.read(struct.calcsize(header))) == struct.calcsize(header):
            name, size = struct.unpack(header, chunk)
            size = -1 if kind == b"RIFF" and size >= 0x7FFF0000 else size - counted  # written to a pipe
            yield name, size, name.startswith(wanted)
            if size < 0:
                return
            file.seek(size + -size % aligned, 1)


def announced_bytes(path: Path | str) -> int | None:
    """Declared bytes of samples; None without such a header or when it leaves them open (written to a pipe)."""
    size = next((size for _, size, samples in _chunks(path) if samples), 0)
    return size if size > 0 else None


def uncounted_bytes(path: Path | str) -> int:
    """Bytes after the samples of a WAV that belong to no chunk (the header was not updated), otherwise 0."""
    size = stamp(path).size
    with open_binary(path) as file:
        if file.read(4) != b"RIFF":
            return 0
    at, behind = 12, False
    for name, length, samples in _chunks(path):
        if behind and (at + 8 + length > size or not (name.isascii() and name.decode("ascii").isprintable())):
            return size - at
        behind = behind or (samples and length > 0)
        at += 8 + length + length % 2
    return 0
