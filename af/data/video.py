"""Reading any video as RGB at constant 25 fps: upright, square pixels, deinterlaced, BT.709, damaged frames named."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, Final

import av
import numpy as np
from av.filter import Graph
from av.video.reformatter import Colorspace, VideoReformatter
from jaxtyping import Int32, UInt8

from af.clock import FPS
from af.data import colour
from af.data.container import MediaError, Notes, damaged_packet, main_video, opened, says_s, start_s
from af.data.video_writer import filtered

_UNSPECIFIED: Final = 2  # of a colour space (ITU-T H.273)
#: Images are regular if this share of their steps differs from the median by at most this fraction; a hole is a step of
#: this many medians.
_REGULAR, _IRREGULAR, _HOLE = 0.9, 0.25, 2.5
_FIRST_STEPS: Final = 50  # steps that determine the step length at the start
#: At this frame rate or below, lips move in jumps.
_FEW: Final = 20


@dataclass
class _Losses:
    """Times without intact images: from a damaged packet or a hole to the next intact key image.

    Images in between are predicted from missing ones, although the decoder reports no error. Times are in seconds from
    `start`, the file's first time stamp.
    """

    start: Fraction
    _lost: list[tuple[float, float]] = field(default_factory=list)  # (start of the loss, time of its key image)
    _key: float = -1.0  # key time of the current packets
    _times: list[float] = field(default_factory=list)  # times of the images
    _keys: list[float] = field(default_factory=list)  # times of key images

    def saw(self, packet: Any) -> None:
        """Register a packet, in decoding order; packets after a key image are predicted from it."""
        if packet.is_keyframe and not packet.is_corrupt and packet.pts is not None:
            self._key = float(packet.pts * packet.time_base - self.start)

    def lost(self, packet: Any) -> None:
        """Register a damaged packet. Later packets may be shown before it, but not before its decoding time."""
        at = packet.pts if packet.dts is None else packet.dts
        if at is not None:
            self._lost.append((float(at * packet.time_base - self.start), self._key))

    def shown(self, image: Any, time: Fraction) -> None:
        """Register a decoded image, in order of time."""
        self._times.append(float(time))
        if image.is_corrupt:
            self._lost.append((float(time), float(time)))
        elif image.key_frame:
            self._keys.append(float(time))

    def _holes(self) -> Iterator[tuple[float, float]]:
        """Long gaps between otherwise regular images (one or two skipped by a camera are no loss)."""
        steps = np.diff(self._times)
        if len(steps) == 0:
            return
        step = float(np.median(steps))
        if (np.abs(steps - step) <= _IRREGULAR * step).mean() >= _REGULAR:
            for i in np.flatnonzero(steps > _HOLE * step):
                yield self._times[i] + step, self._times[i]

    @property
    def begins(self) -> float:
        """Start of the images if it is so late that some are missing, else 0."""
        steps = np.diff(self._times[:_FIRST_STEPS])
        step = float(np.median(steps)) if len(steps) else 1 / FPS
        return self._times[0] if self._times and self._times[0] > _HOLE * step else 0.0

    @property
    def rate(self) -> float:
        """Mean frame rate from first to last image; 0 if there are too few."""
        lasts = self._times[-1] - self._times[0] if self._times else 0.0
        return (len(self._times) - 1) / lasts if lasts > 0 else 0.0

    def frames(self, count: int) -> set[int]:
        """Indices of the frames at 25 fps, of `count`, that show lost images."""
        spoilt = set(range(min(count, math.ceil(self.begins * FPS))))
        keys = np.array([*self._keys, count / FPS + 1])
        for at, own_key in [*self._lost, *self._holes()]:
            end = keys[np.searchsorted(keys, max(at, own_key), side="right")]
            # each frame shows the nearest image, up to half a frame early or late
            spoilt.update(range(max(0, math.floor(at * FPS)), min(count, math.ceil(end * FPS))))
        return spoilt


class _Whole:
    """Deinterlaces images (bwdif, one output per frame); images before the first interlaced one pass unchanged."""

    def __init__(self) -> None:
        self._graph: Any = None
        self._kind: Any = None
        self.used = False

    def __call__(self, image: Any) -> Iterator[Any]:
        kind = {"width": image.width, "height": image.height, "format": image.format.name}
        if kind != self._kind:
            yield from self.end()
        if self._graph is None and not image.interlaced_frame:
            yield image
            return
        if self._graph is None:
            self._graph, self._kind, self.used = Graph(), kind, True
            source = self._graph.add_buffer(**kind, time_base=image.time_base)
            deinterlace = self._graph.add("bwdif", mode="send_frame", deint="interlaced")
            self._graph.link_nodes(source, deinterlace, self._graph.add("buffersink")).configure()
        yield from filtered(self._graph, image)

    def end(self) -> Iterator[Any]:
        """The images still in the filter."""
        if self._graph is not None:
            yield from filtered(self._graph, None)
            self._graph = None


def _strict(decoder: Any) -> Any:
    """Set a decoder to report errors, which it would otherwise conceal."""
    decoder.thread_type, decoder.thread_count = "NONE", 1
    decoder.options = {"err_detect": "explode"}
    return decoder


def _images(path: Path | str, container: Any, stream: Any, losses: _Losses, whole: _Whole) -> Iterator[Any]:
    """Decoded images; a damaged packet does not stop the ones after it."""
    decoder, spoilt, again = _strict(stream.codec_context), False, contextlib.ExitStack()
    with again:
        for packet in container.demux(stream):
            losses.saw(packet)
            if spoilt and packet.is_keyframe:
                # strict decoders carry traces of an error into the next key image, even when flushed; a new decoder of
                # the same file keeps the container's settings (matrix, colours)
                for image in decoder.decode(None):
                    image.time_base = packet.time_base
                    yield from whole(image)
                again.close()
                fresh = again.enter_context(opened(path)).streams[stream.index]
                decoder, spoilt = _strict(fresh.codec_context), False
            decoded = []
            try:
                decoded = decoder.decode(packet)
                damaged = packet.is_corrupt
            except av.error.FFmpegError as error:
                if not damaged_packet(error):
                    raise
                damaged = True
            if damaged:
                losses.lost(packet)
                spoilt = True
            for image in decoded:
                yield from whole(image)
    yield from whole.end()


def _timed_images(
    path: Path | str, container: Any, stream: Any, losses: _Losses, whole: _Whole
) -> Iterator[tuple[Fraction, Fraction, Any]]:
    """(time, duration, decoded image) in increasing time, in seconds from the start of the file."""
    start, last = start_s(container), None
    step = 1 / Fraction(stream.average_rate or stream.guessed_rate or FPS)
    for image in _images(path, container, stream, losses, whole):
        if image.pts is None:
            time = last + step if last is not None else Fraction(0)
        else:
            time = image.pts * image.time_base - start
        losses.shown(image, time)
        if last is not None and time <= last:
            continue  # repeated or unordered time stamps: the first image of an instant counts
        duration = image.duration * image.time_base if image.duration else step
        yield time, duration, image
        last = time


def _at_constant_rate(images: Iterable[tuple[Fraction, Fraction, Any]]) -> Iterator[Any]:
    """The image nearest to each instant n/25, n = 0, 1, ... (ties: the earlier one), up to the end."""
    current, time, end, n = None, Fraction(0), Fraction(0), 0
    for next_time, duration, image in images:
        while current is not None and Fraction(n, FPS) <= (time + next_time) / 2:
            yield current
            n += 1
        current, time, end = image, next_time, next_time + duration
    # the last image is shown for its duration; half a frame of rounding either way
    while current is not None and Fraction(n, FPS) < end - Fraction(1, 2 * FPS):
        yield current
        n += 1


def display_matrix(image: Any) -> Int32[np.ndarray, "2 2"]:
    """The signs (a, b), (c, d) of an image's display matrix; (1, 0), (0, 1) without one.

    A pixel at (x, y) is shown at (a x + c y, b x + d y). Angles are rounded to quarter turns.
    """
    for data in image.side_data:
        if data.type.name == "DISPLAYMATRIX":
            matrix = np.frombuffer(bytes(data), np.int32)[:9].reshape(3, 3)[:2, :2].astype(np.int64)
            swapped = abs(matrix[0, 1]) > abs(matrix[0, 0])
            kept = np.array([[0, 1], [1, 0]]) if swapped else np.eye(2, dtype=np.int64)
            return (np.where(matrix < 0, -1, 1) * kept).astype(np.int32)
    return np.eye(2, dtype=np.int32)


def shown_upright(array: UInt8[np.ndarray, "Y X C"], matrix: Int32[np.ndarray, "2 2"]) -> UInt8[np.ndarray, "Y2 X2 C"]:
    """Rotate and mirror an image by its display matrix (one of eight ways)."""
    if matrix[0, 1]:
        array, across, down = array.transpose(1, 0, 2), matrix[1, 0], matrix[0, 1]
    else:
        across, down = matrix[0, 0], matrix[1, 1]
    return np.ascontiguousarray(array[:: int(down), :: int(across)])


class _ToRgb:
    """Converts images to upright RGB with square pixels, scaled to sides of at most `max_side`.

    Later images with the same shape but another size are scaled to the size of the first.
    """

    def __init__(self, path: Path | str, max_side: int | None, notes: Notes) -> None:
        self.path, self.max_side, self.notes = path, max_side, notes
        self._reformatter = VideoReformatter()
        self._last: tuple[Any, np.ndarray] = (None, np.empty(0))
        self._natural: tuple[int, int] | None = None  # height and width of the first image, upright
        self._size = (0, 0)
        self._colours: dict[tuple[int, ...], colour.ToBt709] = {}

    def __call__(self, image: Any, aspect: Fraction | None) -> UInt8[np.ndarray, "Y X 3"]:
        if self._last[0] is image:  # same image again
            return self._last[1]
        matrix = display_matrix(image)
        if (matrix != np.eye(2)).any():
            self.notes.add("matrix", f"{self.path}: rotated or mirrored by its display matrix")
        height, width = self._fitted(image, aspect, bool(matrix[0, 1]))
        array = shown_upright(self._rgb(image, height, width), matrix)
        self._last = (image, array)
        return array

    def _fitted(self, image: Any, aspect: Fraction | None, swapped: bool) -> tuple[int, int]:
        """Height and width before rotation. Raises `MediaError` when the shape differs from the first image's."""
        natural = (image.height, max(1, round(image.width * (aspect or 1))))
        natural = natural[::-1] if swapped else natural
        if self._natural is None:
            shrink = min(1.0, (self.max_side or max(natural)) / max(natural))
            self._natural = natural
            self._size = (max(1, round(natural[0] * shrink)), max(1, round(natural[1] * shrink)))
        elif natural != self._natural:
            before, now = (f"{w} x {h}" for h, w in (self._natural, natural))
            if abs(natural[0] * self._natural[1] / (natural[1] * self._natural[0]) - 1) > 0.02:
                text = f"its image changes from {before} to {now} pixels: cut the file there and give the parts"
                raise MediaError(self.path, "size_change", text)
            self.notes.add("size", f"{self.path}: the image changes from {before} to {now} pixels: scaled")
        return self._size[::-1] if swapped else self._size

    def _rgb(self, image: Any, height: int, width: int) -> UInt8[np.ndarray, "Y X 3"]:
        high = image.width >= 1280 or image.height > 576  # undeclared colour spaces: as players treat them
        source = Colorspace.ITU709 if image.colorspace == _UNSPECIFIED and high else None

        how: Any = {"width": width, "height": height, "src_colorspace": source, "interpolation": "AREA", "threads": 1}
        reformat = partial(self._reformatter.reformat, image, **how)
        kind = (int(image.color_primaries), int(image.color_trc))
        if not colour.is_standard(*kind):
            self.notes.add("colour", f"{self.path}: {colour.name(*kind)} converted to BT.709")
            wide = reformat(format="rgb48le")
            if (key := (width, height, *kind)) not in self._colours:
                self._colours[key] = colour.ToBt709(width, height, wide.time_base, *kind)
            return self._colours[key](wide)
        if any(component.is_alpha for component in image.format.components):
            return on_white(reformat(format="rgba").to_ndarray())
        array: np.ndarray = reformat(format="rgb24").to_ndarray()
        return array


