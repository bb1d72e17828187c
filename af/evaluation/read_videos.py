"""What `af evaluate` reads from the files of one clip, kept in a cache so that a stopped evaluation goes on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from af.clock import frames_to_seconds, samples_to_seconds
from af.data.notes import Notes
from af.errors import UserError
from af.evaluation.manifest import ManifestClip
from af.metrics.records import ClipFeatures, EvaluationClip, digest
from af.types import FaceSpec

if TYPE_CHECKING:
    from af.evaluation.extractors import Extractor
    from af.evaluation.syncnet import SyncNet

SIDES = ("user", "true", "generated")
#: Layouts of arrays without names, by number of columns: (expression, names' prefix).
KNOWN_LAYOUTS = {56: ("spectre-or-emoca", 50), 58: ("mediapipe", 52)}
#: Longest gap without a face that is filled by a straight line (0.4 s); longer ones make the clip unusable.
LONGEST_GAP = 10
CACHE_VERSION = 5


@dataclass
class Tools:
    """The extractors of one evaluation and what it does with small differences of length."""

    face: Extractor | None = None
    pictures: Sequence[Extractor] = ()
    embedder: Extractor | None = None
    syncnet: SyncNet | None = None
    syncnet_version: str = ""
    tracker_of_arrays: str = "arrays/unnamed"
    expression: int | None = None
    names: tuple[str, ...] | None = None
    max_length_difference: int = 2

    def signature(self) -> str:
        """What, besides the files, the cached numbers depend on."""
        tags = [e.tag for e in (self.face, *self.pictures, self.embedder) if e is not None]
        return json.dumps([CACHE_VERSION, tags, self.syncnet_version, self.max_length_difference])


@dataclass
class Measured:
    """Numbers of one clip. `faces` is empty without parameters; `frames` is the common length."""

    frames: int
    faces: dict[str, np.ndarray] = field(default_factory=dict)
    face: FaceSpec | None = None
    avatar_audio: np.ndarray | None = None
    user_audio: np.ndarray | None = None
    features: dict[str, np.ndarray] = field(default_factory=dict)  # "<extractor tag>/<side>"
    values: dict[str, float] = field(default_factory=dict)  # numbers of the clip: psnr, lse_d, …
    notes: list[str] = field(default_factory=list)
    digests: dict[str, list[str]] = field(
        default_factory=dict
    )  # of the content of each side and voice (EvaluationClip.contents)


def read_parameters(path: Path) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """Face parameters (T, P) of an npy, npz (array `face`, or its only one) or csv file, and the column names if given.

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
                array = np.loadtxt(path, delimiter=",", ndmin=2, encoding="utf-8-sig")
            except ValueError:
                names = tuple(cell.strip() for cell in first.split(","))
                array = np.loadtxt(path, delimiter=",", ndmin=2, skiprows=1, encoding="utf-8-sig")
        else:
            loaded = np.load(path, allow_pickle=False)
            if isinstance(loaded, np.lib.npyio.NpzFile):
                key = "face" if "face" in loaded.files else loaded.files[0] if len(loaded.files) == 1 else None
                if key is None:
                    raise UserError(f"{path}: holds the arrays {', '.join(loaded.files)}; name the parameters `face`")
                names = tuple(str(n) for n in loaded["names"]) if "names" in loaded.files else None
                array = loaded[key]
            else:
                array = loaded
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


def fill_gaps(values: np.ndarray, path: Path) -> tuple[np.ndarray, str | None]:
    """Tracker output with short gaps (no face, NaN) filled by straight lines, and a note; UserError for long gaps."""
    missing = ~np.isfinite(values).all(axis=1)
    if not missing.any():
        return values, None
    edges = np.flatnonzero(np.diff(np.concatenate([[0], missing.astype(int), [0]])))
    longest = int(np.diff(edges)[::2].max())
    if longest > LONGEST_GAP or missing.all():
        raise UserError(f"{path}: no face was found in {missing.sum()} of {len(values)} frames, {longest} in a row")
    time, known = np.arange(len(values)), np.flatnonzero(~missing)
    filled = np.stack([np.interp(time, known, column[known]) for column in values.T], axis=1)
    return filled, f"{path.name}: {missing.sum()} frames without a face filled by straight lines"


