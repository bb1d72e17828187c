"""Inputs and outputs of metrics: clips with their ground truth, the protocol, rows and curves."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final, Literal

import numpy as np
from jaxtyping import Float

from af.metrics.bootstrap import Interval
from af.types import FaceSpec

Better = Literal["lower", "higher", "true"]

#: The parts of a clip, for messages.
PARTS: Final = {
    "user": "user", "true": "true avatar", "generated": "generated avatar", "avatar_audio": "avatar's voice",
    "user_audio": "user's voice",
}  # fmt: skip
#: Fifths of a second: lags 1–5, 6–10, … 46–50.
LAG_BANDS = tuple(zip(range(1, 51, 5), range(6, 52, 5), strict=True))


def digest(array: np.ndarray) -> str:
    """A hash of an array's shape, type and values."""
    array = np.ascontiguousarray(array)
    return hashlib.blake2b(f"{array.shape} {array.dtype}".encode() + array.tobytes(), digest_size=16).hexdigest()


def face_parts(face: FaceSpec) -> dict[str, slice]:
    """Existing columns of expression ("exp") and of the head's pose ("pose")."""
    parts = {"exp": slice(0, face.expression), "pose": slice(face.expression, None)}
    return {name: columns for name, columns in parts.items() if face.names[columns]}


@dataclass(frozen=True)
class ClipFeatures:
    """One extractor's vectors of a clip's true and generated frames (`kind` "image") or windows of frames ("video").

    `tag` is the extractor's name and version; `metric` the name reserved for the standard networks (fid_inception).
    """

    tag: str
    kind: str
    true: Float[np.ndarray, "N F"]
    generated: Float[np.ndarray, "M F"]
    metric: str | None = None


@dataclass(frozen=True)
class EvaluationClip:
    """One generated clip with its ground truth: same frames, same tracker, 25 fps, 16 kHz. None means unknown.

    `identity` is the avatar's (used by intervals and the reaction gain); `session` the conversation (nulls never pair
    two clips of one session; None = the clip's name). `phrase_ends`: frames at which the user's phrases end, known only
    for synthetic dyads. `values`: numbers of this clip ("psnr", "lse_d/true"). `position` orders the clips
    independently of ranks (None: by name); `contents`: see `digests`.
    """

    name: str
    identity: str
    user: Float[np.ndarray, "T P"] | None = None
    true: Float[np.ndarray, "T P"] | None = None
    generated: Float[np.ndarray, "T P"] | None = None
    face: FaceSpec | None = None
    avatar_audio: Float[np.ndarray, " S"] | None = None
    user_audio: Float[np.ndarray, " S"] | None = None
    phrase_ends: tuple[int, ...] | None = None
    session: str | None = None
    features: tuple[ClipFeatures, ...] = ()
    values: Mapping[str, float] = field(default_factory=dict)
    position: int | None = None
    contents: Mapping[str, Sequence[str]] | None = None

    @cached_property
    def digests(self) -> Mapping[str, Sequence[str]]:
        """{part: hashes of its content}, from `contents` or the arrays. Parts that share a hash are the same."""
        if self.contents is not None:
            return self.contents
        return {part: [digest(values)] for part in PARTS if (values := getattr(self, part)) is not None}

    @property
    def parts(self) -> dict[str, slice]:
        """Existing columns of expression ("exp") and of the head's pose ("pose")."""
        return {} if self.face is None else face_parts(self.face)

    def side(self, name: str, columns: slice | int = slice(None)) -> Float[np.ndarray, "T ..."]:
        """Face parameters of "user", "true" or "generated" as float64; `columns` selects a part or one column."""
        return np.asarray(getattr(self, name), np.float64)[:, columns]


@dataclass(frozen=True)
class Protocol:
    """Settings of the metrics. Lags and blocks in frames; `embedder` is the identity embedder, `lip_crop` says what
    SyncNet was shown.
    """

    clusters: tuple[tuple[int, int], ...] = ((40, 20), (15, 9))
    block: int | None = None
    first_border: int | None = None
    max_lag: int = 49
    lip_max_lag: int = 10
    mouth_max_lag: int = 5
    smile_lag: int = 11
    tilt_lag: int = 12
    mel_bands: int = 8
    gain_bands: tuple[tuple[int, int], ...] = LAG_BANDS
    resamples: int = 1000
    seed: int = 0
    embedder: str | None = None
    lip_crop: str = "frames as they are"


@dataclass(frozen=True)
class MetricRow:
    """One number with all that is needed to interpret it.

    `value` is that of the generated clips (NaN = undefined, `note` says why), `ground_truth` that of the true clips,
    `null` that with broken coupling, `n` the number of clips with a value. `protocol` names extractor, K, pooling,
    lags, null and interval; `better` is the better direction ("true": close to the ground truth); `headline` marks the
    most important rows.
    """

    tag: str
    value: float
    interval: Interval | None = None
    n: int = 0
    ground_truth: float | None = None
    null: float | None = None
    protocol: str = ""
    better: Better = "true"
    standard_error: float | None = None
    true_standard_error: float | None = None
    null_standard_error: float | None = None
    note: str = ""
    headline: bool = False


@dataclass(frozen=True)
class Curve:
    """A curve behind a row: `series` {"true" | "generated" | "null": values} over `x`, and axis labels."""

    x: Float[np.ndarray, " L"]
    series: Mapping[str, Float[np.ndarray, " L"]]
    title: str
    x_label: str
    y_label: str


class MetricResult:
    """Rows, their curves, values of single clips, bootstrap values by tag, and reasons for absent rows.

    Two results with the same clips and seed draw the same clips (identities), so the difference of their `draws` is the
    bootstrap of the difference. `on_card`: tags shown first on a clip's card. `absent`: {tag: what it needs}.
    `remarks`: remarks by clip.
    """

    # not a dataclass: torchmetrics would copy it, and fails on frozen ones inside
    def __init__(self) -> None:
        self.rows: list[MetricRow] = []
        self.curves: dict[str, Curve] = {}
        self.per_clip: dict[str, dict[str, float]] = {}
        self.draws: dict[str, Float[np.ndarray, " R"]] = {}
        self.on_card: list[str] = []
        self.absent: dict[str, str] = {}
        self.remarks: dict[str, list[str]] = {}

    @classmethod
    def merged(cls, results: Iterable[MetricResult]) -> MetricResult:
        """The results of several families as one, in their order."""
        whole = cls()
        for result in results:
            whole.rows += result.rows
            whole.curves |= result.curves
            whole.draws |= result.draws
            whole.absent |= result.absent
            whole.on_card += result.on_card
            for name, values in result.per_clip.items():
                whole.per_clip.setdefault(name, {}).update(values)
            for name, texts in result.remarks.items():
                known = whole.remarks.setdefault(name, [])
                known += [text for text in texts if text not in known]
        return whole
