"""Whether driven images show the portrait's person: are they nearer to that person's true frames than to others'?

Three measures of a frame: the geometry of the parts of a face that expressions hardly move, the colours of skin and hair,
and, where the user has one, an identity network. The true frames that images are compared with are those from elsewhere in
the videos, so the same question asked of true frames is the most that can be had.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Protocol

import numpy as np
from jaxtyping import Float, Float32, Float64, UInt8

from af.evaluation.extractors import Extractor
from af.ingest.landmarks import Face, FaceLandmarker, matrix_of_pose, parameters_of
from af.metrics.arrays import safe_divide
from af.metrics.records import MetricRow
from af.types import FaceSpec

Frames = UInt8[np.ndarray, "T Y X 3"]
Vectors = Mapping[str, Float[np.ndarray, "T F"]]

#: Of MediaPipe's 478 landmarks: forehead, temples, cheekbones, corners of the eyes, bridge, tip and base of the nose.
RIGID: Final = (
    10, 109, 338, 67, 297, 103, 332, 54, 284, 21, 251, 162, 389, 127, 356, 234, 454, 93, 323, 151, 9, 8,
    33, 133, 362, 263, 168, 6, 197, 195, 5, 4, 1, 2, 98, 327, 64, 294,
)  # fmt: skip
_TOP, _BRIDGE = 10, 168
_SHRINK: Final = 0.1  # of the mean variance, added to every direction's


def geometry(face: Face) -> Float64[np.ndarray, " F"]:
    """Places of the `RIGID` landmarks with the head turned to the front, centred, and scaled to a mean square of 1."""
    points = face.landmarks[list(RIGID)] * np.array([1.0, -1.0, -1.0])  # to the axes of `pose_of_matrix`
    turned = (points - points.mean(0)) @ matrix_of_pose(face.pose.astype(np.float64))[:3, :3]
    return np.asarray(turned / np.sqrt(np.square(turned).sum(1).mean())).ravel()


def colours(frame: UInt8[np.ndarray, "Y X 3"], landmarks: Float32[np.ndarray, "478 3"]) -> Float64[np.ndarray, " 24"]:
    """Mean RGB (0 … 255) of squares on forehead, cheeks, tip of the nose, mouth, and hair above and beside the forehead."""
    import cv2

    points = landmarks[:, :2].astype(np.float64)
    up = points[_TOP] - points[_BRIDGE]
    side = max(1, round(float(np.linalg.norm(up)) / 4))
    hair = [points[n] + (points[n] - points[_BRIDGE]) / 2 for n in (_TOP, 103, 332)]
    places = np.array([points[151], points[50], points[280], points[4], (points[0] + points[17]) / 2, *hair])
    x, y = np.clip(places.T, 0, np.array([[frame.shape[1]], [frame.shape[0]]]) - 1).astype(int)
    return cv2.blur(frame, (side, side), borderType=cv2.BORDER_REPLICATE)[y, x].astype(np.float64).ravel()


class Look(Protocol):
    """Reads frames once for all that is asked of them."""

    face_spec: FaceSpec

    def __call__(self, frames: Frames) -> tuple[Float[np.ndarray, "T P"], Vectors]:
        """Face parameters, and vectors of each frame by measure; NaN where no face is found."""
        ...


class LandmarkLook:
    """MediaPipe's parameters; `geometry`, `colour` and an identity network's vectors (under its tag)."""

    def __init__(self, landmarker: FaceLandmarker, embedder: Extractor | None = None) -> None:
        self.landmarker, self.embedder, self.face_spec = landmarker, embedder, landmarker.face_spec

    def __call__(self, frames: Frames) -> tuple[Float[np.ndarray, "T P"], Vectors]:
        """Face parameters and vectors."""
        faces = list(self.landmarker.follow(frames))
        found = {
            "geometry": np.full((len(frames), 3 * len(RIGID)), np.nan),
            "colour": np.full((len(frames), 24), np.nan),
        }
        for t, face in enumerate(faces):
            if face is not None:
                found["geometry"][t], found["colour"][t] = geometry(face), colours(frames[t], face.landmarks)
        if self.embedder is not None:
            vectors, seen = self.embedder(frames), np.array([[face is not None] for face in faces])
            units = safe_divide(vectors, np.linalg.norm(vectors, axis=1, keepdims=True))
            found[self.embedder.tag] = np.where(seen, units, np.nan)
        return parameters_of(faces), found


def whitening(groups: Sequence[Float[np.ndarray, "T F"]]) -> Float[np.ndarray, "F F"]:
    """The matrix after which vectors vary equally in all directions about their group's mean, so that what changes within
    a video (expressions, turns of the head, light) counts little between people.
    """
    away = np.concatenate([group - np.nanmean(group, 0) for group in groups])
    away = away[np.isfinite(away).all(1)]
    variances, axes = np.linalg.eigh(away.T @ away / len(away))
    spread = np.sqrt(np.maximum(variances, 0) + _SHRINK * variances.mean())
    return axes / np.where(spread > 0, spread, 1)


def distances(
    vectors: Float[np.ndarray, "T F"], known: Sequence[Float[np.ndarray, "T F"]], people: Sequence[str]
) -> Float[np.ndarray, "T P"]:
    """Squared distance of each frame to each person: to the nearest mean of that person's `known` groups. People are in
    the order of their names. Frames without a face are left out.
    """
    means = np.stack([np.nanmean(group, 0) for group in known])
    seen = vectors[np.isfinite(vectors).all(1)]
    apart = np.square(seen[:, None] - means).sum(2)
    return np.stack([apart[:, np.array(people) == name].min(1) for name in sorted(set(people))], 1)


def recognised(
    apart: Sequence[Float[np.ndarray, "T P"]], own: Sequence[int], drivers: Sequence[int]
) -> dict[str, float]:
    """Means over stretches of `rank1`, the share of frames nearer to their `own` person (column) than to all others,
    `auc`, the share of the others who are further away (ties count half; 0.5 by chance), and `not_driver`, the share of
    frames nearer to their own person than to the driver (column).
    """
    found: dict[str, list[float]] = {}
    for rows, column, driver in zip(apart, own, drivers, strict=True):
        if not len(rows):
            continue
        here, others = rows[:, [column]], np.delete(rows, column, 1)
        found.setdefault("rank1", []).append(float((here < others).all(1).mean()))
        found.setdefault("auc", []).append(float(((here < others) + (here == others) / 2).mean()))
        found.setdefault("not_driver", []).append(float((rows[:, column] < rows[:, driver]).mean()))
    return {name: float(np.mean(values)) for name, values in found.items()}


def identity_rows(
    people: Sequence[str],
    drivers: Sequence[int],
    known: Sequence[Vectors],
    true: Sequence[Vectors],
    own: Sequence[Vectors],
    across: Sequence[Vectors],
) -> list[MetricRow]:
    """Rows `driven/identity/MEASURE/{own,across}/{rank1,auc}` and `…/across/not_driver` of stretches of `people`, the
    portraits driven by their own video (`own`) and by that of stretch `drivers[n]` (`across`). `known` are true frames
    from elsewhere in the videos, `true` the stretches' own; the first of `people` are those driven. No rows below two.

    Truth: the portrait's person's true frames, judged alike; null: chance, and across, the driver's true frames.
    """
    if len(set(people)) < 2:
        return []
    sides = known, true, own, across
    measures = {measure: [[vectors[measure] for vectors in side] for side in sides] for measure in known[0]}
    return [row for measure, found in measures.items() for row in _rows(measure, people, drivers, *found)]


def _rows(
    measure: str,
    people: Sequence[str],
    drivers: Sequence[int],
    known: Sequence[Float[np.ndarray, "R F"]],
    *sides: Sequence[Float[np.ndarray, "T F"]],
) -> list[MetricRow]:
    # identity networks are compared by the cosine: their vectors have length 1
    matrix = whitening(known) if measure in ("geometry", "colour") else np.eye(known[0].shape[1])
    true, own, across = sides
    groups, names, count = [group @ matrix for group in known], sorted(set(people)), len(own)
    column = [names.index(name) for name in people]

    def judged(side: Sequence[Float[np.ndarray, "T F"]]) -> dict[str, float]:
        apart = [distances(vectors @ matrix, groups, people) for vectors in side]
        return recognised(apart, column[:count], [column[n] for n in drivers])

    truth, chance, floor = (
        judged(true[:count]),
        {"rank1": 1 / len(names), "auc": 0.5},
        judged([true[n] for n in drivers]),
    )
    rows = []
    for tag, found, null, by in (
        ("own", judged(own), chance, "its own video; null: chance"),
        ("across", judged(across), floor, "another's video; null: the driver's true frames"),
    ):
        protocol = f"{len(names)} people's true frames from elsewhere in their videos; portrait driven by {by}"
        rows += [
            MetricRow(f"driven/identity/{measure}/{tag}/{name}", found.get(name, float("nan")), None, count,
                      truth.get(name), null[name], protocol, "higher")
            for name in null
        ]  # fmt: skip
    return rows
