"""One conversation to clips: look through it once for faces and scene cuts, then cut the crops out."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float32

from af.clock import FPS, frames_to_samples, frames_to_seconds, samples_to_seconds, seconds_to_frames
from af.data.codecs import VideoEncoder, encode_audio
from af.data.ingest.detect import Detector
from af.data.ingest.sources import SILENCE, Source
from af.data.ingest.track import Track, crop, find_clips, follow, steady_crops
from af.data.media import MediaError, fit_audio, iter_video, read_audio
from af.data.schema import ROLES, ClipMeta, spans

#: Told while a file is worked on: (what is done, frames so far).
Watch = Callable[[str, int], None]

_LOOK_SIDE = 360  # faces are looked for in frames scaled down to this
_CUT_SIDE = 128


@dataclass(frozen=True)
class IngestOptions:
    """How to ingest; the same for everything in one output folder.

    `size` pixels of the square crops; `margin` times the face is the crop's side; a face is looked for in every
    `detect_every`-th frame; clips last `min_s` to `max_s` seconds; faces may be missing for `bridged_gap_s`;
    the two people's files may differ by `length_tolerance_s`.
    """

    size: int = 512
    margin: float = 2.0
    smoothing_s: float = 1.0
    detect_every: int = 5
    min_s: float = 2.0
    max_s: float = 20.0
    bridged_gap_s: float = 1.0
    length_tolerance_s: float = 1.0
    detector: str = "haar"
    detector_model: str | None = None
    crf: int = 12
    dataset: str = "own"
    licence: str = "unknown"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Recording:
    """What the first look found: the common length and, by role, track, scene cuts, frame size and sound."""

    frames: int
    tracks: Mapping[str, Track]
    cuts: tuple[int, ...]
    audio: Mapping[str, Float32[np.ndarray, " S"]]
    separation: str
    clips: tuple[tuple[int, int], ...]
    dropped: Mapping[str, int]


def _half(frame: np.ndarray, role: str, side_by_side: bool) -> np.ndarray:
    if not side_by_side:
        return frame
    middle = frame.shape[1] // 2
    return frame[:, :middle] if role == "a" else frame[:, middle:]


def look_through(
    path: str, role: str, side_by_side: bool, detector: Detector, every: int, watch: Watch | None = None
) -> tuple[list[np.ndarray], list[int], list[int], int, tuple[int, int]]:
    """(boxes at each look in full-frame pixels, frames looked at, scene cuts, number of frames, (height, width))."""
    from scenedetect import AdaptiveDetector, FrameTimecode

    with contextlib.closing(iter_video(path)) as whole:  # type: ignore[type-var]
        size = _half(next(whole), role, side_by_side).shape[:2]
    cutter = AdaptiveDetector(min_scene_len=1)
    boxes: list[np.ndarray] = []
    looks: list[int] = []
    cuts: list[int] = []
    n = 0
    for n, full in enumerate(iter_video(path, max_side=_LOOK_SIDE * (2 if side_by_side else 1)), 1):
        frame = _half(full, role, side_by_side)
        shrink = min(1.0, _CUT_SIDE / max(frame.shape[:2]))
        small = cv2.resize(frame, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA)
        cuts += [c.frame_num for c in cutter.process_frame(FrameTimecode(n - 1, float(FPS)), small[..., ::-1])]
        if watch is not None and n % FPS == 0:
            watch(f"looking for faces: {Path(path).name}", n)
        if (n - 1) % every == 0:
            found = np.asarray(detector(np.ascontiguousarray(frame)), np.float64).reshape(-1, 5)
            boxes.append(found * np.array([size[1] / frame.shape[1], size[0] / frame.shape[0]] * 2 + [1.0]))
            looks.append(n - 1)
    return boxes, looks, cuts, n, size


def _sounds(source: Source) -> tuple[dict[str, np.ndarray | None], str]:
    """Sound by role (None: silence) and how the voices are told apart. Raises `MediaError`."""
    own = {"a": source.a or source.video, "b": source.b or source.video}
    given = {"a": source.audio_a, "b": source.audio_b}
    out: dict[str, np.ndarray | None] = {}
    for number, role in enumerate(ROLES):
        path = given[role] or own[role]
        assert path is not None
        if path == SILENCE:
            out[role] = None
        else:
            channel = number if source.stereo and given[role] is None else None
            try:
                out[role] = read_audio(path, channel=channel)
            except MediaError as error:
                if error.reason == "no_audio" and given[role] is None:
                    text = f"{error.text}; give its sound as a file, or as '{SILENCE}' if the person never speaks"
                    raise MediaError(path, "no_audio", text) from None
                raise
    mixed = source.video is not None and not source.stereo and not all(given.values())
    return out, "mixed" if mixed else "stereo" if source.stereo and not all(given.values()) else "tracks"


def examine(source: Source, options: IngestOptions, detector: Detector, watch: Watch | None = None) -> Recording:
    """The first pass: everything needed to cut clips, without keeping a frame. Raises `MediaError` for bad input."""
    side_by_side = source.video is not None
    files = {"a": source.a or source.video, "b": source.b or source.video}
    sounds, separation = _sounds(source)  # cheap, so first
    looked = {}
    for role in ROLES:
        path = files[role]
        assert path is not None
        looked[role] = look_through(path, role, side_by_side, detector, options.detect_every, watch)
    frames = _common_length(source, {r: looked[r][3] for r in ROLES}, sounds, options.length_tolerance_s)
    tracks: dict[str, Track] = {}
    all_cuts: set[int] = set()
    for role in ROLES:
        boxes, looks, cuts, _, size = looked[role]
        kept = [n for n in looks if n < frames]
        cuts = [c for c in cuts if 0 < c < frames]
        all_cuts.update(cuts)
        scene = np.searchsorted(np.asarray(sorted(cuts)), kept, side="right").tolist()
        tracks[role] = steady_crops(
            follow(boxes[: len(kept)], scene),
            kept,
            frames,
            cuts,
            size,
            margin=options.margin,
            smoothing_s=options.smoothing_s,
            bridged_gap_s=options.bridged_gap_s,
        )
        if not tracks[role].present.any():
            where = "" if not side_by_side else " in its left half" if role == "a" else " in its right half"
            raise MediaError(str(files[role]), "no_face", f"no face found{where} in {frames_to_seconds(frames):.1f} s")
    both = tracks["a"].present & tracks["b"].present
    scenes = tuple(sorted(all_cuts))
    minimum = max(1, seconds_to_frames(options.min_s))
    clips = find_clips(both, scenes, minimum=minimum, maximum=max(minimum, seconds_to_frames(options.max_s)))
    kept_frames = sum(stop - start for start, stop in clips)
    missing = int(frames - both.sum())
    dropped = {"no_face": missing, "too_short": frames - missing - kept_frames}
    audio = {
        r: np.zeros(frames_to_samples(frames), np.float32) if s is None else fit_audio(s, frames)
        for r, s in sounds.items()
    }
    return Recording(frames, tracks, scenes, audio, separation, tuple(clips), dropped)


def _common_length(
    source: Source, pictures: Mapping[str, int], sounds: Mapping[str, np.ndarray | None], tolerance_s: float
) -> int:
    """Frames that all files have; a part of a frame of sound counts. Raises `MediaError` when they differ too much."""
    lengths = {source.a or str(source.video): frames_to_seconds(pictures["a"])}
    lengths[source.b or str(source.video)] = frames_to_seconds(pictures["b"])
    shortest = min(pictures.values())
    for role, sound in sounds.items():
        if sound is not None:
            path = (
                source.audio_a if role == "a" else source.audio_b
            ) or f"the sound of {getattr(source, role) or source.video}"
            lengths[path] = samples_to_seconds(len(sound))
            shortest = min(shortest, -(-len(sound) // frames_to_samples(1)))
    short, long = min(lengths, key=lambda k: lengths[k]), max(lengths, key=lambda k: lengths[k])
    if lengths[long] - lengths[short] > tolerance_s:
        text = (
            f"lasts {lengths[short]:.2f} s, but {long} lasts {lengths[long]:.2f} s; both must cover the same instants"
        )
        raise MediaError(short, "length_mismatch", text)
    return shortest


def cut_out(
    source: Source, recording: Recording, options: IngestOptions, split: str, watch: Watch | None = None
) -> Iterator[tuple[str, ClipMeta, dict[str, Any]]]:
    """The second pass: samples for `write_shard`, one clip at a time."""
    side_by_side = source.video is not None
    files = {role: str(getattr(source, role) or source.video) for role in ROLES}
    with contextlib.ExitStack() as stack:
        videos = [stack.enter_context(contextlib.closing(iter_video(files[role]))) for role in ROLES]  # type: ignore[type-var]
        frames = zip(*videos, strict=False)
        at = 0
        for number, (start, stop) in enumerate(recording.clips):
            for _ in itertools.islice(frames, start - at):
                pass
            encoders = {role: VideoEncoder(crf=options.crf) for role in ROLES}
            for n, pair in zip(range(start, stop), frames, strict=False):
                for role, full in zip(ROLES, pair, strict=True):
                    frame = _half(full, role, side_by_side)
                    encoders[role].add(crop(frame, recording.tracks[role].boxes[n], options.size))
                if watch is not None and n % FPS == 0:
                    watch(f"cutting clips: {Path(files['b']).name}", n)
                at = n + 1
            if at != stop:
                raise MediaError(files["a"], "truncated", f"it or {files['b']} ended early on the second reading")
            meta = ClipMeta(
                dataset=options.dataset,
                licence=options.licence,
                split=split,
                session=source.session or source.id,
                participants=source.participants,
                frames=stop - start,
                image_size=options.size,
                valid={r: spans(recording.tracks[r].valid[start:stop]) for r in ROLES},
                crop_boxes={r: recording.tracks[r].boxes[start:stop].round(2).tolist() for r in ROLES},
                separation=recording.separation,
                source={r: Path(files[r]).name for r in ROLES},
                time_range_s=(frames_to_seconds(start), frames_to_seconds(stop)),
                extra={"layout": "side_by_side" if side_by_side else "pair"},
            )
            members: dict[str, Any] = {f"{role}.mp4": encoders[role].finish() for role in ROLES}
            for role in ROLES:
                sound = recording.audio[role][frames_to_samples(start) : frames_to_samples(stop)]
                members[f"{role}.flac"] = encode_audio(sound)
            yield f"{source.id}-{number:04d}", meta, members