class Measurer:
    """Reads clips, from the cache where it can. A clip that cannot be used raises UserError naming the file."""

    def __init__(self, tools: Tools, cache: Path) -> None:
        self.tools, self.cache = tools, cache
        cache.mkdir(parents=True, exist_ok=True)

    def measure(self, clip: ManifestClip) -> Measured:
        """The numbers of a clip; computed once, until a file or a tool changes."""
        path = self.cache / f"{self._key(clip)}.npz"
        if path.is_file():
            try:
                return _load(path)
            except (ValueError, OSError, KeyError, EOFError):
                path.unlink(missing_ok=True)  # cut off by a full disk: measure again
        measured = self._measure(clip)
        _save(path, measured)
        return measured

    def _key(self, clip: ManifestClip) -> str:
        parts: list = [self.tools.signature(), clip.clip]
        for name in (*SIDES, "audio", "user_audio", "user_face", "true_face", "generated_face", "source"):
            file: Path | None = getattr(clip, name)
            stat = file.stat() if file is not None and os.path.exists(file) else None
            parts.append([name, str(file), None if stat is None else [stat.st_size, stat.st_mtime_ns]])
        layout = [self.tools.tracker_of_arrays, self.tools.expression, self.tools.names]
        return hashlib.sha256(json.dumps([parts, layout]).encode()).hexdigest()[:24]

    def _measure(self, clip: ManifestClip) -> Measured:
        odd = Notes()
        videos = {side: self._frames(clip, side, odd) for side in SIDES}
        measured = Measured(0)
        faces, specs = {}, {}
        for side in SIDES:
            found = self._face(clip, side, videos[side], measured.notes)
            if found is not None:
                faces[side], specs[side] = found
        lengths = {}
        for side in SIDES:
            file, video, frames = clip.face_file(side), clip.video_file(side), videos[side]
            if side in faces and file is not None:
                lengths[f"{side} {file.name}"] = len(faces[side])
            if frames is not None and video is not None:
                lengths[f"{side} {video.name}"] = len(frames)
        measured.frames = self._common_length(clip, lengths, measured.notes)
        if len(faces) == 3:
            self._check_layouts(clip, specs, faces)
            measured.face = specs["true"]
            measured.faces = {side: values[: measured.frames] for side, values in faces.items()}
            for side, values in measured.faces.items():
                if np.ptp(values, axis=0).max() == 0:
                    measured.notes.append(f"{clip.face_file(side) or clip.video_file(side)}: no parameter ever changes")
        self._sound(clip, measured, odd)
        measured.notes += [note.text for note in odd]
        self._pictures(clip, videos, measured)
        measured.digests = self._digests(clip, videos, measured)
        return measured

    def _digests(
        self, clip: ManifestClip, videos: dict[str, np.ndarray | None], measured: Measured
    ) -> dict[str, list[str]]:
        """Of the frames as far as all sides go, of the parameters, and of files that nothing had to decode."""
        from af.data.index import sha256_of

        found: dict[str, list[str]] = {side: [] for side in SIDES}
        for side in SIDES:
            frames, file = videos[side], clip.video_file(side)
            found[side] += [
                digest(values[: measured.frames]) for values in (frames, measured.faces.get(side)) if values is not None
            ]
            found[side] += [sha256_of(file)] if file is not None and file.is_file() else []
        voices = {name: getattr(measured, name) for name in ("avatar_audio", "user_audio")}
        return found | {name: [digest(audio)] for name, audio in voices.items() if audio is not None}

    def _frames(self, clip: ManifestClip, side: str, notes: Notes) -> np.ndarray | None:
        from af.data.video import read_video

        path = clip.video_file(side)
        pictures = self.tools.pictures or self.tools.embedder or self.tools.syncnet
        needed = (pictures and side != "user") or (self.tools.face is not None and clip.face_file(side) is None)
        return read_video(path, max_side=512, notes=notes) if path is not None and needed else None

    def _face(
        self, clip: ManifestClip, side: str, video: np.ndarray | None, notes: list[str]
    ) -> tuple[np.ndarray, FaceSpec] | None:
        file, tools = clip.face_file(side), self.tools
        if file is not None:
            values, names = read_parameters(file)
            return values, array_spec(
                file, values.shape[1], names or tools.names, tools.expression, tools.tracker_of_arrays
            )
        if tools.face is None or video is None or tools.face.face is None:
            return None
        path = clip.video_file(side)
        assert path is not None
        values, note = fill_gaps(tools.face(video), path)
        notes.extend([note] if note else [])
        return values, tools.face.face

    def _common_length(self, clip: ManifestClip, lengths: dict[str, int], notes: list[str]) -> int:
        if not lengths:
            return 0
        shortest, longest = min(lengths.values()), max(lengths.values())
        said = ", ".join(f"{name} {n}" for name, n in lengths.items())
        if longest - shortest > self.tools.max_length_difference:
            raise UserError(f"clip {clip.clip}: lengths differ by {longest - shortest} frames ({said})")
        if shortest < 2:
            raise UserError(f"clip {clip.clip}: only {shortest} frame ({said}); nothing can be measured")
        if longest > shortest:
            notes.append(f"cut to the shortest of {said} frames")
        return shortest

    def _check_layouts(self, clip: ManifestClip, specs: dict[str, FaceSpec], faces: dict[str, np.ndarray]) -> None:
        for side in SIDES:
            if specs[side] != specs["true"]:
                file = clip.face_file(side) or clip.video_file(side)
                raise UserError(
                    f"{file}: {faces[side].shape[1]} parameters of {specs[side].tracker!r}, but the true avatar has "
                    f"{faces['true'].shape[1]} of {specs['true'].tracker!r}; never mix trackers or layouts"
                )

    def _sound(self, clip: ManifestClip, measured: Measured, notes: Notes) -> None:
        from af.data.audio import read_audio
        from af.data.container import MediaError

        for name, own, video in (
            ("avatar_audio", clip.audio, clip.video_file("true")),
            ("user_audio", clip.user_audio, clip.video_file("user")),
        ):
            try:
                source = own or video
                if source is None:
                    continue
                audio = read_audio(source, notes=notes)
            except MediaError as error:
                if own is not None or error.reason != "no_audio":
                    raise
                measured.notes.append(f"{error.path}: no sound")
                continue
            early = frames_to_seconds(measured.frames) - samples_to_seconds(len(audio))
            if measured.frames and early > 1:
                measured.notes.append(f"{source}: sound ends {early:.1f} s early")
            setattr(measured, name, audio)

    def _pictures(self, clip: ManifestClip, videos: dict[str, np.ndarray | None], measured: Measured) -> None:
        """Features, likeness, identity and lip-sync distances of the true and the generated video."""
        from af.metrics.likeness import csim
        from af.metrics.smoothness import sharpness

        true, generated = videos["true"], videos["generated"]
        if true is None or generated is None:
            return
        sides = {"true": true[: measured.frames], "generated": generated[: measured.frames]}
        for extractor in self.tools.pictures:
            for side, frames in sides.items():
                measured.features[f"{extractor.tag}/{side}"] = extractor(frames).astype(np.float32)
        for side, frames in sides.items():
            measured.values[f"sharpness/{side}"] = float(np.mean(sharpness(frames)))
        measured.values |= frame_likeness(sides["generated"], sides["true"])
        if self.tools.embedder is not None:
            source = _portrait(clip) if clip.source is not None else sides["true"][:1]
            reference = self.tools.embedder(source)
            for side, frames in sides.items():
                cosines = csim(self.tools.embedder(frames), reference)
                measured.values[f"csim/{side}"] = float(np.nanmean(cosines))
        if self.tools.syncnet is not None and measured.avatar_audio is not None:
            self._lip_distances(sides, measured)

    def _lip_distances(self, sides: dict[str, np.ndarray], measured: Measured) -> None:
        from af.evaluation.syncnet import lse
        from af.metrics.lipsync import shifted

        assert self.tools.syncnet is not None
        assert measured.avatar_audio is not None
        for side, frames in sides.items():
            result = lse(self.tools.syncnet, frames, measured.avatar_audio)
            measured.values |= {f"lse_d/{side}": result.distance, f"lse_c/{side}": result.confidence}
            measured.values[f"lse_offset/{side}"] = float(result.offset)
        control = lse(self.tools.syncnet, sides["generated"], shifted(measured.avatar_audio))
        measured.values |= {"lse_d/null": control.distance, "lse_c/null": control.confidence}


