"""Which of the faces in a picture is the person: all that are there, what moves in each, and the choice."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float64

from af.clock import frames_to_seconds
from af.data.notes import Notes
from af.data.schema import spans
from af.ingest.look import STEPS_A_LEVEL, Look
from af.ingest.sync import lips_follow
from af.ingest.track import follow, without_outliers

_SEEN = 0.3  # share of the looks that a further face must be found in
_MOST = 4
_STILL = 1.5  # grey levels: what coding and noise change in a picture that stands still
_FROZEN_FRAMES = 25  # a second without any change
_CLEARER = 0.15  # correlation with the voice by which one face must lead

Path = Float64[np.ndarray, "N 3"]


def faces_in(look: Look) -> list[Path]:
    """The path of every face as `follow` gives it (centre x, y, side a look, NaN: not seen), the most prominent first."""
    left = list(look.boxes)
    found: list[Path] = []
    while len(found) < _MOST:
        path = follow(left, look.scenes)
        clean = without_outliers(path)
        seen = int((~np.isnan(clean[:, 0])).sum())
        if seen < (1 if not found else max(2, _SEEN * len(left))):
            break
        found.append(path)
        left = [_others(boxes, at) for boxes, at in zip(left, clean, strict=True)]
    return found


def _others(boxes: np.ndarray, taken: np.ndarray) -> np.ndarray:
    """Boxes that are not of the face at `taken` (centre x, y, side)."""
    centres = boxes[:, :2] + boxes[:, 2:4] / 2
    away = np.hypot(*(centres - taken[:2]).T) if len(boxes) else np.zeros(0)
    return boxes[~(away < np.maximum(boxes[:, 2], taken[2]) / 2)]


def _around(look: Look, path: Path, box: tuple[float, float, float, float], whole: bool) -> Float64[np.ndarray, " T"]:
    """Change, in grey levels, within `box` (left, top, right, bottom; in sides from the face's centre) at each frame: its
    mean, or with `whole` that of the cell that changes most. 0 where no face was seen, and at cuts.
    """
    out = np.zeros(look.frames)
    for n, ((x, y, side), start) in enumerate(zip(path, look.looks, strict=True)):
        stop = look.looks[n + 1] if n + 1 < len(look.looks) else look.frames
        if not np.isnan(x):
            cells = look.change_in(x + box[0] * side, y + box[1] * side, x + box[2] * side, y + box[3] * side)[
                start:stop
            ]
            out[start:stop] = (cells.max((1, 2)) if whole else cells.mean((1, 2))) / STEPS_A_LEVEL
    out[[c for c in look.cuts if c < look.frames]] = 0
    return out


def mouth_changes(look: Look, path: Path) -> Float64[np.ndarray, " T"]:
    """What changes in the lower half of a face, in grey levels a frame."""
    return _around(look, path, (-0.35, 0.05, 0.35, 0.6), whole=False)


def _still(look: Look, path: Path) -> Bool[np.ndarray, " T"]:
    """Where nothing of a face changes by more than coding and noise do."""
    return _around(look, path, (-0.5, -0.5, 0.5, 0.6), whole=True) < _STILL


def stands_still(look: Look, path: Path) -> bool:
    """Whether what is shown is one picture (nearly) all the time."""
    return float(_still(look, path).mean()) > 0.95


def note_movement(look: Look, path: Path, name: str, notes: Notes) -> None:
    """Note stretches in which the picture stands, such as a call that froze."""
    runs = [(b - a, a) for a, b in spans(_still(look, path)) if b - a >= _FROZEN_FRAMES]
    if runs:
        total, (longest, start) = sum(length for length, _ in runs), max(runs)
        notes.add(
            "movement",
            f"{name}: the picture stands for {frames_to_seconds(total):.1f} of {frames_to_seconds(look.frames):.1f} s, "
            f"longest for {frames_to_seconds(longest):.1f} s from {frames_to_seconds(start):.1f} s on",
        )


def choose_face(
    look: Look,
    voice: Float64[np.ndarray, " T"] | None,
    wish: str,
    name: str,
    notes: Notes,
    remedy: str = "--face asks for another",
) -> Path:
    """The path of the person's face: by `wish` (one of `options.FACES`), noted when there was a choice, with `remedy` for
    who wants another. `voice`: see `sync.voice_changes`, None for a silent person.
    """
    found = faces_in(look)
    if len(found) < 2:
        return found[0] if found else follow(look.boxes, look.scenes)
    places = [np.nanmedian(path, 0) for path in found]
    sides = [place[2] for place in places]
    if wish in ("left", "right"):
        chosen = int(np.argmin([p[0] for p in places]) if wish == "left" else np.argmax([p[0] for p in places]))
        why = "as asked for"
    elif wish == "largest":
        chosen, why = int(np.argmax(sides)), "as asked for"
    else:
        chosen, why = _talking(look, found, sides, voice)
    at = f"at {places[chosen][0]:.0f}, {places[chosen][1]:.0f}, {sides[chosen]:.0f} pixels wide"
    notes.add("faces", f"{name}: {len(found)} faces: the one {at} is taken, {why}; {remedy}")
    return found[chosen]


def _talking(look: Look, found: list[Path], sides: list[float], voice: np.ndarray | None) -> tuple[int, str]:
    order = sorted(range(len(found)), key=lambda n: -sides[n])
    moving = [n for n in order if not stands_still(look, found[n])]
    if voice is not None and moving:
        scores = {n: lips_follow(mouth_changes(look, found[n]), voice) for n in moving}
        best, *others = sorted(moving, key=lambda n: -scores[n])
        if scores[best] >= 0.2 and all(scores[best] - scores[n] >= _CLEARER for n in others):
            return best, "which moves with the voice"
    if moving and len(moving) < len(found):
        return moving[0], "the largest that moves"
    return order[0], "the largest; which of them speaks is not clear"
