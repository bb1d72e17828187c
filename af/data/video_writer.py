"""Writing videos frame by frame and atomically: H.264 in mp4 with audio, or animated GIF, by suffix."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import IO, Any, Final

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from jaxtyping import Float32, UInt8

from af.clock import FPS, SAMPLE_RATE
from af.files import atomic_path, require_suffix

#: Allowed suffixes. A GIF has no audio and 256 colours per frame.
VIDEO_SUFFIXES: Final = (".mp4", ".gif")


def require_video_name(path: Path | str, option: str = "") -> Path:
    """`path` if its suffix is in `VIDEO_SUFFIXES`. Raises UserError, naming it (and `option`), otherwise."""
    return require_suffix(path, VIDEO_SUFFIXES, option, "a GIF has no audio")


class _Sink:
    """A file of any format being encoded frame by frame."""

    def __init__(self, file: IO[bytes] | str, format: str, **options: Any) -> None:
        self._container = av.open(file, "w", format=format, **options)
        self._streams: list[Any] = []
        self.frames = 0

    def write(self, frame: UInt8[np.ndarray, "Y X 3"]) -> None:
        """Append one frame (RGB); all have the size of the first one."""
        raise NotImplementedError

    def close(self) -> None:
        """Flush the encoders and finish the file."""
        for stream in self._streams:
            self._container.mux(stream.encode(None))
        self._container.close()

    def abort(self) -> None:
        """Close the file after an error; it is unusable."""
        with contextlib.suppress(Exception):
            self._container.close()


class VideoSink(_Sink):
    """Encodes RGB frames one by one as H.264 in mp4: constant 25 fps, tagged BT.709 limited range.

    `pixel_format` None chooses full colour (yuv444p) below 256 pixels, where halved colour would blur lips and eyes,
    and yuv420p above. Odd sizes under yuv420p are padded by repeating the last row or column.
    """

    def __init__(
        self,
        file: IO[bytes] | str,
        *,
        crf: int,
        keyframe_interval: int,
        preset: str,
        b_frames: int,
        pixel_format: str | None,
        threads: int,
    ) -> None:
        super().__init__(file, "mp4")
        self._options = {
            "crf": str(crf),
            "preset": preset,
            "g": str(keyframe_interval),
            "keyint_min": str(keyframe_interval),
            "bf": str(b_frames),
            "sc_threshold": "0",
        }
        self._pixel_format, self._threads = pixel_format, threads
        self._reformatter = VideoReformatter()
        self._video: Any = None
        self._audio: Any = None
        self._size = (0, 0)
        self._samples = 0

    def add_audio(self, rate: int) -> None:
        """Declare a mono AAC track. Must be called before the first frame."""
        self._audio = self._container.add_stream("aac", rate=rate)
        self._audio.bit_rate = 96_000 if rate <= 24_000 else 128_000
        self._audio.layout = "mono"
        self._audio.time_base = Fraction(1, rate)
        self._streams.append(self._audio)

    def _open(self, height: int, width: int) -> None:
        chosen = self._pixel_format or ("yuv444p" if min(height, width) < 256 else "yuv420p")
        even = 2 if chosen == "yuv420p" else 1
        self._size, self._pad = (height, width), (-height % even, -width % even)
        video: Any = self._container.add_stream("libx264", rate=FPS)
        video.height, video.width = height + self._pad[0], width + self._pad[1]
        video.pix_fmt, video.options = chosen, self._options
        context = video.codec_context
        context.thread_count = self._threads
        context.color_range, context.colorspace, context.color_primaries, context.color_trc = 1, 1, 1, 1
        self._video = video
        self._streams.insert(0, video)

    def write(self, frame: UInt8[np.ndarray, "Y X 3"]) -> None:
        """Append one frame. Raises ValueError when its size or type differs from the first one's."""
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
            raise ValueError(f"frames must be uint8 (Y, X, 3), got {frame.dtype} {frame.shape}")
        if self._video is None:
            self._open(*frame.shape[:2])
        if frame.shape[:2] != self._size:
            raise ValueError(f"frame {self.frames} is {frame.shape[:2]}, the first one was {self._size}")
        if any(self._pad):
            frame = np.pad(frame, ((0, self._pad[0]), (0, self._pad[1]), (0, 0)), mode="edge")
        image = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        image = self._reformatter.reformat(
            image,
            format=self._video.pix_fmt,
            dst_colorspace=Colorspace.ITU709,
            dst_color_range=ColorRange.MPEG,
            threads=1,
        )
        image.pts, image.time_base = self.frames, Fraction(1, FPS)
        self._container.mux(self._video.encode(image))
        self.frames += 1

    def write_audio(self, samples: Float32[np.ndarray, " S"]) -> None:
        """Append audio in [-1, 1] at the declared rate."""
        if len(samples) == 0:
            return
        block = av.AudioFrame.from_ndarray(
            np.ascontiguousarray(samples[None], np.float32), format="fltp", layout="mono"
        )
        block.sample_rate, block.pts, block.time_base = self._audio.rate, self._samples, Fraction(1, self._audio.rate)
        self._samples += len(samples)
        self._container.mux(self._audio.encode(block))


