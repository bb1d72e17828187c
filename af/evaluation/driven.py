"""How much of a driving person's face arrives in the images of a motion autoencoder, read by a tracker of real faces.

A portrait is driven by frames of its own video, and by another person's. The tracker reads the images and the driving
frames alike, so what it cannot see counts for neither.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8

from af.data.index import Index
from af.data.schema import ROLES
from af.data.shards import ShardReader
from af.errors import UserError
from af.evaluation.identity import Look, Vectors, identity_rows
from af.images import image_array, image_tensor
from af.metrics.likeness import psnr
from af.metrics.records import MetricRow
from af.models.autoencoder import MotionAutoencoder

#: Names of a tracker of real faces (MediaPipe) that are read as one: their mean.
GROUPS = {
    "jaw": ("jawOpen",),
    "smile": ("mouthSmileLeft", "mouthSmileRight"),
    "blink": ("eyeBlinkLeft", "eyeBlinkRight"),
    "brow": ("browInnerUp",),
    "yaw": ("yaw",),
    "pitch": ("pitch",),
    "roll": ("roll",),
}
_BATCH = 16
_SHORTEST = 3  # frames of a video
_LEAST = 0.5  # of a stretch's frames: fewer readings are no measurement


@dataclass(frozen=True)
class Stretch:
    """Consecutive frames of one person, a portrait from elsewhere in the video, what is read of both, and the vectors
    that tell the person: of the frames (`true`) and of the rest of the video (`known`).
    """

    portrait: UInt8[np.ndarray, "Y X 3"]
    frames: UInt8[np.ndarray, "T Y X 3"]
    read: Float[np.ndarray, "T G"]
    still: Float[np.ndarray, " G"]
    person: str
    true: Vectors
    known: Vectors


def stretches(
    index: Index, look: Look, *, frames: int = 50, seed: int = 0, advance: Callable[[], None] = lambda: None
) -> list[Stretch]:
    """One stretch of every person of every clip, with a random start: `frames`, but at most two thirds of the video. The
    portrait is a random frame of the rest.

    Raises UserError for a look at other parameters, and when no face is found.
    """
    reader, rng, found = ShardReader(index), np.random.default_rng(seed), []
    matrix = look.face_spec.grouping(GROUPS)
    for i, entry in enumerate(index.samples):
        clip = reader.read(i, {"video"})
        for role in entry.roles:
            video = clip.person(role).video
            if video is None or len(video) < _SHORTEST:
                continue
            length = min(frames, 2 * len(video) // 3)
            start = int(rng.integers(len(video) - length + 1))
            chosen = video[start : start + length]
            rest = np.setdiff1d(np.arange(len(video)), np.arange(start, start + length))
            portrait = video[int(rng.choice(rest))]
            (faces, true), (portraits, _), (_, known) = (
                look(part) for part in (chosen, portrait[None], video[rest[:frames]])
            )
            read, still = faces @ matrix, (portraits @ matrix)[0]
            seen = all(np.isfinite(vectors).all(1).any() for vectors in known.values())
            if seen and np.isfinite(read).all(1).mean() >= _LEAST and np.isfinite(still).all():
                person = entry.participants[ROLES.index(role)]
                found.append(Stretch(portrait, chosen, read, still, person, true, known))
            advance()
    if not found:
        raise UserError(f"{index.folder}: the tracker {look.face_spec.tracker} finds no face in the videos")
    return found


def arrives(
    true: Sequence[Float[np.ndarray, "T G"]], found: Sequence[Float[np.ndarray, "T G"]], *, offsets: bool = True
) -> Float[np.ndarray, " G"]:
    """R² of each group over all stretches, about each stretch's own mean: what moves counts, and who it is does not.

    Without `offsets` a constant difference within a stretch is no error (people's faces rest differently). Frames
    without a reading on either side are left out.
    """
    error, spread = 0.0, 0.0
    for t, f in zip(true, found, strict=True):
        both = np.isfinite(t).all(1) & np.isfinite(f).all(1)
        if both.sum() < 2:
            continue
        t, f = t[both], f[both]
        centred = t - t.mean(0)
        error = error + np.square(t - f if offsets else centred - (f - f.mean(0))).sum(0)
        spread = spread + np.square(centred).sum(0)
    return 1 - np.asarray(error) / np.asarray(spread)


@torch.inference_mode()
def drive(
    model: MotionAutoencoder, portrait: UInt8[np.ndarray, "Y X 3"], frames: UInt8[np.ndarray, "T Y X 3"]
) -> UInt8[np.ndarray, "T Y X 3"]:
    """The portrait with the motion of each frame."""
    device = model.direction_weight.device
    identity = model.identity(image_tensor(portrait[None], device), check=False)
    pieces = []
    for start in range(0, len(frames), _BATCH):
        motion = model.motion(image_tensor(frames[start : start + _BATCH], device), check=False)
        pieces.append(image_array(model.decode(identity, motion[None])[0]))
    return np.concatenate(pieces)


def driven_rows(
    model: MotionAutoencoder,
    found: Sequence[Stretch],
    look: Look,
    advance: Callable[[], None] = lambda: None,
    others: Sequence[Stretch] = (),
) -> tuple[list[MetricRow], list[UInt8[np.ndarray, "R Y X 3"]]]:
    """Rows `driven/psnr`, `driven/found`, `driven/r2/GROUP` (a portrait driven by its own video; null: left unchanged),
    `driven/moves/GROUP` (the same but for a constant difference, such as a mouth that never quite closes),
    `driven/across/GROUP` (by the next person's, about the mean of either) and
    `driven/identity/...` (`identity_rows`); and a contact sheet's columns: portrait, driving frame, image, the next
    person's frame, image. `others` are stretches of other people, who are then the drivers and whom images may be
    mistaken for, but are not driven themselves.
    """
    matrix, everybody = look.face_spec.grouping(GROUPS), [*found, *others]
    drivers = next_people([stretch.person for stretch in found])
    if others:
        drivers = [len(found) + n % len(others) for n in range(len(found))]
    own: list[np.ndarray] = []
    across: list[np.ndarray] = []
    vectors: tuple[list[Vectors], list[Vectors]] = ([], [])
    squares, copies = [], []
    sheet: list[list[np.ndarray]] = [[] for _ in range(5)]
    for n, stretch in enumerate(found):
        other = everybody[drivers[n]]
        images = [drive(model, stretch.portrait, side.frames) for side in (stretch, other)]
        for read, told, made in zip((own, across), vectors, images, strict=True):
            faces, of_person = look(made)
            read.append(faces @ matrix)
            told.append(of_person)
        squares.append(psnr(image_tensor(images[0]), image_tensor(stretch.frames)))
        copies.append(psnr(image_tensor(np.broadcast_to(stretch.portrait, stretch.frames.shape).copy()), image_tensor(stretch.frames)))  # fmt: skip
        # the frame that differs most from the portrait shows what arrives
        t, u = (int(np.nanargmax(np.abs(side.read - stretch.still).sum(1))) for side in (stretch, other))
        for column, image in zip(sheet, (stretch.portrait, stretch.frames[t], images[0][t], other.frames[u], images[1][u]), strict=True):  # fmt: skip
            column.append(image)
        advance()
    true = [stretch.read for stretch in found]
    driving = [everybody[n].read for n in drivers]
    still = [np.broadcast_to(stretch.still, stretch.read.shape) for stretch in found]
    with_face = float(np.mean([np.isfinite(read).all(1).mean() for read in own]))
    what = f"{len(found)} stretches of {look.face_spec.tracker}'s readings"
    by_itself = f"driven by its own video, R² about each stretch's mean, {what}; null: portrait unchanged"
    by_another = f"driven by another person's video, R² about either's mean, {what}; null: portrait unchanged"
    count = len(found)
    rows = [
        MetricRow("driven/psnr", float(np.mean(squares)), n=count, null=float(np.mean(copies)),
                  protocol="dB, mean over stretches, driven by its own video; null: portrait unchanged", better="higher"),
        MetricRow("driven/found", with_face, n=count, protocol=f"share of frames with a face, {what}", better="higher"),
    ]  # fmt: skip
    for tag, truth, read, protocol, offsets in (
        ("r2", true, own, by_itself, True),
        ("moves", true, own, by_itself.replace("each stretch's mean", "either's mean"), False),
        ("across", driving, across, by_another, False),
    ):
        values, nulls = arrives(truth, read, offsets=offsets), arrives(truth, _cut(still, truth), offsets=offsets)
        rows += [
            MetricRow(f"driven/{tag}/{name}", float(v), n=count, null=float(z), protocol=protocol, better="higher")
            for name, v, z in zip(GROUPS, values, nulls, strict=True)
        ]
    people, known, shown = ([getattr(stretch, name) for stretch in everybody] for name in ("person", "known", "true"))
    return rows + identity_rows(people, drivers, known, shown, *vectors), [np.stack(column) for column in sheet]


def next_people(people: Sequence[str]) -> list[int]:
    """For each place the next one, going round, of another person; the next one if there is no other person."""
    count = len(people)
    rounds = [[(n + step) % count for step in range(1, count + 1)] for n in range(count)]
    return [next((m for m in after if people[m] != people[n]), after[0]) for n, after in enumerate(rounds)]


def _cut(still: Sequence[np.ndarray], true: Sequence[np.ndarray]) -> list[np.ndarray]:
    return [np.broadcast_to(s[0], t.shape) for s, t in zip(still, true, strict=True)]
