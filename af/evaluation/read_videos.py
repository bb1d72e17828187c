"""Measuring the files of any system against true ones, from a list of clips."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from rich.console import Console

from af.clock import frames_to_seconds, samples_to_seconds
from af.console import progress_bar
from af.data.audio import read_audio
from af.data.container import MediaError, Notes
from af.data.generated import refuse_marked
from af.data.images import read_image
from af.data.video import read_video
from af.errors import UserError
from af.evaluation.extractors import tracked
from af.evaluation.manifest import ManifestClip, read_manifest
from af.evaluation.measured import SIDES, Measured, Table, fill_gaps, hints, look, paired_features, remarks
from af.evaluation.reconstruction import frame_likeness
from af.evaluation.report import write_report
from af.evaluation.settings import ONLY_DRAWN, FilesSettings
from af.files import claim_folder, sha256_of
from af.ingest.landmarks import MEDIAPIPE_BLENDSHAPES, MEDIAPIPE_POSE
from af.metrics.records import EvaluationClip, digest
from af.metrics.smoothness import sharpness
from af.models.tracker import FaceTracker
from af.types import FaceSpec

#: Known layouts of arrays without column names: {columns: number of expression parameters}.
KNOWN_LAYOUTS = {56: 50, 58: 52}


def compare(clips: Path, out: Path, settings: FilesSettings) -> int:
    """Measure the files listed in `clips` and write the report to `out`; returns the exit code, 1 if a part failed.

    Unreadable clips are reported and skipped. Raises UserError when no clip could be measured.
    """
    console, listed = Console(), read_manifest(clips)
    claim_folder(out / "comparison.json", {"clips": str(clips.resolve())})
    reader, measured, problems = Reader(settings, out / "cache"), list[Measured](), dict[str, str]()
    with progress_bar(console=console) as progress:
        for clip in progress.track(listed, description="measuring clips"):
            try:
                found = reader.read(clip)
                first = measured[0].clip.face if measured else None
                if first is not None and found.clip.face not in (None, first):
                    raise UserError(f"clip {clip.clip}: tracker {found.clip.face!r} beside {first!r}; never mix them")
                measured.append(found)
            except UserError as error:
                problems[clip.clip] = str(error)
                console.print(f"left out: {error}", style="yellow", highlight=False, markup=False, soft_wrap=True)
    if not measured:
        raise UserError(f"{clips}: none of the {len(listed)} clips could be measured (see the lines above)")
    table = Table(protocol := settings.named_protocol, settings.metrics)
    for position, m in enumerate(measured):
        table.add(replace(m.clip, position=position))
    result = table.result()
    said = hints(
        measured,
        protocol.block,
        "no face parameters: give arrays in the list, or evaluation/tracker=mediapipe",
        "" if any("generated" in m.videos for m in measured) else "the list has arrays, no videos",
    )
    result.absent |= {tag: why for tag, why in said.items() if tag in result.absent and tag not in table.failed}
    result.absent["drift, latency, speed"] = "measured on a running system, not on files: af evaluate has them"
    drawn = {"faces": [ONLY_DRAWN]} if isinstance(settings.tracker, FaceTracker) else {}
    return write_report(
        out,
        result,
        protocol,
        title=f"Evaluation of {clips.name}",
        measured=measured,
        problems=problems,
        notes={**drawn, **remarks(measured, result)},
        gallery=settings.gallery,
    )


class Reader:
    """Reads clips, from the cache if possible. Raises UserError, naming the file, for an unusable clip."""

    def __init__(self, settings: FilesSettings, cache: Path) -> None:
        self.settings, self.cache = settings, cache

    def read(self, clip: ManifestClip) -> Measured:
        """Read a clip, which is measured again only if a file or tool has changed."""
        described = EvaluationClip(clip.clip, clip.identity, phrase_ends=clip.phrase_ends, session=clip.session)
        videos = {side: path for side in SIDES if (path := clip.video_file(side))}
        files = {name: path for name, path in vars(clip).items() if isinstance(path, Path)}
        stats = {n: os.stat(p) if os.path.exists(p) else None for n, p in files.items()}
        parts = [[n, str(files[n]), s and [s.st_size, s.st_mtime_ns]] for n, s in stats.items()]
        signature = json.dumps([self.settings.signature(), parts])
        path = self.cache / f"{hashlib.sha256(clip.clip.encode()).hexdigest()[:24]}.npz"
        if (kept := Measured(described, videos=videos).load(path, signature)) is not None:
            return kept
        measured = self._measure(clip, described, videos)
        measured.save(path, signature)
        return measured

    def _measure(self, clip: ManifestClip, described: EvaluationClip, paths: Mapping[str, Path]) -> Measured:
        odd, notes = Notes(), list[str]()
        videos = {side: frames for side in SIDES if (frames := self._frames(clip, side, odd)) is not None}
        faces, specs = {}, {}
        for side in SIDES:
            if (found := self._face(clip, side, videos.get(side), notes)) is not None:
                faces[side], specs[side] = found
        lengths = {f"{side} {file.name}": len(faces[side]) for side in faces if (file := clip.face_file(side))}
        lengths |= {f"{side} {paths[side].name}": len(frames) for side, frames in videos.items()}
        length = self._common_length(clip, lengths, notes)
        known: dict[str, Any] = {}
        if len(faces) == len(SIDES):
            _require_one_layout(clip, specs, faces)
            known = {"face": specs["true"], **{side: values[:length] for side, values in faces.items()}}
            for side in SIDES:
                if np.ptp(known[side], axis=0).max() == 0:
                    notes.append(f"{clip.face_file(side) or clip.video_file(side)}: no parameter ever changes")
        known |= self._voices(clip, length, odd, notes)
        notes += [note.text for note in odd]
        videos = {side: frames[:length] for side, frames in videos.items()}
        if "true" in videos and "generated" in videos:
            known |= self._images(clip, videos, known.get("avatar_audio"))
        known["contents"] = _digests(clip, videos, known)
        return Measured(replace(described, **known), tuple(notes), paths)

    def _frames(self, clip: ManifestClip, side: str, notes: Notes) -> UInt8[np.ndarray, "T Y X 3"] | None:
        path, tools = clip.video_file(side), self.settings
        seen = tools.reads_images and side != "user"
        needed = seen or (tools.tracker is not None and clip.face_file(side) is None)
        if path is None or not needed:
            return None
        refuse_marked(path)
        return read_video(path, max_side=512, notes=notes)

    def _face(
        self, clip: ManifestClip, side: str, video: np.ndarray | None, notes: list[str]
    ) -> tuple[Float[np.ndarray, "T P"], FaceSpec] | None:
        file, settings = clip.face_file(side), self.settings
        if file is not None:
            values, names = read_parameters(file)
            return values, array_spec(file, values.shape[1], names, settings)
        if settings.tracker is None or video is None:
            return None
        values, note = fill_gaps(tracked(settings.tracker, video), clip.video_file(side))
        notes += [note] if note else []
        return values, settings.tracker.face_spec

    def _common_length(self, clip: ManifestClip, lengths: dict[str, int], notes: list[str]) -> int:
        if not lengths:
            return 0
        shortest, longest = min(lengths.values()), max(lengths.values())
        said = ", ".join(f"{name} {n}" for name, n in lengths.items())
        if longest - shortest > self.settings.max_length_difference:
            raise UserError(f"clip {clip.clip}: lengths differ by {longest - shortest} frames ({said})")
        if shortest < 2:
            raise UserError(f"clip {clip.clip}: only {shortest} frame ({said}); nothing can be measured")
        if longest > shortest:
            notes.append(f"cut to the shortest of {said} frames")
        return shortest

    def _voices(self, clip: ManifestClip, length: int, odd: Notes, notes: list[str]) -> dict[str, np.ndarray]:
        voices = {}
        for name, own, video in (
            ("avatar_audio", clip.audio, clip.video_file("true")),
            ("user_audio", clip.user_audio, clip.video_file("user")),
        ):
            source = own or video
            if source is None:
                continue
            try:
                audio = read_audio(source, notes=odd)
            except MediaError as error:
                if own is not None or error.reason != "no_audio":
                    raise
                notes.append(f"{error.path}: no sound")
                continue
            early = frames_to_seconds(length) - samples_to_seconds(len(audio))
            if length and early > 1:
                notes.append(f"{source}: audio ends {early:.1f} s early")
            voices[name] = audio.astype(np.float32)
        return voices

    def _images(self, clip: ManifestClip, videos: Mapping[str, np.ndarray], voice: np.ndarray | None) -> dict[str, Any]:
        """Features of the networks, and similarity of generated and true frames."""
        portrait = videos["true"][0] if clip.source is None else read_image(clip.source)
        if portrait is None:
            raise UserError(f"{clip.source}: not readable as an image")
        features, values = dict[str, list[np.ndarray]](), dict[str, float]()
        for side in ("true", "generated"):
            features[side], found = look(self.settings, side, videos[side], voice, portrait)
            values |= {**found, f"sharpness/{side}": float(np.mean(sharpness(videos[side])))}
        values |= frame_likeness(videos["generated"], videos["true"])
        return {"values": values, "features": paired_features(self.settings, **features)}


def _require_one_layout(clip: ManifestClip, specs: dict[str, FaceSpec], faces: dict[str, np.ndarray]) -> None:
    for side in SIDES:
        if specs[side] != specs["true"]:
            file = clip.face_file(side) or clip.video_file(side)
            raise UserError(
                f"{file}: {faces[side].shape[1]} parameters of {specs[side].tracker!r}, but the true avatar has "
                f"{faces['true'].shape[1]} of {specs['true'].tracker!r}; never mix trackers or layouts"
            )


def _digests(clip: ManifestClip, videos: Mapping[str, np.ndarray], known: Mapping[str, Any]) -> dict[str, list[str]]:
    """Hashes of the common frames, parameters, voices, and files that were not decoded."""
    found: dict[str, list[str]] = {}
    for side in SIDES:
        file = clip.video_file(side)
        found[side] = [digest(x) for x in (videos.get(side), known.get(side)) if x is not None]
        found[side] += [sha256_of(file)] if file is not None and file.is_file() else []
    return found | {name: [digest(known[name])] for name in ("avatar_audio", "user_audio") if name in known}


def read_parameters(path: Path) -> tuple[Float[np.ndarray, "T P"], tuple[str, ...] | None]:
    """Face parameters of an npy, npz (array `face`, or its only one) or csv file, and the column names if given.

    A csv may have a header of names. Raises UserError naming the file: missing, unreadable, not (T, P), NaN.
    """
    if not os.path.isfile(path):
        raise UserError(f"{path}: no such file")
    names: tuple[str, ...] | None = None
    try:
        if path.suffix.lower() == ".csv":
            first = path.read_text(encoding="utf-8-sig").splitlines()[0]
            try:
                [float(cell) for cell in first.split(",")]
            except ValueError:
                names = tuple(cell.strip() for cell in first.split(","))
            array = np.loadtxt(path, delimiter=",", ndmin=2, skiprows=int(names is not None), encoding="utf-8-sig")
        else:
            array = np.load(path, allow_pickle=False)
            if isinstance(array, np.lib.npyio.NpzFile):
                key = "face" if "face" in array.files else array.files[0] if len(array.files) == 1 else None
                if key is None:
                    raise UserError(f"{path}: holds the arrays {', '.join(array.files)}; name the parameters `face`")
                names = tuple(str(n) for n in array["names"]) if "names" in array.files else None
                array = array[key]
        array = np.asarray(array, np.float64)
    except (ValueError, OSError, IndexError, EOFError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable as an array of numbers ({error})") from error
    if array.ndim != 2 or array.shape[1] == 0:
        raise UserError(f"{path}: must be frames x parameters, got shape {array.shape}")
    if names is not None and len(names) != array.shape[1]:
        raise UserError(f"{path}: {len(names)} names for {array.shape[1]} columns")
    bad = ~np.isfinite(array).all(axis=1)
    if bad.any():
        raise UserError(f"{path}: NaN or infinite values in {bad.sum()} frames, first in frame {int(bad.argmax())}")
    return array, names


def array_spec(file: Path, columns: int, named: tuple[str, ...] | None, settings: FilesSettings) -> FaceSpec:
    """The layout of an array: given, or known from its number of columns. Raises UserError naming file and settings."""
    count = KNOWN_LAYOUTS.get(columns) if settings.expression is None else settings.expression
    if count is None:
        raise UserError(
            f"{file}: the layout of {columns} columns is not known (56 and 58 are); say with evaluation.expression=N "
            "how many of them, from the first, are expression (the rest is pose)"
        )
    if not 0 < count <= columns:
        raise UserError(f"{file}: evaluation.expression={count} does not fit {columns} columns")
    names = named or (tuple(settings.names) if settings.names is not None else None)
    if names is not None and len(names) != columns:
        raise UserError(f"{file}: {columns} columns, but evaluation.names gives {len(names)}")
    if names is None and columns == 58 and settings.expression is None:
        names = (*MEDIAPIPE_BLENDSHAPES, *MEDIAPIPE_POSE)
    default = tuple(f"exp{i}" if i < count else f"pose{i - count}" for i in range(columns))
    return FaceSpec(names or default, count, settings.tracker_of_arrays)
