"""One conversation to clips: look through it once for faces and scene cuts, then cut the crops out."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from af.clock import FPS, frames_to_samples, frames_to_seconds, samples_to_seconds, seconds_to_frames
from af.data.codecs import VideoEncoder, encode_audio
from af.data.media import MediaError, fit_audio, read_audio
from af.data.notes import Notes
from af.data.schema import ROLES, ClipMeta, spans
from af.ingest.detect import Detector
from af.ingest.faces import choose_face, mouth_changes, note_movement, stands_still
from af.ingest.look import Watch, frames_from, half, look_through
from af.ingest.options import IngestOptions
from af.ingest.sources import SILENCE, Source
from af.ingest.sync import Lag, lip_lag, shared_lag, voice_changes
from af.ingest.track import Track, crop, find_clips, steady_crops


@dataclass(frozen=True)
class Recording:
    """What the first look found: the clips, what was left out, and by role track and sound."""

    tracks: Mapping[str, Track]
    audio: Mapping[str, Float32[np.ndarray, " S"]]
    separation: str
    clips: tuple[tuple[int, int], ...]
    dropped: Mapping[str, int]


def _sounds(source: Source, notes: Notes) -> tuple[dict[str, np.ndarray | None], str]:
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
                out[role] = read_audio(path, channel=channel, notes=notes)
            except MediaError as error:
                if error.reason == "no_audio" and given[role] is None:
                    text = f"{error.text}; give its sound as a file, or as '{SILENCE}' if the person never speaks"
                    raise MediaError(path, "no_audio", text) from None
                raise
    mixed = source.video is not None and not source.stereo and not all(given.values())
    return out, "mixed" if mixed else "stereo" if source.stereo and not all(given.values()) else "tracks"


def _first_frames(source: Source, options: IngestOptions) -> dict[str, int]:
    """Frames of each person's files before both record: whole ones, so that pictures and sound stay together."""
    offset = seconds_to_frames(options.offset_s if source.offset is None else source.offset)
    return {"a": max(0, offset), "b": max(0, -offset)}


def _file(source: Source, role: str) -> str:
    return str(getattr(source, role) or source.video)


def examine(
    source: Source,
    options: IngestOptions,
    detector: Detector,
    watch: Watch | None = None,
    notes: Notes | None = None,
) -> Recording:
    """The first pass: everything needed to cut clips, without keeping a frame. `notes` gets what is noteworthy and leaves
    the conversation usable. Raises `MediaError` for bad input.
    """
    notes = Notes() if notes is None else notes
    side_by_side = source.video is not None
    first = _first_frames(source, options)
    sounds, separation = _sounds(source, notes)  # cheap, so first
    sounds = {r: None if s is None else s[frames_to_samples(first[r]) :] for r, s in sounds.items()}
    looked = {
        role: look_through(
            _file(source, role),
            role,
            side_by_side,
            detector,
            options.detect_every,
            watch,
            first=first[role],
            notes=notes,
        )
        for role in ROLES
    }
    frames = _common_length(
        source, {r: looked[r].frames for r in ROLES}, sounds, options.length_tolerance_s, notes, first
    )
    audio = {
        r: np.zeros(frames_to_samples(frames), np.float32) if s is None else fit_audio(s, frames)
        for r, s in sounds.items()
    }
    tracks: dict[str, Track] = {}
    for role in ROLES:
        look = looked[role] = looked[role].up_to(frames)
        name = _file(source, role) + (f" ({'left' if role == 'a' else 'right'} half)" if side_by_side else "")
        voice = voice_changes(audio[role], frames) if sounds[role] is not None and separation != "mixed" else None
        wish = getattr(source, f"face_{role}") or options.face
        path = choose_face(look, voice, wish, name, notes)
        if not np.isnan(path).all() and stands_still(look, path):
            text = (
                "one picture all the time: a person who never moves teaches nothing; record the person, or leave it out"
            )
            raise MediaError(name, "still", text)
        note_movement(look, path, name, notes)
        if voice is not None:
            apart = lip_lag(mouth_changes(look, path), voice)
            mend = _MEND.format(0 if apart is None else -apart.seconds)
            _check_lag(apart, name, "its sound is {where} its lips", options, notes, mend)
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
            where = "" if not side_by_side else " in its left half" if role == "a" else " in its right half"
            raise MediaError(
                _file(source, role), "no_face", f"no face found{where} in {frames_to_seconds(frames):.1f} s"
            )
    if separation == "mixed" or (audio["a"].any() and np.array_equal(audio["a"], audio["b"])):
        text = "both people get the same mixed sound, nobody's own voice; give each one's with --audio"
        notes.add("mixed", f"{source.name}: {text}{', or --stereo' if side_by_side else ''}")
    elif not side_by_side and all(s is not None for s in sounds.values()):
        _check_shared(source, audio, options, notes)
    bad = np.zeros(frames, bool)
    bad[sorted(looked["a"].bad | looked["b"].bad)] = True
    both = tracks["a"].present & tracks["b"].present
    scenes = tuple(sorted({*looked["a"].cuts, *looked["b"].cuts}))
    minimum = max(1, seconds_to_frames(options.min_s))
    clips = find_clips(both, scenes, minimum=minimum, maximum=max(minimum, seconds_to_frames(options.max_s)))
    kept_frames = sum(stop - start for start, stop in clips)
    missing = int((~both & ~bad).sum())
    dropped = {"damaged": int(bad.sum()), "no_face": missing, "too_short": int(both.sum()) - kept_frames}
    return Recording(tracks, audio, separation, tuple(clips), dropped)


