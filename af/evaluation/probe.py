"""Probes of motion latents: what they contain, what they do not, and whether they move as smoothly as the face.

All probes are linear (ridge) and evaluated on people left out of the fit. Each has a null (input and target decoupled)
and, where meaningful, a reference: the same probe on the true face parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8

from af.data.index import Index
from af.data.schema import ROLES
from af.data.shards import ShardReader
from af.errors import UserError
from af.evaluation.transfer import COLOURS, SHAPES, synthetic_person
from af.images import image_array, image_tensor
from af.metrics.arrays import r_squared
from af.metrics.ridge import fit_ridge
from af.models.autoencoder import MotionAutoencoder
from af.types import Identity

_FOLDS = 4
_BATCH = 32


@dataclass(frozen=True)
class Person:
    """One person's encoded video and its ground truth."""

    coefficients: Float[np.ndarray, "T K"]
    codes: Float[np.ndarray, "T D"]
    face: Float[np.ndarray, "T P"]
    appearance: Float[np.ndarray, " A"]
    portrait: UInt8[np.ndarray, "Y X 3"]


@torch.inference_mode()
def read_people(
    model: MotionAutoencoder, index: Index, conversations: int, frames: int, advance: Callable[[], None] = lambda: None
) -> list[Person]:
    """Read the first `frames` frames of both people in the first conversations. Raises UserError unless synthetic."""
    reader, directions = ShardReader(index), model.directions()
    device = directions.device
    people = []
    for i in range(min(conversations, len(index.samples))):
        clip = reader.read(i, {"video", "face"})
        for role in ROLES:
            video, face, looks = synthetic_person(index, clip, role)
            identities = [
                model.identity(image_tensor(video[:frames][t : t + _BATCH], device), check=False)
                for t in range(0, min(frames, len(video)), _BATCH)
            ]
            codes = torch.cat([identity.code for identity in identities])
            motion = torch.cat([model.reference_motion(identity) for identity in identities])
            people.append(
                Person(
                    (motion @ directions).cpu().double().numpy(),
                    codes.cpu().double().numpy(),
                    face[:frames].astype(np.float64),
                    np.concatenate([np.atleast_1d(getattr(looks, name)) for name in (*COLOURS, *SHAPES)]),
                    video[0],
                )
            )
            advance()
    if len(people) < 2 * _FOLDS:
        raise UserError(f"{index.folder}: probes need at least {_FOLDS} conversations, found {len(people) // 2}")
    return people


def probe_r2(inputs: Sequence[np.ndarray], targets: Sequence[np.ndarray]) -> Float[np.ndarray, " O"]:
    """Cross-validated R² of each target on people left out of the fit; one array of rows per person."""
    found = []
    for fold in range(_FOLDS):
        fitted = [n for n in range(len(inputs)) if n % _FOLDS != fold]
        x, y = (np.concatenate([side[n] for n in fitted]) for side in (inputs, targets))
        weights, offset = fit_ridge(x, y)
        found += [(n, inputs[n] @ weights + offset) for n in range(fold, len(inputs), _FOLDS)]
    predictions = [rows for _, rows in sorted(found, key=lambda pair: pair[0])]
    return r_squared(np.concatenate(list(targets)), np.concatenate(predictions))


def identity_from(people: Sequence[Person], inputs: Sequence[np.ndarray]) -> float:
    """Mean R² of colours and proportions read from one frame's `inputs`, on unseen people."""
    targets = [np.tile(p.appearance, (len(rows), 1)) for p, rows in zip(people, inputs, strict=True)]
    return float(np.nanmean(probe_r2(inputs, targets)))


def recognised(inputs: Sequence[np.ndarray]) -> float:
    """Accuracy of a linear classifier of the person, fitted on the first half and tested on the last quarter of each
    video. The head's posture in a conversation helps it, so compare it with the accuracy on true faces.
    """
    first = [rows[: len(rows) // 2] for rows in inputs]
    last = [rows[len(rows) - len(rows) // 4 :] for rows in inputs]
    names = np.eye(len(inputs))
    everything = np.concatenate(first)
    scale = everything.std(0) + 1e-12
    weights, offset = fit_ridge(everything / scale, np.repeat(names, [len(rows) for rows in first], 0))
    truth: Int[np.ndarray, " N"] = np.repeat(np.arange(len(inputs)), [len(rows) for rows in last])
    return float(((np.concatenate(last) / scale @ weights + offset).argmax(1) == truth).mean())


def motion_from_codes(people: Sequence[Person], inputs: Sequence[np.ndarray], *, other: int = 0) -> float:
    """Mean R² of a frame's coefficients read from `inputs` of another frame, half a video away.

    With `other` that frame is from another person (this many further on), for the null.
    """
    targets = [people[(n + other) % len(people)].coefficients for n in range(len(people))]
    shifted = [np.roll(rows, len(rows) // 2, 0)[: len(inputs[n])] for n, rows in enumerate(targets)]
    return float(np.nanmean(probe_r2(inputs, shifted)))


def roughness(tracks: Sequence[Float[np.ndarray, "T C"]]) -> float:
    """Mean absolute second over first difference, per coefficient in units of its spread."""
    scale = np.concatenate(list(tracks)).std(0) + 1e-12
    first, second = (np.concatenate([np.diff(t / scale, order, axis=0) for t in tracks]) for order in (1, 2))
    return float(np.abs(second).mean() / np.abs(first).mean())


@torch.inference_mode()
def traversal(
    model: MotionAutoencoder, people: Sequence[Person], steps: Sequence[float]
) -> UInt8[np.ndarray, "K S Y X 3"]:
    """The first person with each coefficient in turn moved by `steps` standard deviations from the portrait's."""
    portrait = image_tensor(people[0].portrait[None], model.direction_weight.device)
    identity: Identity = model.identity(portrait)
    spread = torch.from_numpy(np.concatenate([p.coefficients for p in people]).std(0)).float().to(portrait.device)
    offsets = torch.tensor(steps, device=portrait.device)[None, :, None] * torch.diag(spread)[:, None]
    motion = model.reference_motion(identity) + offsets @ model.directions().T  # (K, S, D)
    images = model.decode(identity, motion.flatten(0, 1)[None], chunk_frames=_BATCH)[0]
    return image_array(images).reshape(*motion.shape[:2], *people[0].portrait.shape)
