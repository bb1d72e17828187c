"""What a motion latent is worth: what can be read from it, what cannot, and whether it moves as smoothly as the face.

All probes are linear (ridge), judged on people they were not fitted to. Each has a null (the link between input and
target broken) and, where that means something, the same probe on the true face parameters.
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
from af.evaluation.transfer import COLOURS, SHAPES, explained
from af.images import image_array, image_tensor
from af.metrics.ridge import fit_ridge
from af.models.autoencoder import MotionAutoencoder
from af.synth.build import appearance_of
from af.types import Identity

_FOLDS = 4
_BATCH = 32


@dataclass(frozen=True)
class Person:
    """One person's video as the autoencoder sees it, and what is true of it."""

    coefficients: Float[np.ndarray, "T K"]
    codes: Float[np.ndarray, "T D"]
    face: Float[np.ndarray, "T P"]
    appearance: Float[np.ndarray, " A"]
    portrait: UInt8[np.ndarray, "Y X 3"]


@torch.inference_mode()
def read_people(
    model: MotionAutoencoder, index: Index, conversations: int, frames: int, advance: Callable[[], None] = lambda: None
) -> list[Person]:
    """Both people of the first conversations, their first `frames` frames. UserError when they are not synthetic."""
    reader, directions = ShardReader(index), model.directions()
    device = directions.device
    people = []
    for i in range(min(conversations, len(index.samples))):
        clip = reader.read(i, {"video", "face"})
        for role in ROLES:
            extra, person = clip.meta.get("extra", {}), clip.person(role)
            if "seed" not in extra or person.video is None or person.face is None:
                raise UserError(f"{index.folder}: only synthetic shards with videos know who is to be seen (af synth)")
            identities = [
                model.identity(image_tensor(person.video[:frames][t : t + _BATCH], device), check=False)
                for t in range(0, min(frames, len(person.video)), _BATCH)
            ]
            codes = torch.cat([identity.code for identity in identities])
            motion = torch.cat([model.reference_motion(identity) for identity in identities])
            looks = appearance_of(extra, role)
            people.append(
                Person(
                    (motion @ directions).cpu().double().numpy(),
                    codes.cpu().double().numpy(),
                    person.face[:frames].astype(np.float64),
                    np.concatenate([np.atleast_1d(getattr(looks, name)) for name in (*COLOURS, *SHAPES)]),
                    person.video[0],
                )
            )
            advance()
    if len(people) < 2 * _FOLDS:
        raise UserError(f"{index.folder}: probes need at least {_FOLDS} conversations, found {len(people) // 2}")
    return people


def probe_r2(inputs: Sequence[np.ndarray], targets: Sequence[np.ndarray]) -> Float[np.ndarray, " O"]:
    """R² of each target on people left out of the fit, people dealt into folds; one array of rows a person."""
    found = []
    for fold in range(_FOLDS):
        fitted = [n for n in range(len(inputs)) if n % _FOLDS != fold]
        x, y = (np.concatenate([side[n] for n in fitted]) for side in (inputs, targets))
        weights, offset = fit_ridge(x, y)
        found += [(n, inputs[n] @ weights + offset) for n in range(fold, len(inputs), _FOLDS)]
    predictions = [rows for _, rows in sorted(found, key=lambda pair: pair[0])]
    return explained(np.concatenate(list(targets)), np.concatenate(predictions))


def identity_from(people: Sequence[Person], inputs: Sequence[np.ndarray]) -> float:
    """Mean R² of colours and proportions read from one frame's `inputs`, on people not seen before."""
    targets = [np.tile(p.appearance, (len(rows), 1)) for p, rows in zip(people, inputs, strict=True)]
    return float(np.nanmean(probe_r2(inputs, targets)))


def recognised(inputs: Sequence[np.ndarray]) -> float:
    """How often a linear classifier names the person of a frame: fitted on the first half of each video, judged on the
    last quarter. What differs between conversations (how the head is held) counts too: compare with the true faces'.
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
    """Mean R² of the coefficients of a frame read from `inputs` of another frame of the same video, half a video away.

    With `other` the frame is of another person (that many further): the null.
    """
    targets = [people[(n + other) % len(people)].coefficients for n in range(len(people))]
    shifted = [np.roll(rows, len(rows) // 2, 0)[: len(inputs[n])] for n, rows in enumerate(targets)]
    return float(np.nanmean(probe_r2(inputs, shifted)))


def roughness(tracks: Sequence[Float[np.ndarray, "T C"]]) -> float:
    """Mean absolute second difference over mean absolute first difference, per coefficient in units of its spread."""
    scale = np.concatenate(list(tracks)).std(0) + 1e-12
    first, second = (np.concatenate([np.diff(t / scale, order, axis=0) for t in tracks]) for order in (1, 2))
    return float(np.abs(second).mean() / np.abs(first).mean())


@torch.inference_mode()
def traversal(
    model: MotionAutoencoder, people: Sequence[Person], steps: Sequence[float]
) -> UInt8[np.ndarray, "K S Y X 3"]:
    """The first person with each coefficient in turn at `steps` standard deviations from the portrait's own."""
    portrait = image_tensor(people[0].portrait[None], model.direction_weight.device)
    identity: Identity = model.identity(portrait)
    spread = torch.from_numpy(np.concatenate([p.coefficients for p in people]).std(0)).float().to(portrait.device)
    offsets = torch.tensor(steps, device=portrait.device)[None, :, None] * torch.diag(spread)[:, None]
    motion = model.reference_motion(identity) + offsets @ model.directions().T  # (K, S, D)
    images = model.decode(identity, motion.flatten(0, 1)[None], chunk_frames=_BATCH)[0]
    return image_array(images).reshape(*motion.shape[:2], *people[0].portrait.shape)
