"""What the `json` of a sample says, checked strictly: a wrong or unknown value fails with its name, never later."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Final, Literal

import numpy as np
from jaxtyping import Bool

from af.clock import FPS, SAMPLE_RATE
from af.errors import UserError

SCHEMA_VERSION: Final = 1
SPLITS: Final = ("train", "val", "test")
ROLES: Final = ("a", "b")
#: Parts a person can have in a shard, by file suffix: video, sound, motion latents, audio features, face parameters.
PERSON_PARTS: Final = ("mp4", "flac", "motion.npy", "audio.npy", "face.npy")
FIELDS: Final = ("json", *(f"{role}.{part}" for role in ROLES for part in PERSON_PARTS))
KEY_PATTERN: Final = re.compile(r"[A-Za-z0-9_-]{1,100}")

Spans = tuple[tuple[int, int], ...]


class SchemaError(UserError):
    """A sample's description is not what the schema allows: the text names the field and what was expected."""


def _refuse_unknown(cls: type, data: Any) -> Mapping[str, Any]:
    """`data` if it is a mapping with only known keys and every key without a default."""
    if not isinstance(data, Mapping):
        raise SchemaError(f"{cls.__name__}: expected an object, got {type(data).__name__}")
    known = {f.name for f in fields(cls)}
    if unknown := sorted(set(data) - known):
        raise SchemaError(f"{cls.__name__}: unknown field {', '.join(unknown)}; known: {', '.join(sorted(known))}")
    return data


def _require(condition: bool, name: str, expected: str, got: Any) -> None:
    if not condition:
        raise SchemaError(f"{name}: expected {expected}, got {got!r}")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and np.isfinite(value)


class _Spec:
    """JSON in and out, and differences in words, for the flat specs below."""

    def to_json(self) -> dict[str, Any]:
        """A plain JSON object; `from_json` gives an equal spec back."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}  # type: ignore[call-overload]

    @classmethod
    def from_json(cls, data: Any):
        """The spec of a JSON object. Raises `SchemaError` on unknown, missing or wrong fields."""
        data = _refuse_unknown(cls, data)
        try:
            return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in data.items()})
        except TypeError as error:
            raise SchemaError(f"{cls.__name__}: {error}") from None

    def differences(self, other: Any) -> tuple[str, ...]:
        """Names of the fields in which the two specs differ."""
        if type(self) is not type(other):
            return ("everything",)
        return tuple(f.name for f in fields(self) if getattr(self, f.name) != getattr(other, f.name))  # type: ignore[arg-type]


@dataclass(frozen=True)
class FeatureSpec(_Spec):
    """How audio features were made; a model refuses features of another spec.

    `dim` is the size of a frame's vector (layers x dim of a layer). Mode `utterance`: the extractor saw the whole clip.
    Mode `streaming`: for the block of `block_frames` frames starting at a multiple of it, the extractor saw the samples
    of at most `window_frames` frames ending with the block, plus `right_context_frames` after it.
    `checkpoint` is the SHA-256 of the extractor's weights, None for one without weights.
    """

    extractor: str
    version: str
    dim: int
    mode: Literal["utterance", "streaming"]
    block_frames: int | None = None
    window_frames: int | None = None
    right_context_frames: int = 0
    layers: tuple[int, ...] = ()
    checkpoint: str | None = None

    def __post_init__(self) -> None:
        _require(isinstance(self.extractor, str) and bool(self.extractor), "extractor", "a name", self.extractor)
        _require(isinstance(self.version, str), "version", "a string", self.version)
        _require(_is_int(self.dim) and self.dim > 0, "dim", "a positive integer", self.dim)
        _require(self.mode in ("utterance", "streaming"), "mode", "utterance or streaming", self.mode)
        _require(_is_int(self.right_context_frames) and self.right_context_frames >= 0, "right_context_frames", "an integer >= 0", self.right_context_frames)  # fmt: skip
        object.__setattr__(self, "layers", tuple(self.layers))
        _require(all(_is_int(n) for n in self.layers), "layers", "integers", self.layers)
        _require(self.checkpoint is None or isinstance(self.checkpoint, str), "checkpoint", "a hash or null", self.checkpoint)  # fmt: skip
        if self.mode == "streaming":
            for name in ("block_frames", "window_frames"):
                value = getattr(self, name)
                _require(_is_int(value) and value > 0, name, "a positive integer with mode streaming", value)
            assert self.block_frames is not None
            assert self.window_frames is not None
            _require(self.window_frames >= self.block_frames, "window_frames", f"at least block_frames = {self.block_frames}", self.window_frames)  # fmt: skip
        else:
            for name in ("block_frames", "window_frames"):
                _require(getattr(self, name) is None, name, "null with mode utterance", getattr(self, name))


@dataclass(frozen=True)
class MotionSpec(_Spec):
    """Which autoencoder made the motion latents: `dim` numbers a frame in a span of `directions` directions."""

    dim: int
    directions: int
    autoencoder: str
    image_size: int

    def __post_init__(self) -> None:
        for name in ("dim", "directions", "image_size"):
            value = getattr(self, name)
            _require(_is_int(value) and value > 0, name, "a positive integer", value)
        _require(isinstance(self.autoencoder, str) and bool(self.autoencoder), "autoencoder", "a hash", self.autoencoder)  # fmt: skip


@dataclass(frozen=True)
class FaceSpec(_Spec):
    """Layout of the face parameters: the first `expression` of `names` are expression, the rest head pose."""

    names: tuple[str, ...]
    expression: int
    tracker: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(self.names))
        _require(len(self.names) > 0 and all(isinstance(n, str) for n in self.names), "names", "parameter names", self.names)  # fmt: skip
        _require(len(set(self.names)) == len(self.names), "names", "different names", self.names)
        _require(_is_int(self.expression) and 0 <= self.expression <= len(self.names), "expression", f"0 to {len(self.names)}", self.expression)  # fmt: skip
        _require(isinstance(self.tracker, str) and bool(self.tracker), "tracker", "a name", self.tracker)


def require_spec(found: _Spec | None, wanted: _Spec, *, where: str, remedy: str) -> None:
    """Refuse data whose spec is not the one a model was built for, saying both. Raises `UserError`."""
    if found == wanted:
        return
    name = type(wanted).__name__
    if found is None:
        raise UserError(f"{where} has no {name}; the model needs {wanted.to_json()}. {remedy}")
    different = ", ".join(
        f"{n}: {getattr(found, n, None)!r} instead of {getattr(wanted, n)!r}" for n in wanted.differences(found)
    )
    raise UserError(
        f"{where}: {name} is not the one the model was built for ({different}).\n"
        f"  found {found.to_json()}\n  model {wanted.to_json()}\n  {remedy}"
    )


def spans(mask: Bool[np.ndarray, " T"]) -> Spans:
    """Runs of True in `mask` as (start, stop) pairs, stop excluded."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], np.asarray(mask, np.int8), [0]))))
    return tuple((int(start), int(stop)) for start, stop in edges.reshape(-1, 2))


