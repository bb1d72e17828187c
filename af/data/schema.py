"""The `json` of a sample, checked strictly: a wrong or unknown value fails immediately, by name."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Final

import numpy as np
from jaxtyping import Bool

from af.clock import FPS, SAMPLE_RATE
from af.specs import (
    FaceSpec,
    FeatureSpec,
    MotionSpec,
    SchemaError,
    TeacherSpec,
    is_int,
    is_number,
    refuse_unknown,
    require,
)

SCHEMA_VERSION: Final = 1
SPLITS: Final = ("train", "val", "test")
ROLES: Final = ("a", "b")
#: The `separation` of a one-sided clip whose video had no audio: its voice is silence, whatever the mouth says.
MUTE: Final = "mute"
#: Parts a person can have in a shard, by file suffix: video, audio, motion latents, audio features, face parameters,
#: and a teacher's motion latents.
PERSON_PARTS: Final = ("mp4", "flac", "motion.npy", "audio.npy", "face.npy", "teacher.npy")
FIELDS: Final = ("json", *(f"{role}.{part}" for role in ROLES for part in PERSON_PARTS))
#: A licence or consent that nobody has stated.
UNKNOWN: Final = "unknown"
TEXTS: Final = ("dataset", "licence", "consent", "session", "separation")
KEY_PATTERN: Final = re.compile(r"[A-Za-z0-9_-]{1,100}")

Spans = tuple[tuple[int, int], ...]
_SPECS: Final[Mapping[str, Any]] = {
    "audio_spec": FeatureSpec, "motion_spec": MotionSpec, "face_spec": FaceSpec, "teacher_spec": TeacherSpec
}  # fmt: skip


def other_role(role: str) -> str:
    """The other person of a conversation."""
    return ROLES[1 - ROLES.index(role)]


def person_key(participant: str) -> str:
    """A key for a person's id that ignores case, spaces and different forms of a letter."""
    plain = "".join(c for c in unicodedata.normalize("NFKC", participant) if unicodedata.category(c) != "Cf")
    return unicodedata.normalize("NFKC", " ".join(plain.split()).casefold())


