"""Codecs between bytes of shard members and arrays: a whitelist of formats; nothing is ever unpickled.

Every decoder checks sizes before it allocates and raises `CodecError` (ValueError) with a reason.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Final

import av
import numpy as np
import soundfile
from av.video.reformatter import VideoReformatter
from jaxtyping import Float32, UInt8

from af.clock import FPS, SAMPLE_RATE
from af.data.video_writer import Mp4Sink

_MAX_SIDE: Final = 8192
_LOUDEST: Final = 2.0  # resampled audio may overshoot
_MAX_FRAMES: Final = 60 * 60 * FPS
_MAX_JSON_BYTES: Final = 64 * 2**20


class CodecError(ValueError):
    """Bytes do not match their name; the text is the reason."""


def encode_npy(array: np.ndarray) -> bytes:
    """An array of numbers as npy bytes (C order). Raises `CodecError` for objects and records."""
    array = np.ascontiguousarray(array)
    if array.dtype.kind not in "fiub":
        raise CodecError(f"npy holds numbers only, got dtype {array.dtype}")
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def npy_header(head: bytes) -> tuple[tuple[int, ...], np.dtype, int]:
    """(shape, dtype, offset of the data) from the first bytes of an npy file. Raises `CodecError`."""
    if head[6:7] == b"\x01":  # many files share a header, but not the data after it
        head = head[: 10 + int.from_bytes(head[8:10], "little")]
    return _npy_header(head)


@lru_cache(maxsize=4096)
def _npy_header(head: bytes) -> tuple[tuple[int, ...], np.dtype, int]:
    stream = io.BytesIO(head)
    try:
        version = np.lib.format.read_magic(stream)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, fortran, dtype = read(stream, max_header_size=4096)
    except (ValueError, KeyError, SyntaxError, TypeError, EOFError, RecursionError, MemoryError) as error:
        raise CodecError(f"not an npy file ({error})") from None
    if dtype.hasobject:
        raise CodecError("npy with pickled objects: refused")
    if dtype.kind not in "fiub":
        raise CodecError(f"npy of {dtype}: only numbers are allowed")
    if fortran and len(shape) > 1:
        raise CodecError("npy in Fortran order: only C order is allowed")
    return shape, dtype, stream.tell()


def decode_npy(data: bytes) -> np.ndarray:
    """An array from npy bytes, without unpickling; the size must match the header exactly. Raises `CodecError`."""
    shape, dtype, offset = npy_header(data[:4608])
    expected = int(np.prod(shape, dtype=object)) * dtype.itemsize
    if expected != len(data) - offset:
        raise CodecError(f"npy says {shape} {dtype} = {expected} bytes but holds {len(data) - offset}")
    return np.frombuffer(data, dtype, offset=offset).reshape(shape)


def encode_json(value: Any) -> bytes:
    """JSON as UTF-8; NaN and infinity are refused."""
    return json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode()


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def decode_json(data: bytes) -> Any:
    """A value from UTF-8 JSON. Raises `CodecError`."""
    if len(data) > _MAX_JSON_BYTES:
        raise CodecError(f"json of {len(data)} bytes")
    try:
        return json.loads(data.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise CodecError(f"not JSON ({error})") from None


def encode_audio(audio: Float32[np.ndarray, " S"]) -> bytes:
    """16 kHz mono in [-1, 1] as 16-bit FLAC (rounding error at most 2^-16; louder samples are clipped)."""
    audio = np.asarray(audio, np.float32)
    if audio.ndim != 1 or len(audio) == 0:
        raise CodecError(f"audio must be (samples,), got {audio.shape}")
    if not np.isfinite(audio).all():
        raise CodecError("audio has NaN or infinite samples")
    whole = np.clip(np.rint(audio * 32768.0), -32768, 32767).astype(np.int16)
    buffer = io.BytesIO()
    soundfile.write(buffer, whole, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def decode_audio(data: bytes) -> Float32[np.ndarray, " S"]:
    """FLAC or WAV bytes, 16 kHz mono, as float32 in [-1, 1]. Raises `CodecError`."""
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            if file.format not in ("FLAC", "WAV"):
                raise CodecError(f"audio format {file.format}: only FLAC and WAV are allowed")
            if (file.samplerate, file.channels) != (SAMPLE_RATE, 1):
                raise CodecError(
                    f"audio is {file.samplerate} Hz with {file.channels} channels, not {SAMPLE_RATE} Hz mono"
                )
            if file.frames > _MAX_FRAMES * SAMPLE_RATE // FPS:
                raise CodecError(f"audio of {file.frames} samples")
            announced, samples = file.frames, file.read(dtype="float32")
    except (soundfile.SoundFileError, RuntimeError) as error:
        raise CodecError(f"not a readable FLAC or WAV ({error})") from None
    if len(samples) != announced:
        raise CodecError(f"audio cut off: {len(samples)} of {announced} samples")
    loudest = np.abs(samples).max(initial=0.0)
    if not loudest <= _LOUDEST:  # a WAV may hold any floating-point numbers
        raise CodecError(f"audio of samples up to {loudest:.3g}, expected -1 to 1")
    return samples


class VideoEncoder(Mp4Sink):
    """`encode_video` frame by frame: `write` each frame, then `finish` returns the bytes. Only these are in memory."""

    def __init__(
        self, *, crf: int = 12, keyframe_interval: int = 12, preset: str = "superfast", pixel_format: str | None = None
    ) -> None:
        self._buffer = io.BytesIO()
        settings = {"keyframe_interval": keyframe_interval, "b_frames": 0, "pixel_format": pixel_format}
        super().__init__(self._buffer, crf=crf, preset=preset, **settings)  # type: ignore[arg-type]

    def finish(self) -> bytes:
        """The mp4. Raises `CodecError` without frames."""
        if self.frames == 0:
            raise CodecError("no frames to encode")
        self.close()
        return self._buffer.getvalue()


def encode_video(frames: Iterable[UInt8[np.ndarray, "Y X 3"]] | UInt8[np.ndarray, "T Y X 3"], **options: Any) -> bytes:
    """RGB frames as H.264 mp4 bytes at 25 fps; any iterable of frames, taken one by one.

    There is a key frame every `keyframe_interval` frames and no frame refers to a later one, so decoding a frame takes
    at most `keyframe_interval` others. `pixel_format` None: yuv444p below 256 pixels, else yuv420p. `options` are those
    of `VideoEncoder`. Equal frames and settings give equal bytes. Raises ValueError without frames.
    """
    encoder = VideoEncoder(**options)
    for frame in frames:
        encoder.write(frame)
    return encoder.finish()


@contextlib.contextmanager
def _opened_mp4(data: bytes | io.RawIOBase) -> Iterator[_Mp4]:
    """An open mp4. The format is fixed: no demuxer that could open other files or addresses is tried."""
    file: Any = io.BytesIO(data) if isinstance(data, bytes) else data
    try:
        container = av.open(file, format="mp4", metadata_errors="replace")
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise CodecError(f"not a readable mp4 ({getattr(error, 'strerror', error)})") from None
    with container:
        yield _Mp4(container)


class _Mp4:
    """The one video of an mp4, within bounds. Raises `CodecError`."""

    def __init__(self, container: Any) -> None:
        if len(container.streams.video) != 1:
            raise CodecError(f"mp4 with {len(container.streams.video)} video streams, not 1")
        self.container, self.stream = container, container.streams.video[0]
        context = self.stream.codec_context
        if context.name != "h264":
            raise CodecError(f"mp4 with {context.name} video, not h264")
        self.height, self.width, self.frames = context.height, context.width, self.stream.frames
        if not (0 < self.height <= _MAX_SIDE and 0 < self.width <= _MAX_SIDE and 0 < self.frames <= _MAX_FRAMES):
            raise CodecError(f"mp4 of {self.frames} frames, {self.width}x{self.height}: out of bounds")
        if self.stream.average_rate != FPS:
            raise CodecError(f"mp4 at {self.stream.average_rate} fps, not {FPS}")
        self.stream.thread_type, context.thread_count = "NONE", 1
        self.ticks = 1 / (FPS * self.stream.time_base)  # time-base units per frame
        self.origin = self.stream.start_time or 0
        self.reformatter = VideoReformatter()

    def seek(self, n: int) -> None:
        """Continue decoding from the last key frame at or before frame n."""
        self.container.seek(self.origin + int(n * self.ticks), stream=self.stream, backward=True)

    def images(self) -> Any:
        """Yield (frame number, image) from the current position on."""
        for image in self.container.decode(self.stream):
            if image.pts is None:
                raise CodecError("mp4 without time stamps")
            yield round((image.pts - self.origin) / self.ticks), image

    def rgb(self, image: Any) -> np.ndarray:
        return self.reformatter.reformat(image, format="rgb24", threads=1).to_ndarray()


def video_shape(data: bytes) -> tuple[int, int, int]:
    """(frames, height, width) that mp4 bytes declare, without decoding. Raises `CodecError`."""
    with _opened_mp4(data) as mp4:
        return mp4.frames, mp4.height, mp4.width


def decode_frames(data: bytes | io.RawIOBase, indices: Sequence[int]) -> UInt8[np.ndarray, "N Y X 3"]:
    """Chosen frames of an mp4 from `encode_video`, in the order of `indices`, decoding as few others as needed.

    From a file, only the needed parts are read. Raises `CodecError` for broken bytes and IndexError for frames that do
    not exist.
    """
    try:
        with _opened_mp4(data) as mp4:
            if len(indices) and not 0 <= min(indices) <= max(indices) < mp4.frames:
                raise IndexError(f"frames {min(indices)} to {max(indices)} of {mp4.frames}")
            out = np.empty((len(indices), mp4.height, mp4.width, 3), np.uint8)
            wanted: dict[int, list[int]] = {}
            for place, n in enumerate(indices):
                wanted.setdefault(int(n), []).append(place)
            at, images, image = -1, mp4.images(), None
            for n in sorted(wanted):
                if n - at > 2 * FPS:  # a jump: restart from the nearest key frame
                    mp4.seek(n)
                    images = mp4.images()
                for at, image in images:  # noqa: B007
                    if at >= n:
                        break
                if at != n:
                    raise CodecError(f"mp4 cut off or broken at frame {n} of {mp4.frames}")
                out[wanted[n]] = mp4.rgb(image)
            return out
    except (av.error.FFmpegError, OSError) as error:
        raise CodecError(f"broken mp4 ({getattr(error, 'strerror', error)})") from None


def decode_video(data: bytes, start: int = 0, stop: int | None = None) -> UInt8[np.ndarray, "T Y X 3"]:
    """Frames [start, stop) of an mp4 from `encode_video` as RGB (stop None: to the end). Raises `CodecError`."""
    stop = video_shape(data)[0] if stop is None else stop
    if start >= stop:
        raise IndexError(f"frames [{start}, {stop})")
    return decode_frames(data, range(start, stop))


#: The only decoders there are, by file suffix.
DECODERS: Final[Mapping[str, Callable[[bytes], Any]]] = MappingProxyType(
    {"json": decode_json, "npy": decode_npy, "flac": decode_audio, "wav": decode_audio, "mp4": decode_video}
)


def decode(name: str, data: bytes) -> Any:
    """Decode a member by the suffix of its name; any suffix outside `DECODERS` is refused with `CodecError`."""
    suffix = name.rsplit(".", 1)[-1]
    if suffix not in DECODERS:
        raise CodecError(f".{suffix} is not among the formats allowed ({', '.join(DECODERS)})")
    return DECODERS[suffix](data)
