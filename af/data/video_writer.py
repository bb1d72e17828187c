"""Writing videos frame by frame and atomically: H.264 in mp4 with audio, or animated GIF, by suffix."""

from __future__ import annotations

import abc
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
from af.data.generated import write_xmp
from af.files import atomic_path, require_suffix

#: Allowed suffixes. A GIF has no audio and 256 colours per frame.
VIDEO_SUFFIXES: Final = (".mp4", ".gif")


def require_video_name(path: Path | str, option: str = "") -> Path:
    """`path` if its suffix is in `VIDEO_SUFFIXES`. Raises UserError, naming it (and `option`), otherwise."""
    return require_suffix(path, VIDEO_SUFFIXES, option, "a GIF has no audio")


class VideoSink(abc.ABC):
    """A file of any format being encoded frame by frame."""

    def __init__(self, file: IO[bytes] | str, format: str, **options: Any) -> None:
        self._container = av.open(file, "w", format=format, **options)
        self._streams: list[Any] = []
        self._size: tuple[int, int] | None = None
        self.frames = 0

    @abc.abstractmethod
    def _open(self, height: int, width: int) -> None:
        """Make what is needed for frames of this size."""

    @abc.abstractmethod
    def _encode(self, frame: np.ndarray) -> None: ...

    def write(self, frame: UInt8[np.ndarray, "Y X 3"]) -> None:
        """Append one frame (RGB). Raises ValueError when its size or type differs from the first one's."""
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
            raise ValueError(f"frames must be uint8 (Y, X, 3), got {frame.dtype} {frame.shape}")
        if self._size is None:
            self._size = (frame.shape[0], frame.shape[1])
            self._open(*self._size)
        if frame.shape[:2] != self._size:
            raise ValueError(f"frame {self.frames} is {frame.shape[:2]}, the first one was {self._size}")
        self._encode(frame)
        self.frames += 1

    def say(self, text: str) -> None:
        """Put a comment into the file's metadata, before the first frame."""
        self._container.metadata.update(comment=text, description=text)

    def close(self) -> None:
        """Flush the encoders and finish the file."""
        for stream in self._streams:
            self._container.mux(stream.encode(None))
        self._container.close()

    def abort(self) -> None:
        """Close the file after an error; it is unusable."""
        with contextlib.suppress(Exception):
            self._container.close()


class Mp4Sink(VideoSink):
    """Encodes RGB frames one by one as H.264 in mp4: constant 25 fps, tagged BT.709 limited range.

    `pixel_format` None chooses full colour (yuv444p) below 256 pixels, where halved colour would blur lips and eyes,
    and yuv420p above. Odd sizes under yuv420p are padded by repeating the last row or column. With `audio` (mono, in
    [-1, 1]) each frame is followed by its part of an AAC track, silence behind the end.
    """

    def __init__(
        self,
        file: IO[bytes] | str,
        *,
        crf: int,
        preset: str,
        keyframe_interval: int = 2 * FPS,
        b_frames: int = 2,
        pixel_format: str | None = "yuv420p",
        threads: int = 1,
        audio: Float32[np.ndarray, " S"] | None = None,
        sample_rate: int = SAMPLE_RATE,
    ) -> None:
        super().__init__(file, "mp4")
        interval = str(keyframe_interval)
        self._options = {"crf": str(crf), "preset": preset, "g": interval, "keyint_min": interval}
        self._options |= {"bf": str(b_frames), "sc_threshold": "0"}
        self._pixel_format, self._threads = pixel_format, threads
        self._reformatter = VideoReformatter()
        self._samples, self._rate = audio, sample_rate
        if audio is not None:
            self._audio: Any = self._container.add_stream("aac", rate=sample_rate)
            self._audio.bit_rate = 96_000 if sample_rate <= 24_000 else 128_000
            self._audio.layout = "mono"
            self._audio.time_base = Fraction(1, sample_rate)
            self._streams.append(self._audio)

    def _open(self, height: int, width: int) -> None:
        chosen = self._pixel_format or ("yuv444p" if min(height, width) < 256 else "yuv420p")
        even = 2 if chosen == "yuv420p" else 1
        self._pad = ((0, -height % even), (0, -width % even), (0, 0))
        video: Any = self._container.add_stream("libx264", rate=FPS)
        video.height, video.width = height + self._pad[0][1], width + self._pad[1][1]
        video.pix_fmt, video.options = chosen, self._options
        context = video.codec_context
        context.thread_count = self._threads
        context.color_range, context.colorspace, context.color_primaries, context.color_trc = 1, 1, 1, 1
        self._video = video
        self._streams.insert(0, video)

    def _encode(self, frame: np.ndarray) -> None:
        image = av.VideoFrame.from_ndarray(np.pad(frame, self._pad, mode="edge"), format="rgb24")
        colours: Any = {"dst_colorspace": Colorspace.ITU709, "dst_color_range": ColorRange.MPEG}
        image = self._reformatter.reformat(image, format=self._video.pix_fmt, threads=1, **colours)
        image.pts, image.time_base = self.frames, Fraction(1, FPS)
        self._container.mux(self._video.encode(image))
        if self._samples is not None:
            count = self._rate // FPS
            due = self._samples[self.frames * count :][:count]
            due = np.pad(due, (0, count - len(due))).astype(np.float32)
            block = av.AudioFrame.from_ndarray(due[None], format="fltp", layout="mono")
            block.sample_rate, block.pts, block.time_base = self._rate, self.frames * count, Fraction(1, self._rate)
            self._container.mux(self._audio.encode(block))