def evaluation_clip(clip: ManifestClip, measured: Measured, tools: Tools) -> EvaluationClip:
    """What the metrics take of a measured clip."""
    features = [
        ClipFeatures(
            e.tag, e.kind, measured.features[f"{e.tag}/true"], measured.features[f"{e.tag}/generated"], e.metric
        )
        for e in tools.pictures
        if f"{e.tag}/true" in measured.features
    ]
    return EvaluationClip(
        clip.clip,
        clip.identity,
        user=measured.faces.get("user"),
        true=measured.faces.get("true"),
        generated=measured.faces.get("generated"),
        face=measured.face,
        avatar_audio=measured.avatar_audio,
        user_audio=measured.user_audio,
        phrase_ends=clip.phrase_ends,
        session=clip.session,
        features=tuple(features),
        values=measured.values,
        contents=measured.digests,
    )


def picture_features(clips: Sequence[EvaluationClip]) -> dict[str, dict[str, list[np.ndarray]]]:
    """{extractor: {"true" | "generated": features of each clip}} of pictures."""
    found: dict[str, dict[str, list[np.ndarray]]] = {}
    for features in (f for clip in clips for f in clip.features if f.kind == "picture"):
        sides = found.setdefault(features.tag, {"true": [], "generated": []})
        sides["true"].append(features.true)
        sides["generated"].append(features.generated)
    return found


