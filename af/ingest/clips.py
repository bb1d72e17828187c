"""Cutting a conversation, or one person's video, into clips: one pass finds faces and scene cuts, another makes crops."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, UInt8

from af.clock import FPS, frames_to_samples, frames_to_seconds, seconds_to_frames
from af.data.audio import fit_audio, read_audio
from af.data.codecs import VideoEncoder, encode_audio
from af.data.container import MediaError, Notes
from af.data.schema import MUTE, ROLES, ClipMeta, spans
from af.data.selection import Keep, Measured
from af.ingest import quality
from af.ingest.detection import Detector, Watch, frames_from, half_of, look_through
from af.ingest.landmarks import MEDIAPIPE_BLENDSHAPES, Face, FaceLandmarker, filled, parameters_of
from af.ingest.measures import FaceLook, pose_measures, rounded, voice_measures
from af.ingest.options import IngestOptions
from af.ingest.sources import SILENCE, Source
from af.ingest.tracks import Track, choose_face, crop, find_clips, steady_crops


@dataclass(frozen=True)
class Recording:
    """Result of the first pass: the clips, what was left out, and by role: track, audio, measures of the whole recording,
    and what the source is (`media`).
    """

    tracks: Mapping[str, Track]
    audio: Mapping[str, Float32[np.ndarray, " S"]]
    separation: str
    clips: tuple[tuple[int, int], ...]
    dropped: Mapping[str, int]
    measured: Mapping[str, Mapping[str, float | None]]
    media: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Cut:
    """A clip of the second pass: its measures by role, why it is not kept (None: it is), and some of its frames, side by
    side, with a row a person.
    """

    key: str
    start_s: float
    stop_s: float
    quality: Mapping[str, Mapping[str, float | None]]
    objection: str | None
    strip: UInt8[np.ndarray, "Y X 3"]


def _audio(
    source: Source, notes: Notes, facts: Mapping[str, dict[str, Any]]
) -> tuple[dict[str, np.ndarray | None], str]:
    """Audio by role (None: silence), and how the voices are separated; `facts` gets what is read. Raises `MediaError`.

    A video of one person without audio is `MUTE`: its voice is unknown, and stored as silence.
    """
    out: dict[str, np.ndarray | None] = {}
    for channel, role in enumerate(source.roles):
        given = getattr(source, f"audio_{role}")
        if given == SILENCE:
            out[role] = None
            continue
        try:
            own_channel = channel if source.stereo and given is None else None
            out[role] = read_audio(given or source.file(role), channel=own_channel, notes=notes, facts=facts[role])
        except MediaError as error:
            if error.reason == "no_audio" and source.single and given is None:
                return _mute(source, notes)
            if error.reason == "no_audio" and given is None:
                text = f"{error.text}; give its audio as a file, or as '{SILENCE}' if the person never speaks"
                raise MediaError(source.file(role), "no_audio", text) from None
            raise
        if source.single and given is None and not out[role].any():  # type: ignore[union-attr]
            return _mute(source, notes)
    if source.video is None or (source.audio_a and source.audio_b):
        return out, "tracks"
    return out, "stereo" if source.stereo else "mixed"


def _mute(source: Source, notes: Notes) -> tuple[dict[str, np.ndarray | None], str]:
    notes.add("mute", f"{source.name}: no sound; its clips are for the autoencoder alone")
    return {"a": None}, MUTE


def _first_frames(source: Source, options: IngestOptions) -> dict[str, int]:
    """Frames of each person's files before both record: whole frames, to keep images and audio together."""
    offset = seconds_to_frames(options.offset_s if source.offset is None else source.offset)
    return {"a": max(0, offset), "b": max(0, -offset)}