def on_white(rgba: UInt8[np.ndarray, "Y X 4"]) -> UInt8[np.ndarray, "Y X 3"]:
    """Blend an image with white: hidden colours under transparent areas are arbitrary, often black."""
    opaque = rgba[..., 3:].astype(np.float32) / 255
    return np.rint(rgba[..., :3] * opaque + 255 * (1 - opaque)).astype(np.uint8)


def iter_video(
    path: Path | str,
    *,
    max_side: int | None = None,
    notes: Notes | None = None,
    bad: set[int] | None = None,
    facts: dict[str, Any] | None = None,
) -> Iterator[UInt8[np.ndarray, "Y X 3"]]:
    """Frames of any video at constant 25 fps (nearest time stamp), upright RGB, one at a time.

    `max_side` scales down while converting (cheap previews). `notes` collects remarks; after the last frame, `bad` gets
    the indices of frames that the decoder could not restore, which are unfit for training, and `facts` what the source
    is: size, images per second, codec, declared range of its values. Raises `MediaError` for
    unreadable files, files without video, still images, a change of shape, and at the end if the file stops more than
    half a second before its declared end (truncated).
    """
    notes = Notes() if notes is None else notes
    with opened(path) as container:
        stream = main_video(path, container, notes)
        losses, whole, n = _Losses(start_s(container)), _Whole(), 0
        convert = _ToRgb(path, max_side, notes)
        for image in _at_constant_rate(_timed_images(path, container, stream, losses, whole)):
            yield convert(image, stream.sample_aspect_ratio)
            n += 1
        if n == 0:
            raise MediaError(path, "no_frames", "no image could be decoded")
        declared = says_s(path, container, stream, n / FPS)
        if declared is not None and n / FPS < declared - 0.5:
            raise MediaError(
                path, "truncated", f"cut off: declares {declared:.2f} s but the images end at {n / FPS:.2f} s"
            )
        if whole.used:
            notes.add("interlaced", f"{path}: interlaced: its images were deinterlaced (bwdif)")
        if losses.begins:
            notes.add("corruption", f"{path}: its images begin at {losses.begins:.2f} s: nothing is shown before")
        if n > FPS and 0 < losses.rate < _FEW:
            notes.add("rate", f"{path}: {losses.rate:.3g} images per second: movements are jerky")
        spoilt = losses.frames(n)
        if damaged := sum(number >= losses.begins * FPS for number in spoilt):
            text = f"{damaged / FPS:.2f} of {n / FPS:.2f} s could not be restored (damaged packets), from"
            at = min(number for number in spoilt if number >= losses.begins * FPS)
            notes.add("corruption", f"{path}: {text} {at / FPS:.2f} s on")
        if bad is not None:
            bad.update(spoilt)
        if facts is not None:
            context = stream.codec_context
            extent = {1: "limited", 2: "full"}.get(int(context.color_range), "undeclared")
            size = {"width": context.width, "height": context.height}
            facts |= {**size, "fps": round(losses.rate, 3), "codec": context.name, "range": extent}


def read_video(
    path: Path | str,
    *,
    start: int = 0,
    stop: int | None = None,
    max_side: int | None = None,
    notes: Notes | None = None,
) -> UInt8[np.ndarray, "T Y X 3"]:
    """Frames [start, stop) of a video at 25 fps, all in memory (for short clips and tests; else `iter_video`)."""
    chosen: list[np.ndarray] = []
    with contextlib.closing(iter_video(path, max_side=max_side, notes=notes)) as frames:  # type: ignore[type-var]
        for n, frame in enumerate(frames):
            if stop is not None and n >= stop:
                break
            if n >= start:
                chosen.append(frame)
    if not chosen:
        raise MediaError(path, "no_frames", f"has no frames in [{start}, {stop})")
    return np.stack(chosen)
