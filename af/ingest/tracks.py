"""From face boxes to one steady square crop per frame: the path of each face, the choice of the person, the crops."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float64, UInt8
from scipy.ndimage import gaussian_filter1d, median_filter

from af.clock import seconds_to_frames
from af.data.container import Notes
from af.data.schema import spans
from af.ingest.detection import Look
from af.ingest.options import IngestOptions
from af.ingest.quality import Path, lips_follow, mouth_changes, stands_still

_SEEN = 0.3  # share of the looks in which a further face must be found
_MOST = 4  # faces at most
_CLEARER = 0.15  # lead in correlation with the voice that decides for a face


def follow(candidates: Sequence[Float64[np.ndarray, "N 5"]], scene: Sequence[int]) -> Float64[np.ndarray, "T 3"]:
    """The cheapest path through all candidate boxes: (centre x, centre y, side) per frame, NaN without a box.

    Large, certain boxes cost little; jumps, in units of the face's size, cost much, except when `scene` (a number per
    frame) changes. Dynamic programming keeps single false detections from capturing the path.
    """
    out = np.full((len(candidates), 3), np.nan)
    found = [t for t, boxes in enumerate(candidates) if len(boxes)]
    if not found:
        return out
    squares = [as_squares(candidates[t]) for t in found]
    largest = np.median([s[:, 2].max() for s in squares])
    own = [-2.0 * np.minimum(s[:, 2] / largest, 1.5) - 0.1 * np.log(s[:, 3]) for s in squares]
    total, came_from = own[0], []
    for i in range(1, len(found)):
        before, after = squares[i - 1], squares[i]
        size = np.sqrt(before[:, None, 2] * after[None, :, 2])
        distance = np.hypot(before[:, None, 0] - after[None, :, 0], before[:, None, 1] - after[None, :, 1]) / size
        resized = np.abs(np.log(before[:, None, 2] / after[None, :, 2]))
        move = 4.0 * np.minimum(distance, 1.5) + 2.0 * np.minimum(resized, 1.5)
        if scene[found[i]] != scene[found[i - 1]]:
            move = np.zeros_like(move)
        paths = total[:, None] + move
        came_from.append(paths.argmin(0))
        total = paths.min(0) + own[i]
    chosen = int(total.argmin())
    for i in range(len(found) - 1, -1, -1):
        out[found[i]] = squares[i][chosen, :3]
        if i > 0:
            chosen = int(came_from[i - 1][chosen])
    return out


def as_squares(boxes: Float64[np.ndarray, "N 5"]) -> Float64[np.ndarray, "N 4"]:
    """A detector's boxes as centre x, centre y, side, score."""
    x, y, width, height, score = boxes.T
    return np.stack([x + width / 2, y + height / 2, (width + height) / 2, score], 1)


def _scenes(cuts: Sequence[int], frames: int) -> Iterator[tuple[int, int]]:
    """[start, stop) of each scene between the cuts."""
    return itertools.pairwise([0, *sorted(c for c in set(cuts) if 0 < c < frames), frames])


def _smooth(values: np.ndarray, sigma: int) -> np.ndarray:
    """Gaussian smoothing that keeps straight lines straight up to the ends (mirrored through the end points)."""
    reach = min(3 * sigma, len(values) - 1)
    longer = np.pad(values, reach, mode="reflect", reflect_type="odd") if reach else values
    return gaussian_filter1d(longer, sigma, mode="nearest")[reach : reach + len(values)]


def without_outliers(path: np.ndarray) -> np.ndarray:
    """The path with outliers, far from the median of their neighbours, set to NaN."""
    path = path.copy()
    found = np.flatnonzero(~np.isnan(path[:, 0]))
    if len(found) < 3:
        return path
    usual = np.stack([median_filter(path[found, k], size=min(7, len(found) | 1), mode="nearest") for k in range(3)], 1)
    path[found[~is_near(path[found], usual)]] = np.nan
    return path


def is_near(faces: Float64[np.ndarray, "N 3"], usual: Float64[np.ndarray, "*N 3"]) -> Bool[np.ndarray, " N"]:
    """Which faces (centre x, y, side) may be the `usual` ones: near them and of similar size."""
    near = np.hypot(*(faces[:, :2] - usual[..., :2]).T) <= 0.6 * usual[..., 2]
    return near & (np.abs(np.log(faces[:, 2] / usual[..., 2])) <= np.log(1.6))