def examine(
    source: Source,
    options: IngestOptions,
    detector: Detector,
    watch: Watch | None = None,
    notes: Notes | None = None,
) -> Recording:
    """The first pass: finds everything needed to cut clips, without keeping a frame. `notes` collects remarks on a
    usable conversation. Raises `MediaError` for bad input.
    """
    notes = Notes() if notes is None else notes
    first = _first_frames(source, options)
    sounds: dict[str, dict[str, Any]] = {role: {} for role in source.roles}
    heard, separation = _audio(source, notes, sounds)  # cheap, so checked first
    heard = {r: None if s is None else s[frames_to_samples(first[r]) :] for r, s in heard.items()}
    looks = {
        role: look_through(
            source.file(role),
            detector,
            options.detect_every,
            watch,
            half=source.half(role),
            first=first[role],
            notes=notes,
        )
        for role in source.roles
    }
    lengths = {role: look.frames for role, look in looks.items()}
    late_s = frames_to_seconds(max(first.values()))
    frames = quality.common_length(source, lengths, heard, options.length_tolerance_s, notes, late_s)
    silent = np.zeros(frames_to_samples(frames), np.float32)
    audio = {role: silent if s is None else fit_audio(s, frames) for role, s in heard.items()}
    tracks: dict[str, Track] = {}
    measured = {role: dict[str, float | None]({"lip_lag": None, "side_lag": None}) for role in source.roles}
    for role in source.roles:
        look = looks[role] = looks[role].up_to(frames)
        half = source.half(role)
        name = source.file(role) + (f" ({half} half)" if half else "")
        own_voice = heard[role] is not None and separation != "mixed"
        voice = quality.voice_changes(audio[role], frames) if own_voice else None
        path = choose_face(look, voice, getattr(source, f"face_{role}") or options.face, name, notes)
        if not np.isnan(path).all() and quality.stands_still(look, path):
            text = "the image never changes, and a still person teaches nothing; record the person, or leave it out"
            raise MediaError(name, "still", text)
        quality.note_movement(look, path, name, notes)
        measured[role]["source_fps"] = look.facts.get("fps")
        if voice is not None and (late := quality.check_lips(look, path, voice, name, options, notes)) is not None:
            measured[role]["lip_lag"] = late.seconds
        tracks[role] = steady_crops(
            path,
            look.looks,
            frames,
            look.cuts,
            look.size,
            margin=options.margin,
            smoothing_s=options.smoothing_s,
            bridged_gap_s=options.bridged_gap_s,
            unusable=look.bad,
        )
        if not tracks[role].present.any():
            text = f"no face found{f' in its {half} half' if half else ''} in {frames_to_seconds(frames):.1f} s"
            raise MediaError(source.file(role), "no_face", text)
    voices = list(audio.values())
    if separation == "mixed" or (len(voices) == 2 and voices[0].any() and np.array_equal(voices[0], voices[1])):
        text = "both people have the same mixed audio; give each person's own voice with --audio"
        notes.add("mixed", f"{source.name}: {text}{', or --stereo' if source.video else ''}")
    elif source.a and all(s is not None for s in heard.values()):
        shared = quality.check_shared(source, audio, options, notes)
        for one in measured.values():
            one["side_lag"] = None if shared is None else shared.seconds
    bad = np.zeros(frames, bool)
    bad[sorted(set().union(*(look.bad for look in looks.values())))] = True
    both = np.logical_and.reduce([track.present for track in tracks.values()])
    minimum = max(1, seconds_to_frames(options.min_s))
    maximum = max(minimum, seconds_to_frames(options.max_s))
    cuts = [cut for look in looks.values() for cut in look.cuts]
    clips = find_clips(both, cuts, minimum=minimum, maximum=maximum)
    kept_frames = sum(stop - start for start, stop in clips)
    dropped = {
        "damaged": int(bad.sum()),
        "no_face": int((~both & ~bad).sum()),
        "too_short": int(both.sum()) - kept_frames,
    }
    media = {role: {"video": dict(looks[role].facts), "audio": sounds[role]} for role in source.roles}
    return Recording(tracks, audio, separation, tuple(clips), dropped, measured, media)