_MEND = "ffmpeg -i OLD -itsoffset {:.2f} -i OLD -map 0:v -map 1:a -c copy NEW moves the sound"
_NOTED_S = 0.08  # two frames: less is within what the estimates see


def _check_lag(lag: Lag | None, path: str, what: str, options: IngestOptions, notes: Notes, mend: str) -> None:
    """Note a lag that is sure, or refuse it beyond the limit. Nothing is ever shifted by an estimate."""
    if lag is None or abs(lag.seconds) < _NOTED_S:
        return
    seconds, where = abs(lag.seconds), "behind" if lag.seconds > 0 else "ahead of"
    text = f"{what.format(where=f'about {seconds:.2f} s {where}')} (a peak of {lag.sureness:.0f} sigma)"
    if seconds > options.offset_limit_s:
        raise MediaError(path, "offset", f"{text}, more than --offset-limit {options.offset_limit_s:g}; {mend}")
    notes.add("offset", f"{path}: {text}; kept as it is; {mend}")


def _check_shared(source: Source, audio: Mapping[str, np.ndarray], options: IngestOptions, notes: Notes) -> None:
    """What both sounds hold, such as a voice that reached the other's microphone, says how far they are apart."""
    lag, drift = shared_lag(audio["a"], audio["b"])
    if lag is None:
        return
    notes.add("bleed", f"{source.a} and {source.b}: a voice is heard in both; separated voices train better")
    given = options.offset_s if source.offset is None else source.offset
    fitting = given - lag.seconds  # what b holds later began later for a: b was started earlier
    what = f"what is heard in both files is {{where}} {source.a}"
    _check_lag(lag, str(source.b), what, options, notes, f"--offset {fitting:.2f} would fit")
    if drift is not None and abs(drift) > _DRIFT:
        text = f"{source.b}: drifts by {drift * 100:+.2f} % against {source.a} ({drift * 60:+.2f} s a minute)"
        notes.add("drift", f"{text}; kept as it is: its reactions come late or early")


_DRIFT = 2e-4  # 12 ms a minute


_LENGTHS_S = 0.2


def _common_length(
    source: Source,
    pictures: Mapping[str, int],
    sounds: Mapping[str, np.ndarray | None],
    tolerance_s: float,
    notes: Notes,
    first: Mapping[str, int],
) -> int:
    """Frames that all files have from `first` on; a part of a frame of sound counts. Raises `MediaError` when they differ
    too much.
    """
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
    late = frames_to_seconds(max(first.values()))
    since = f", counted from where both record ({late:g} s into the one that began first)" if late else ""
    if lengths[long] - lengths[short] > tolerance_s:
        text = (
            f"lasts {lengths[short]:.2f} s, but {long} lasts {lengths[long]:.2f} s{since}; "
            "both must cover the same instants"
        )
        raise MediaError(short, "length_mismatch", text)
    if lengths[long] - lengths[short] > _LENGTHS_S:
        text = f"lasts {lengths[short]:.2f} s, {long} lasts {lengths[long]:.2f} s{since}: all are cut to the shortest"
        notes.add("lengths", f"{short}: {text}; see whether both began at one instant (--offset)")
    return shortest


def cut_out(
    source: Source, recording: Recording, options: IngestOptions, split: str, watch: Watch | None = None
) -> Iterator[tuple[str, ClipMeta, dict[str, Any]]]:
    """The second pass: samples for `write_shard`, one clip at a time."""
    side_by_side = source.video is not None
    files = {role: _file(source, role) for role in ROLES}
    first = _first_frames(source, options)
    with contextlib.ExitStack() as stack:
        videos = [stack.enter_context(contextlib.closing(frames_from(files[role], first[role]))) for role in ROLES]  # type: ignore[type-var]
        frames = zip(*videos, strict=False)
        at = 0
        for number, (start, stop) in enumerate(recording.clips):
            for _ in itertools.islice(frames, start - at):
                pass
            encoders = {role: VideoEncoder(crf=options.crf) for role in ROLES}
            for n, pair in zip(range(start, stop), frames, strict=False):
                for role, full in zip(ROLES, pair, strict=True):
                    frame = half(full, role, side_by_side)
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
                extra={
                    "layout": "side_by_side" if side_by_side else "pair",
                    "first_s": {r: frames_to_seconds(first[r]) for r in ROLES},
                },
            )
            members: dict[str, Any] = {f"{role}.mp4": encoders[role].finish() for role in ROLES}
            for role in ROLES:
                sound = recording.audio[role][frames_to_samples(start) : frames_to_samples(stop)]
                members[f"{role}.flac"] = encode_audio(sound)
            yield f"{source.id}-{number:04d}", meta, members