@dataclass(frozen=True)
class ClipMeta:
    """The `json` of a sample: two people, the same instants.

    `frames` at 25 fps and 16 kHz mono, square crops of `image_size` pixels. `valid` are the (start, stop) runs of
    frames with a tracked face, by role (None: all). `crop_boxes`, where known, hold x, y and side in pixels of the
    source, one a frame. `separation` says how the two voices were told apart (tracks, synthetic, the tool's name).
    `source` and `time_range_s` say where the clip was cut from; `extra` is free JSON.
    Raises `SchemaError` naming the field when a value is not allowed.
    """

    dataset: str
    licence: str
    split: str
    session: str
    participants: tuple[str, str]
    frames: int
    image_size: int
    valid: Mapping[str, Spans] | None = None
    crop_boxes: Mapping[str, Sequence[Sequence[float]]] = field(default_factory=dict)
    separation: str = "tracks"
    source: Mapping[str, str] = field(default_factory=dict)
    time_range_s: tuple[float, float] | None = None
    audio_spec: FeatureSpec | None = None
    motion_spec: MotionSpec | None = None
    face_spec: FaceSpec | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    fps: int = FPS
    sample_rate: int = SAMPLE_RATE
    schema: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        _require(self.schema == SCHEMA_VERSION, "schema", str(SCHEMA_VERSION), self.schema)
        for name in ("dataset", "licence", "session", "separation"):
            _require(isinstance(getattr(self, name), str), name, "a string", getattr(self, name))
        _require(self.split in SPLITS, "split", " | ".join(SPLITS), self.split)
        two = isinstance(self.participants, (tuple, list)) and len(self.participants) == 2
        _require(two and all(isinstance(p, str) and p for p in self.participants), "participants", "two ids", self.participants)  # fmt: skip
        object.__setattr__(self, "participants", tuple(self.participants))
        _require(self.fps == FPS, "fps", str(FPS), self.fps)
        _require(self.sample_rate == SAMPLE_RATE, "sample_rate", str(SAMPLE_RATE), self.sample_rate)
        _require(_is_int(self.frames) and self.frames > 0, "frames", "a positive integer", self.frames)
        _require(_is_int(self.image_size) and self.image_size > 0, "image_size", "a positive integer", self.image_size)
        object.__setattr__(self, "valid", self._checked_valid())
        self._check_boxes()
        _require(isinstance(self.source, Mapping) and set(self.source) <= set(ROLES), "source", "text by role (a, b)", self.source)  # fmt: skip
        if self.time_range_s is not None:
            pair = isinstance(self.time_range_s, (tuple, list)) and len(self.time_range_s) == 2
            _require(pair and all(map(_is_number, self.time_range_s)), "time_range_s", "two numbers", self.time_range_s)
            object.__setattr__(self, "time_range_s", tuple(self.time_range_s))
        for name, cls in (("audio_spec", FeatureSpec), ("motion_spec", MotionSpec), ("face_spec", FaceSpec)):
            value = getattr(self, name)
            _require(value is None or isinstance(value, cls), name, f"a {cls.__name__} or null", value)
        _require(isinstance(self.extra, Mapping), "extra", "an object", self.extra)

    def _checked_valid(self) -> dict[str, Spans]:
        if self.valid is None:
            return dict.fromkeys(ROLES, ((0, self.frames),))
        _require(isinstance(self.valid, Mapping) and set(self.valid) == set(ROLES), "valid", "runs for a and b", self.valid)  # fmt: skip
        checked: dict[str, Spans] = {}
        for role, runs in self.valid.items():
            pairs = all(isinstance(r, (tuple, list)) and len(r) == 2 and all(map(_is_int, r)) for r in runs)
            _require(pairs, f"valid.{role}", "(start, stop) pairs", runs)
            flat = [n for run in runs for n in run]
            ordered = all(x < y if i % 2 == 0 else x <= y for i, (x, y) in enumerate(itertools.pairwise(flat)))
            inside = not flat or (flat[0] >= 0 and flat[-1] <= self.frames)
            _require(ordered and inside, f"valid.{role}", f"increasing runs within 0..{self.frames}", runs)
            checked[role] = tuple((start, stop) for start, stop in runs)
        return checked

    def _check_boxes(self) -> None:
        boxes = self.crop_boxes
        _require(isinstance(boxes, Mapping) and set(boxes) <= set(ROLES), "crop_boxes", "boxes by role (a, b)", boxes)
        for role, rows in boxes.items():
            _require(len(rows) == self.frames, f"crop_boxes.{role}", f"{self.frames} boxes", f"{len(rows)} boxes")
            fine = all(len(row) == 3 and all(map(_is_number, row)) for row in rows)
            _require(fine, f"crop_boxes.{role}", "x, y, side in each row", rows[0])

    def valid_mask(self, role: str) -> Bool[np.ndarray, " T"]:
        """True on the frames where the person called `role` ("a" or "b") has a tracked face."""
        assert self.valid is not None
        mask = np.zeros(self.frames, bool)
        for start, stop in self.valid[role]:
            mask[start:stop] = True
        return mask

    def to_json(self) -> dict[str, Any]:
        """A plain JSON object; `from_json` gives an equal description back."""
        out = {f.name: getattr(self, f.name) for f in fields(self)}
        for name in ("audio_spec", "motion_spec", "face_spec"):
            out[name] = None if out[name] is None else out[name].to_json()
        assert self.valid is not None
        out["participants"] = list(self.participants)
        out["valid"] = {role: [list(run) for run in runs] for role, runs in self.valid.items()}
        out["crop_boxes"] = {role: [list(map(float, row)) for row in rows] for role, rows in self.crop_boxes.items()}
        out["source"], out["extra"] = dict(self.source), dict(self.extra)
        out["time_range_s"] = None if self.time_range_s is None else list(self.time_range_s)
        return out

    @classmethod
    def from_json(cls, data: Any) -> ClipMeta:
        """The description of a JSON object. Raises `SchemaError` on unknown, missing or wrong fields."""
        data = dict(_refuse_unknown(cls, data))
        for name, spec in (("audio_spec", FeatureSpec), ("motion_spec", MotionSpec), ("face_spec", FaceSpec)):
            if data.get(name) is not None:
                data[name] = spec.from_json(data[name])
        try:
            return cls(**data)
        except TypeError as error:
            raise SchemaError(f"ClipMeta: {error}") from None