def spans(mask: Bool[np.ndarray, " T"]) -> Spans:
    """Runs of True in `mask` as (start, stop) pairs, stop excluded."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], np.asarray(mask, np.int8), [0]))))
    return tuple((int(start), int(stop)) for start, stop in edges.reshape(-1, 2))


def mask_of(runs: Spans, start: int, stop: int) -> Bool[np.ndarray, " T"]:
    """The frames [start, stop) as a mask: True in the runs."""
    mask = np.zeros(stop - start, bool)
    for first, last in runs:
        mask[max(first - start, 0) : max(last - start, 0)] = True
    return mask


@dataclass(frozen=True)
class ClipMeta:
    """The `json` of a sample: two people at the same instants.

    `frames` at 25 fps with 16 kHz mono audio, square crops of `image_size` pixels. `valid` are the (start, stop) runs
    of frames with a tracked face, by role (None: all). `crop_boxes`, if known, hold x, y and side in source pixels per
    frame. `separation` is how the voices were separated (tracks, synthetic, the tool's name; `MUTE`). `source` and
    `time_range_s` are the origin of the clip; `quality` has measures of each person by name (`af.data.selection`; None:
    not measurable); `extra` is free JSON. `licence` and `consent` (what those shown agreed to) stay with models trained on
    the clip (`af.data.provenance`). A `one_sided` clip has only person a, listed twice, and no video, audio or
    motion of b. Raises `SchemaError`, naming the field, for values not allowed.
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
    teacher_spec: TeacherSpec | None = None
    quality: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    one_sided: bool = False
    consent: str = UNKNOWN
    fps: int = FPS
    sample_rate: int = SAMPLE_RATE
    schema: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        def pair(value: Any) -> bool:
            return isinstance(value, (tuple, list)) and len(value) == 2

        people, text, span = self.participants, "a string", self.time_range_s
        two = pair(people) and all(isinstance(p, str) and p for p in people)
        alone = not self.one_sided or (two and people[0] == people[1])
        checks: list[tuple[str, bool, str]] = [
            ("schema", self.schema == SCHEMA_VERSION, str(SCHEMA_VERSION)),
            *((n, isinstance(getattr(self, n), str), text) for n in TEXTS),
            ("split", self.split in SPLITS, " | ".join(SPLITS)),
            ("participants", two, "two ids"),
            ("one_sided", isinstance(self.one_sided, bool), "true or false"),
            ("participants", alone, "the one person's id twice"),
            ("separation", self.one_sided or self.separation != MUTE, "a separation of voices"),
            ("fps", self.fps == FPS, str(FPS)),
            ("sample_rate", self.sample_rate == SAMPLE_RATE, str(SAMPLE_RATE)),
            *((n, is_int(v := getattr(self, n)) and v > 0, "a positive integer") for n in ("frames", "image_size")),
            ("source", isinstance(self.source, Mapping) and set(self.source) <= set(ROLES), "text by role (a, b)"),
            ("time_range_s", span is None or (pair(span) and all(map(is_number, span))), "two numbers"),
            *((n, isinstance(getattr(self, n), cls | None), f"a {cls.__name__} or null") for n, cls in _SPECS.items()),
            ("quality", is_quality(self.quality), "numbers (or null) by name for each role (a, b)"),
            ("extra", isinstance(self.extra, Mapping), "an object"),
        ]
        for name, fine, expected in checks:
            require(fine, name, expected, getattr(self, name))
        object.__setattr__(self, "participants", tuple(people))
        object.__setattr__(self, "time_range_s", None if span is None else tuple(span))
        object.__setattr__(self, "valid", self._checked_valid())
        self._check_boxes()

    def _checked_valid(self) -> dict[str, Spans]:
        if self.valid is None:
            return dict.fromkeys(ROLES, ((0, self.frames),)) | ({"b": ()} if self.one_sided else {})
        require(
            isinstance(self.valid, Mapping) and set(self.valid) == set(ROLES), "valid", "runs for a and b", self.valid
        )
        checked: dict[str, Spans] = {}
        for role, runs in self.valid.items():
            pairs = all(isinstance(r, (tuple, list)) and len(r) == 2 and all(map(is_int, r)) for r in runs)
            require(pairs, f"valid.{role}", "(start, stop) pairs", runs)
            flat = [n for run in runs for n in run]
            ordered = all(x < y if i % 2 == 0 else x <= y for i, (x, y) in enumerate(itertools.pairwise(flat)))
            inside = not flat or (flat[0] >= 0 and flat[-1] <= self.frames)
            require(ordered and inside, f"valid.{role}", f"increasing runs within 0..{self.frames}", runs)
            checked[role] = tuple((start, stop) for start, stop in runs)
        return checked

    def _check_boxes(self) -> None:
        boxes = self.crop_boxes
        require(isinstance(boxes, Mapping) and set(boxes) <= set(ROLES), "crop_boxes", "boxes by role (a, b)", boxes)
        for role, rows in boxes.items():
            require(len(rows) == self.frames, f"crop_boxes.{role}", f"{self.frames} boxes", f"{len(rows)} boxes")
            fine = all(len(row) == 3 and all(map(is_number, row)) for row in rows)
            require(fine, f"crop_boxes.{role}", "x, y, side in each row", rows[0])

    def valid_mask(self, role: str) -> Bool[np.ndarray, " T"]:
        """True on the frames where the person called `role` ("a" or "b") has a tracked face."""
        assert self.valid is not None
        return mask_of(self.valid[role], 0, self.frames)

    def to_json(self) -> dict[str, Any]:
        """A plain JSON object; `from_json` returns an equal description."""
        out = {f.name: getattr(self, f.name) for f in fields(self)}
        for name in _SPECS:
            out[name] = None if out[name] is None else out[name].to_json()
        if self.teacher_spec is None:
            del out["teacher_spec"]
        assert self.valid is not None
        out["participants"] = list(self.participants)
        out["valid"] = {role: [list(run) for run in runs] for role, runs in self.valid.items()}
        out["crop_boxes"] = {role: [list(map(float, row)) for row in rows] for role, rows in self.crop_boxes.items()}
        out["source"], out["extra"] = dict(self.source), dict(self.extra)
        out["time_range_s"] = None if self.time_range_s is None else list(self.time_range_s)
        for name, default in (("one_sided", False), ("quality", {}), ("consent", UNKNOWN)):  # defaults are left out
            if out[name] == default:
                del out[name]
        return out

    @classmethod
    def from_json(cls, data: Any) -> ClipMeta:
        """The description of a JSON object. Raises `SchemaError` on unknown, missing or wrong fields."""
        data = dict(refuse_unknown(cls, data))
        for name, spec in _SPECS.items():
            if data.get(name) is not None:
                data[name] = spec.from_json(data[name])
        try:
            return cls(**data)
        except TypeError as error:
            raise SchemaError(f"ClipMeta: {error}") from None


def is_quality(quality: Any) -> bool:
    """Whether a JSON value is measures by role."""
    return (
        isinstance(quality, Mapping)
        and set(quality) <= set(ROLES)
        and all(
            isinstance(one, Mapping) and all(v is None or is_number(v) for v in one.values())
            for one in quality.values()
        )
    )


def groups_of_people(pairs: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Map each person to the first (in sorted order) of all people connected through conversations."""
    parent: dict[str, str] = {}

    def root(person: str) -> str:
        parent.setdefault(person, person)
        while parent[person] != person:
            parent[person] = parent[parent[person]]
            person = parent[person]
        return person

    for a, b in pairs:
        first, second = sorted((root(a), root(b)))
        parent[second] = first
    return {person: root(person) for person in parent}