def faces_in(look: Look) -> list[Path]:
    """The path of every face (see `follow`), the most prominent first."""
    left = list(look.boxes)
    found: list[Path] = []
    while len(found) < _MOST:
        path = follow(left, look.scenes)
        clean = without_outliers(path)
        seen = int((~np.isnan(clean[:, 0])).sum())
        if seen < (1 if not found else max(2, _SEEN * len(left))):
            break
        found.append(path)
        for n, (boxes, taken) in enumerate(zip(left, clean, strict=True)):  # keep the boxes of other faces
            away = np.hypot(*(boxes[:, :2] + boxes[:, 2:4] / 2 - taken[:2]).T)
            left[n] = boxes[~(away < np.maximum(boxes[:, 2], taken[2]) / 2)]
    return found


def choose_face(
    look: Look,
    voice: Float64[np.ndarray, " T"] | None,
    wish: str,
    name: str,
    notes: Notes,
    remedy: str = "--face asks for another",
) -> Path:
    """The path of the person's face, chosen by `wish` (one of `options.FACES`). A choice among several is noted, with
    `remedy` to get another. `voice`: see `quality.voice_changes`, None for a silent person.
    """
    found = faces_in(look)
    if len(found) < 2:
        return found[0] if found else follow(look.boxes, look.scenes)
    places = np.stack([np.nanmedian(path, 0) for path in found])
    x, _, sides = places.T
    asked = {"left": x.argmin(), "right": x.argmax(), "largest": sides.argmax()}
    chosen, why = (int(asked[wish]), "as asked for") if wish in asked else _talking(look, found, sides, voice)
    at = "at {:.0f}, {:.0f}, {:.0f} pixels wide".format(*places[chosen])
    notes.add("faces", f"{name}: {len(found)} faces: using the one {at}, {why}; {remedy}")
    return found[chosen]


def _talking(look: Look, found: list[Path], sides: np.ndarray, voice: np.ndarray | None) -> tuple[int, str]:
    order = sorted(range(len(found)), key=lambda n: -sides[n])
    moving = [n for n in order if not stands_still(look, found[n])]
    if voice is not None and moving:
        scores = {n: lips_follow(mouth_changes(look, found[n]), voice) for n in moving}
        best, *others = sorted(moving, key=lambda n: -scores[n])
        if scores[best] >= 0.2 and all(scores[best] - scores[n] >= _CLEARER for n in others):
            return best, "which moves with the voice"
    if moving and len(moving) < len(found):
        return moving[0], "the largest that moves"
    return order[0], "the largest; it is not clear which one speaks"


@dataclass(frozen=True)
class Track:
    """One person's face through a video.

    `boxes` are square crops (x, y, side) in pixels, inside the full frame. `present`: the crop is usable (a face was
    found, or a short gap bridged). `valid`: a face was found near enough in time to be trusted. `face_px`: the smoothed
    side of the face.
    """

    boxes: Float64[np.ndarray, "T 3"]
    present: Bool[np.ndarray, " T"]
    valid: Bool[np.ndarray, " T"]
    face_px: Float64[np.ndarray, " T"]