def array_spec(
    file: Path, columns: int, names: tuple[str, ...] | None, expression: int | None, tracker: str
) -> FaceSpec:
    """The layout of an array: given, or known from its number of columns. UserError naming file and options."""
    known = KNOWN_LAYOUTS.get(columns)
    if expression is None and known is None:
        raise UserError(
            f"{file}: the layout of {columns} columns is not known (56 and 58 are); "
            "say with --expression N how many of them, from the first, are expression (the rest is pose)"
        )
    count = known[1] if expression is None and known is not None else int(expression or 0)
    if not 0 < count <= columns:
        raise UserError(f"{file}: --expression {count} does not fit {columns} columns")
    if names is not None and len(names) != columns:
        raise UserError(f"{file}: {columns} columns, but --names gives {len(names)}")
    default = tuple(f"exp{i}" if i < count else f"pose{i - count}" for i in range(columns))
    if names is None and known is not None and known[0] == "mediapipe":
        from af.evaluation.extractors import MEDIAPIPE_BLENDSHAPES, MEDIAPIPE_POSE

        default = (*MEDIAPIPE_BLENDSHAPES, *MEDIAPIPE_POSE)
    return FaceSpec(names or default, count, tracker)


def frame_likeness(generated: np.ndarray, true: np.ndarray, side: int = 128) -> dict[str, float]:
    """PSNR (dB), SSIM and L1 (range 0 … 1) of generated against true frames, at most `side` pixels, mean over frames."""
    import cv2
    import torch

    from af.metrics.likeness import l1, psnr, ssim

    height, width = true.shape[1:3]
    scale = min(1.0, side / max(height, width))
    size = (max(11, round(width * scale)), max(11, round(height * scale)))
    totals = np.zeros(3)
    for start in range(0, len(true), 16):
        mine, theirs = (
            torch.from_numpy(np.stack([cv2.resize(f, size, interpolation=cv2.INTER_AREA) for f in part]))
            for part in (generated[start : start + 16], true[start : start + 16])
        )
        mine, theirs = (images.permute(0, 3, 1, 2).float() / 255 for images in (mine, theirs))
        values = psnr(mine, theirs, 0.0, 1.0), ssim(mine, theirs, 0.0, 1.0), l1(mine, theirs)
        totals += len(mine) * np.array(values)
    return dict(zip(("psnr", "ssim", "l1"), (totals / len(true)).tolist(), strict=True))


def _portrait(clip: ManifestClip) -> np.ndarray:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(str(clip.source)) as image:
            return np.asarray(image.convert("RGB"))[None]
    except (OSError, UnidentifiedImageError) as error:
        raise UserError(f"{clip.source}: not readable as a picture ({error})") from error


def _save(path: Path, measured: Measured) -> None:
    from af.files import atomic_path

    arrays = {f"face/{k}": v for k, v in measured.faces.items()}
    arrays |= {f"feature/{k}": v for k, v in measured.features.items()}
    for name in ("avatar_audio", "user_audio"):
        if getattr(measured, name) is not None:
            arrays[name] = getattr(measured, name).astype(np.float32)
    face = (
        None if measured.face is None else [list(measured.face.names), measured.face.expression, measured.face.tracker]
    )
    header = json.dumps([measured.frames, face, measured.values, measured.notes, measured.digests])
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, header=np.array(header), **arrays)  # type: ignore[arg-type]


def _load(path: Path) -> Measured:
    with np.load(path, allow_pickle=False) as file:
        frames, face, values, notes, digests = json.loads(str(file["header"]))
        arrays = {key: file[key] for key in file.files if key != "header"}
    spec = None if face is None else FaceSpec(tuple(face[0]), face[1], face[2])
    faces = {key.removeprefix("face/"): a for key, a in arrays.items() if key.startswith("face/")}
    features = {key.removeprefix("feature/"): a for key, a in arrays.items() if key.startswith("feature/")}
    sounds = arrays.get("avatar_audio"), arrays.get("user_audio")
    return Measured(frames, faces, spec, *sounds, features, values, notes, digests)