class GifSink(VideoSink):
    """Encodes RGB frames one by one as an endless animated GIF at 25 fps, with a 256-colour palette per frame."""

    def __init__(self, file: IO[bytes] | str) -> None:
        super().__init__(file, "gif", options={"loop": "0"})

    def _open(self, height: int, width: int) -> None:
        self._stream: Any = self._container.add_stream("gif", rate=FPS)
        self._stream.height, self._stream.width, self._stream.pix_fmt = height, width, "pal8"
        self._streams.append(self._stream)
        graph = self._graph = av.filter.Graph()
        pixels = av.VideoFormat("rgb24")
        source = graph.add_buffer(width=width, height=height, format=pixels, time_base=Fraction(1, FPS))
        split, palette = graph.add("split"), graph.add("palettegen", "stats_mode=single")
        use, sink = graph.add("paletteuse", "new=1:dither=bayer:bayer_scale=4"), graph.add("buffersink")
        source.link_to(split)
        split.link_to(use, 0, 0)
        split.link_to(palette, 1, 0)
        palette.link_to(use, 0, 1)
        use.link_to(sink)
        graph.configure()

    def _encode(self, frame: np.ndarray) -> None:
        image = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        image.pts, image.time_base = self.frames, Fraction(1, FPS)
        self._push(image)

    def _push(self, image: Any) -> None:
        for coloured in filtered(self._graph, image):
            self._container.mux(self._stream.encode(coloured))

    def close(self) -> None:
        """Flush the filters and finish the file."""
        if self._size is not None:
            self._push(None)
        super().close()


def filtered(graph: Any, image: Any) -> Iterator[Any]:
    """The outputs of a filter graph after one more image (None: there are no more)."""
    graph.push(image)
    with contextlib.suppress(av.error.BlockingIOError, av.error.EOFError):
        while True:
            yield graph.pull()


@contextlib.contextmanager
def video_writer(
    path: Path | str,
    audio: Float32[np.ndarray, " S"] | None = None,
    *,
    sample_rate: int = SAMPLE_RATE,
    crf: int = 18,
    preset: str = "veryfast",
    threads: int = 1,
    generated: str | None = None,
) -> Iterator[VideoSink]:
    """Write frames as H.264 + AAC in mp4, or a GIF (without audio), by suffix; mono audio in [-1, 1].

    Audio starts with the first frame and is cut or padded with silence to the length of the video. `generated` is what the
    file says of frames that a model made (`af.data.generated`). It appears under its name only if the block ends without
    an error. Raises UserError for other suffixes, ValueError without frames.
    """
    path = require_video_name(path)
    with atomic_path(path) as temporary, open(temporary, "wb+") as file:
        # a path may contain "%" or look like a protocol ("a:b.mp4"), which an open file avoids
        sink: VideoSink
        if path.suffix.lower() == ".gif":
            sink = GifSink(file)
        else:
            mono = None if audio is None else np.asarray(audio, np.float32).reshape(-1)
            sink = Mp4Sink(file, crf=crf, preset=preset, threads=threads, audio=mono, sample_rate=sample_rate)
        try:
            if generated is not None:
                sink.say(generated)
            yield sink
            if sink.frames == 0:
                raise ValueError(f"no frames to write to {path}")
            sink.close()
            if generated is not None:
                write_xmp(file, path.suffix.lower(), generated)
        except BaseException:
            sink.abort()
            raise


def write_video(
    path: Path | str,
    frames: Iterable[UInt8[np.ndarray, "Y X 3"]],
    audio: Float32[np.ndarray, " S"] | None = None,
    **options: Any,
) -> int:
    """Write frames and audio by `video_writer` with `options`; returns the number of frames.

    Frames are taken one by one, in constant memory.
    """
    with video_writer(path, audio, **options) as writer:
        for frame in frames:
            writer.write(frame)
        return writer.frames