def steady_crops(
    path: Float64[np.ndarray, "N 3"],
    at: Sequence[int],
    frames: int,
    cuts: Sequence[int],
    frame_size: tuple[int, int],
    *,
    margin: float = IngestOptions.margin,
    smoothing_s: float = IngestOptions.smoothing_s,
    trusted_gap_s: float = 0.5,
    bridged_gap_s: float = IngestOptions.bridged_gap_s,
    unusable: Collection[int] = (),
) -> Track:
    """The crop of every frame, from face boxes (centre x, y, side; NaN: none) in the frames `at`.

    Within a scene (between `cuts`), boxes are interpolated over gaps and smoothed by a Gaussian of `smoothing_s`
    seconds, the size by twice that: the crop follows the seat of the person and not each nod. The crop's side is
    `margin` times the face's, at most the frame's shorter side; crops are moved inside `frame_size` (height, width).
    Gaps between faces up to `trusted_gap_s` are valid, up to `bridged_gap_s` present; `unusable` frames are neither.
    """
    boxes = np.zeros((frames, 3))
    present, valid = np.zeros(frames, bool), np.zeros(frames, bool)
    trusted, bridged = seconds_to_frames(trusted_gap_s), seconds_to_frames(bridged_gap_s)
    positions = np.asarray(at)
    step = int(np.diff(positions).max()) if len(positions) > 1 else 1
    for start, stop in _scenes(cuts, frames):
        inside = (positions >= start) & (positions < stop)
        scene = without_outliers(path[inside])
        found = ~np.isnan(scene[:, 0])
        seen, boxes_seen = positions[inside][found], scene[found]
        if len(seen) == 0:
            continue
        times = np.arange(start, stop)
        for k, sigma in ((0, smoothing_s), (1, smoothing_s), (2, 2 * smoothing_s)):
            values = np.interp(times, seen, np.log(boxes_seen[:, k]) if k == 2 else boxes_seen[:, k])
            values = _smooth(values, max(seconds_to_frames(sigma), 1))
            boxes[start:stop, k] = np.exp(values) if k == 2 else values
        # faces extend over frames between looks, and up to one look before the first and after the last
        for first, last in zip([seen[0] - step, *seen], [*seen, seen[-1] + step], strict=True):
            span = slice(max(first, start), min(last + 1, stop))
            present[span] |= last - first <= max(bridged, step)
            valid[span] |= last - first <= max(trusted, step)
    present[list(unusable)] = valid[list(unusable)] = False
    return Track(framed(boxes, frame_size, margin), present, valid, boxes[:, 2])


def framed(faces: Float64[np.ndarray, "T 3"], frame_size: tuple[int, ...], margin: float) -> Float64[np.ndarray, "T 3"]:
    """Crops (x, y, side) around faces (centre x, y, side), `margin` times as large, inside `frame_size`."""
    height, width = frame_size
    side = np.clip(faces[:, 2] * margin, 1.0, min(height, width))
    left = np.clip(faces[:, 0] - side / 2, 0, width - side)
    top = np.clip(faces[:, 1] - side / 2, 0, height - side)
    return np.stack([left, top, side], 1)


def crop(
    frame: UInt8[np.ndarray, "Y X 3"], box: Float64[np.ndarray, " 3"], size: int
) -> UInt8[np.ndarray, "size size 3"]:
    """The square `box` (x, y, side; with fractions of pixels, to keep crops steady) as size x size pixels."""
    x, y, side = (float(v) for v in box)
    shrink = max(1, int(side // size))
    if shrink > 1:  # first average whole cells of pixels, on a fixed grid
        height, width = frame.shape[0] // shrink * shrink, frame.shape[1] // shrink * shrink
        left, top = int(x) // shrink * shrink, int(y) // shrink * shrink
        right = min(width, left + (int(side) // shrink + 3) * shrink)
        bottom = min(height, top + (int(side) // shrink + 3) * shrink)
        frame = cv2.resize(
            frame[top:bottom, left:right],
            ((right - left) // shrink, (bottom - top) // shrink),
            interpolation=cv2.INTER_AREA,
        )
        x, y, side = (x - left) / shrink, (y - top) / shrink, side / shrink
    scale = side / size
    # pixel centres: output pixel i covers [i, i + 1) * scale of the box
    matrix = np.array([[scale, 0, x + 0.5 * scale - 0.5], [0, scale, y + 0.5 * scale - 0.5]])
    flags = (cv2.INTER_CUBIC if scale < 1 else cv2.INTER_LINEAR) | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(frame, matrix, (size, size), flags=flags, borderMode=cv2.BORDER_REPLICATE)


def find_clips(
    present: Bool[np.ndarray, " T"], cuts: Sequence[int], *, minimum: int, maximum: int
) -> list[tuple[int, int]]:
    """Runs of present frames without a cut inside, `minimum` to `maximum` frames long.

    Longer runs are divided into equal pieces, or where these would be too short, into pieces of `maximum` frames.
    """
    clips: list[tuple[int, int]] = []
    for start, stop in _scenes(cuts, len(present)):
        for first, last in spans(present[start:stop]):
            first, last, length = first + start, last + start, last - first
            if length < minimum:
                continue
            pieces = -(-length // maximum)
            if length // pieces < minimum:
                pieces = length // maximum
                length = pieces * maximum
            marks = [first + length * k // pieces for k in range(pieces + 1)]
            clips += list(itertools.pairwise(marks))
    return clips