class GifSink(_Sink):
    """Encodes RGB frames one by one as an endless animated GIF at 25 fps, with a 256-colour palette per frame."""

    def __init__(self, file: IO[bytes] | str) -> None:
        super().__init__(file, "gif", options={"loop": "0"})
        self._stream: Any = None
        self._graph: Any = None

    def _open(self, height: int, width: int) -> None:
        self._stream = self._container.add_stream("gif", rate=FPS)
        self._stream.height, self._stream.width, self._stream.pix_fmt = height, width, "pal8"
        self._streams.append(self._stream)
        graph = self._graph = av.filter.Graph()
        source = graph.add_buffer(
            width=width, height=height, format=av.VideoFormat("rgb24"), time_base=Fraction(1, FPS)
        )
        split, palette = graph.add("split"), graph.add("palettegen", "stats_mode=single")
        use, sink = graph.add("paletteuse", "new=1:dither=bayer:bayer_scale=4"), graph.add("buffersink")
        source.link_to(split)
        split.link_to(use, 0, 0)
        split.link_to(palette, 1, 0)
        palette.link_to(use, 0, 1)
        use.link_to(sink)
        graph.configure()

    def write(self, frame: UInt8[np.ndarray, "Y X 3"]) -> None:
        """Append one frame; all have the size of the first one."""
        if self._stream is None:
            self._open(*frame.shape[:2])
        image = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        image.pts, image.time_base = self.frames, Fraction(1, FPS)
        self._graph.push(image)
        self.frames += 1
        self._drain()

    def _drain(self) -> None:
        while True:
            try:
                image = self._graph.pull()
            except (av.error.BlockingIOError, av.error.EOFError):
                return
            self._container.mux(self._stream.encode(image))

    def close(self) -> None:
        """Flush the filters and finish the file."""
        if self._stream is not None:
            self._graph.push(None)
            self._drain()
        super().close()


class VideoWriter:
    """A video being written by `video_writer`: `write` frames (RGB, uint8) one by one."""

    def __init__(self, sink: _Sink, audio: np.ndarray | None, sample_rate: int) -> None:
        self._sink, self._audio, self._per_frame = sink, audio, sample_rate // FPS

    @property
    def frames(self) -> int:
        """Number of frames written."""
        return self._sink.frames

    def write(self, frame: UInt8[np.ndarray, "Y X 3"]) -> None:
        """Append a frame, and the audio that belongs to it."""
        self._sink.write(frame)
        if self._audio is not None and isinstance(self._sink, VideoSink):
            due = self._audio[(self.frames - 1) * self._per_frame : self.frames * self._per_frame]
            self._sink.write_audio(np.pad(due, (0, self._per_frame - len(due))))


@contextlib.contextmanager
def video_writer(
    path: Path | str,
    audio: Float32[np.ndarray, " S"] | None = None,
    *,
    sample_rate: int = SAMPLE_RATE,
    crf: int = 18,
    preset: str = "veryfast",
    threads: int = 1,
) -> Iterator[VideoWriter]:
    """A `VideoWriter` for H.264 + AAC in mp4, or a GIF (without audio), by suffix; mono audio in [-1, 1].

    Audio starts with the first frame and is cut or padded with silence to the length of the video. The file appears
    under its name only if the block ends without an error. Raises UserError for other suffixes, ValueError without
    frames.
    """
    path = require_video_name(path)
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        # a path may contain "%" or look like a protocol ("a:b.mp4"), which an open file avoids
        sink: VideoSink | GifSink
        if path.suffix.lower() == ".gif":
            sink = GifSink(file)
        else:
            sink = VideoSink(
                file,
                crf=crf,
                keyframe_interval=2 * FPS,
                preset=preset,
                b_frames=2,
                pixel_format="yuv420p",
                threads=threads,
            )
            if audio is not None:
                sink.add_audio(sample_rate)
                audio = np.asarray(audio, np.float32).reshape(-1)
        try:
            yield VideoWriter(sink, audio, sample_rate)
            if sink.frames == 0:
                raise ValueError(f"no frames to write to {path}")
            sink.close()
        except BaseException:
            sink.abort()
            raise


def write_video(
    path: Path | str,
    frames: Iterable[UInt8[np.ndarray, "Y X 3"]],
    audio: Float32[np.ndarray, " S"] | None = None,
    fps: int = FPS,
    **options: Any,
) -> int:
    """Write frames and audio by `video_writer` with `options`; returns the number of frames.

    Frames are taken one by one, in constant memory. Raises ValueError when `fps` is not the clock's.
    """
    if fps != FPS:
        raise ValueError(f"videos are written at {FPS} fps, got {fps}")
    with video_writer(path, audio, **options) as writer:
        for frame in frames:
            writer.write(frame)
        return writer.frames