def cut_out(
    source: Source,
    recording: Recording,
    options: IngestOptions,
    split: str,
    watch: Watch | None = None,
    detector: Detector | None = None,
    told: Callable[[Cut], None] = lambda cut: None,
) -> Iterator[tuple[str, ClipMeta, dict[str, Any]]]:
    """The second pass: yields samples for `write_shard`, one clip at a time, except those that `options.keep` drops;
    `told` hears of all. A `detector` that is a `FaceLandmarker` also measures the faces in the crops.
    """
    keep = None if options.keep is None else Keep(options.keep, "--keep")
    roles = source.roles
    files = {role: source.file(role) for role in roles}
    first = _first_frames(source, options)
    with contextlib.ExitStack() as stack:
        videos = [stack.enter_context(contextlib.closing(frames_from(files[role], first[role]))) for role in roles]  # type: ignore[type-var]
        frames = zip(*videos, strict=False)
        at = 0
        for number, (start, stop) in enumerate(recording.clips):
            encoders = {role: VideoEncoder(crf=options.crf) for role in roles}
            faces, looks = _Faces(detector), {role: FaceLook(stop - start) for role in roles}
            for n, images in zip(range(at, stop), frames, strict=False):
                at = n + 1
                if n < start:
                    continue
                for role, full in zip(roles, images, strict=True):
                    whole, box = half_of(full, source.half(role)), recording.tracks[role].boxes[n]
                    face = crop(whole, box, options.size)
                    encoders[role].write(face)
                    faces.read(role, face)
                    looks[role].see(whole, box, face)
                if watch is not None and n % FPS == 0:
                    watch(f"cutting clips: {Path(files[roles[-1]]).name}", n)
            parameters, found = faces.finish()
            if at != stop:
                raise MediaError(files["a"], "truncated", f"{' or '.join(files.values())} ended early when read again")
            samples = slice(frames_to_samples(start), frames_to_samples(stop))
            key, audio = f"{source.id}-{number:04d}", {r: sound[samples] for r, sound in recording.audio.items()}
            valid = {r: recording.tracks[r].valid[start:stop] & found.get(r, True) for r in roles}
            measured = {
                r: rounded(
                    {
                        "face_px": float(np.median(recording.tracks[r].face_px[start:stop])),
                        **looks[r].measures(),
                        "valid": float(valid[r].mean()),
                        **pose_measures(parameters[r][found[r], len(MEDIAPIPE_BLENDSHAPES) :] if r in found else None),
                        **_voice(recording, r, audio, stop - start),
                        **recording.measured[r],
                    }
                )
                for r in roles
            }
            objection = None if keep is None else keep.objection(measured, frames_to_seconds(stop - start))
            strip = np.concatenate([looks[r].strip() for r in roles])
            told(Cut(key, frames_to_seconds(start), frames_to_seconds(stop), measured, objection, strip))
            if objection:
                continue
            meta = ClipMeta(
                dataset=options.dataset,
                licence=options.licence,
                consent=options.consent,
                split=split,
                session=source.session or source.id,
                participants=source.participants,
                frames=stop - start,
                image_size=options.size,
                valid={r: spans(valid[r]) if r in roles else () for r in ROLES},
                crop_boxes={r: recording.tracks[r].boxes[start:stop].round(2).tolist() for r in roles},
                separation=recording.separation,
                source={r: Path(files[r]).name for r in roles},
                time_range_s=(frames_to_seconds(start), frames_to_seconds(stop)),
                face_spec=faces.spec,
                quality=measured,
                extra={
                    "media": {r: dict(m) for r, m in recording.media.items()},
                    "layout": "side_by_side" if source.video else "single" if source.single else "pair",
                    "first_s": {r: frames_to_seconds(first[r]) for r in roles},
                },
                one_sided=bool(source.single),
            )
            members: dict[str, Any] = {f"{role}.mp4": encoders[role].finish() for role in roles}
            members |= {f"{role}.flac": encode_audio(audio[role]) for role in roles}
            members |= {f"{role}.face.npy": rows for role, rows in parameters.items()}
            yield key, meta, members


def _voice(recording: Recording, role: str, audio: Mapping[str, Float32[np.ndarray, " S"]], frames: int) -> Measured:
    """Measures of a person's voice in a clip, unknown for a mute video."""
    found = voice_measures(audio, role, frames, recording.measured[role]["side_lag"] or 0.0)
    return dict.fromkeys(found) if recording.separation == MUTE else found


class _Faces:
    """The face parameters of the crops of one clip, frame by frame, if the detector is a tracker, too."""

    def __init__(self, detector: Detector | None) -> None:
        self._tracker = detector if isinstance(detector, FaceLandmarker) else None
        self.spec = None if self._tracker is None else self._tracker.face_spec
        self._stack = contextlib.ExitStack()
        self._readers: dict[str, Callable[[np.ndarray], Face | None]] = {}
        self._faces: dict[str, list[Face | None]] = {}

    def read(self, role: str, frame: UInt8[np.ndarray, "Y X 3"]) -> None:
        """Measure the next crop of the person called `role`."""
        if self._tracker is None:
            return
        if role not in self._readers:
            self._readers[role] = self._stack.enter_context(self._tracker.reading())
        self._faces.setdefault(role, []).append(self._readers[role](frame))

    def finish(self) -> tuple[dict[str, Float32[np.ndarray, "T P"]], dict[str, Bool[np.ndarray, " T"]]]:
        """Parameters by role, interpolated where no face was found, and where one was."""
        self._stack.close()
        found = {role: np.array([face is not None for face in faces]) for role, faces in self._faces.items()}
        return {role: filled(parameters_of(faces)) for role, faces in self._faces.items()}, found
