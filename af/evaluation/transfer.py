"""One person's motion on another's face, compared with the true image, which can be drawn for synthetic people.

For a portrait of person A and a driving frame of person B the true image is A drawn with B's face parameters. An
autoencoder's image can be compared with it pixel by pixel, and its expression tracked. To first order, the difference
is explained by changes of A's colours and proportions; changes that persist between images are an identity error.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8

from af.data.index import Index
from af.data.shards import ShardReader
from af.errors import UserError
from af.images import image_array, image_tensor
from af.models.autoencoder import MotionAutoencoder
from af.synth.appearance import Appearance
from af.synth.build import appearance_of
from af.synth.face import FACE_INDEX, FACE_NAMES, FACE_RANGES
from af.synth.render import render
from af.types import Clip

#: A person's colours and proportions; hair style changes the image too much for a first-order estimate.
COLOURS = ("skin", "hair", "iris", "lips", "clothes", "background")
SHAPES = (
    "face_width", "jaw", "chin", "eye_size", "eye_spacing", "eye_tilt", "brow_thickness", "brow_height", "nose_width",
    "nose_length", "mouth_width", "lip_fullness", "hairline", "hair_volume",
)  # fmt: skip
_OPEN = 0.3  # largest blink of a portrait
_PEOPLE = 400  # number of people drawn to estimate their spread
_STEP = 0.25  # step for derivatives, relative to the spread
#: Driving frames per portrait: only their mean can distinguish a wider mouth from a wider opening.
DRIVEN = 8
#: Error of face parameters for measuring the metric's floor, as a share of their ranges.
FACES_OFF = 0.02
_NOISE = 4.0  # tolerated difference of a pixel in grey values (of 255)


@dataclass(frozen=True)
class Pairs:
    """Portraits and driving frames of different people as uint8 images, with their ground truth."""

    portraits: UInt8[np.ndarray, "N Y X 3"]
    portrait_faces: Float[np.ndarray, "N P"]
    people: tuple[Appearance, ...]
    driving: UInt8[np.ndarray, "N Y X 3"]
    driving_faces: Float[np.ndarray, "N P"]

    @property
    def truth(self) -> UInt8[np.ndarray, "N Y X 3"]:
        """The true images: the portraits' people with the driving frames' face parameters."""
        drawn = zip(self.driving_faces, self.people, strict=True)
        return np.concatenate([render(face[None], person, self.portraits.shape[1]) for face, person in drawn])


def synthetic_person(index: Index, clip: Clip, role: str) -> tuple[np.ndarray, np.ndarray, Appearance]:
    """Frames, face parameters and appearance of a person of a clip. UserError when the split is not synthetic."""
    extra, person = clip.meta.get("extra", {}), clip.person(role)
    if "seed" not in extra or person.video is None or person.face is None:
        raise UserError(f"{index.folder}: only synthetic shards with videos know their people's appearance (af synth)")
    return person.video, person.face, appearance_of(extra, role)


def draw_pairs(index: Index, count: int, *, seed: int = 0) -> Pairs:
    """Draw `count` pairs of portraits (`DRIVEN` times each) and other people's frames from a synthetic split.

    Raises UserError when the split is not synthetic.
    """
    reader, rng = ShardReader(index), np.random.default_rng(seed)
    if len(index.samples) < 2:
        raise UserError(f"{index.folder}: transfer needs two conversations of different people")
    chosen = np.resize(rng.permutation(len(index.samples)), -(-count // DRIVEN))
    portraits = np.repeat(chosen, DRIVEN)[:count]
    others = (portraits + rng.integers(1, len(index.samples), count)) % len(index.samples)  # never the portrait's clip

    def draw(i: int, *, portrait: bool = False) -> tuple[np.ndarray, np.ndarray, Appearance]:
        clip, role = reader.read(i, {"video", "face"}), rng.choice(["a", "b"])
        video, face, looks = synthetic_person(index, clip, role)
        blink = face[:, FACE_INDEX["blink"]]
        # a portrait with closed eyes does not show their colour
        open_eyes = np.flatnonzero(blink <= max(_OPEN, blink.min()))
        t = rng.choice(open_eyes) if portrait else rng.integers(len(video))
        return video[t], face[t], looks

    shown = [draw(int(i), portrait=True) for i in chosen]
    sides = [shown[n // DRIVEN] for n in range(count)], [draw(int(i)) for i in others]
    (portrait, face, people), (driving, driving_face, _) = (zip(*side, strict=True) for side in sides)
    return Pairs(np.stack(portrait), np.stack(face), people, np.stack(driving), np.stack(driving_face))


def with_faces_off(pairs: Pairs, *, seed: int = 0) -> UInt8[np.ndarray, "N Y X 3"]:
    """The true images with normal errors of `FACES_OFF` of their ranges in the face parameters.

    `appearance_error` on these is its floor: a slightly wrong face and a person of other proportions look alike.
    """
    low, high = np.array([FACE_RANGES[name] for name in FACE_NAMES]).T
    noise = np.random.default_rng((seed, 1)).normal(size=pairs.driving_faces.shape)
    faces = np.clip(pairs.driving_faces + FACES_OFF * (high - low) * noise, low, high)
    return replace(pairs, driving_faces=faces).truth


@torch.inference_mode()
def transfer(
    model: MotionAutoencoder, portraits: UInt8[np.ndarray, "N Y X 3"], driving: UInt8[np.ndarray, "N Y X 3"]
) -> UInt8[np.ndarray, "N Y X 3"]:
    """Reconstruct the portraits with the motion of the driving frames."""
    device = next(model.parameters()).device
    step = 32
    pieces = [
        image_array(model(*(image_tensor(side[i : i + step], device) for side in (portraits, driving))).image)
        for i in range(0, len(portraits), step)
    ]
    return np.concatenate(pieces)


def appearance_spread() -> dict[str, Float[np.ndarray, " C"]]:
    """Standard deviation of every colour and proportion between people."""
    people = [Appearance.sample(np.random.default_rng((7, i))) for i in range(_PEOPLE)]
    return {
        name: np.atleast_1d(np.std([np.asarray(getattr(p, name), float) for p in people], axis=0))
        for name in (*COLOURS, *SHAPES)
    }


def appearance_error(
    image: UInt8[np.ndarray, "Y X 3"],
    face: Float[np.ndarray, " P"],
    person: Appearance,
    spread: dict[str, Float[np.ndarray, " C"]],
) -> dict[str, Float[np.ndarray, " C"]]:
    """Deviation of an image from `person`'s colours and proportions, in standard deviations between people.

    The most likely joint change of appearance and face parameters, given the difference from the true image: least
    squares on derivatives of the drawing with a standard normal prior, so invisible changes count as 0.
    """
    size = image.shape[0]
    names = [(name, i) for name, values in spread.items() for i in range(len(values))]
    steps = [replace(person, **_moved(person, name, i, _STEP * spread[name][i])) for name, i in names]
    base = render(face[None], person, size)[0].astype(np.float64)
    columns = [(render(face[None], other, size)[0] - base) / _STEP for other in steps]
    # Face parameters are fitted too, so that their changes do not count as changes of the person.
    for k, name in enumerate(FACE_NAMES):
        low, high = FACE_RANGES[name]
        unit = 0.05 * (high - low)
        moved = face.copy()
        moved[k] += unit if face[k] < (low + high) / 2 else -unit
        columns.append((render(moved[None], person, size)[0] - base) * np.sign(moved[k] - face[k]))
    design = np.stack([column.ravel() for column in columns], 1)
    residual = (image.astype(np.float64) - base).ravel()
    gram = design.T @ design / _NOISE**2 + np.eye(design.shape[1])
    found = np.linalg.solve(gram, design.T @ residual / _NOISE**2)
    errors: dict[str, list[float]] = {}
    for (name, _), value in zip(names, found, strict=False):
        errors.setdefault(name, []).append(value)
    return {name: np.array(values) for name, values in errors.items()}


def identity_error(
    images: UInt8[np.ndarray, "N Y X 3"], pairs: Pairs, spread: dict[str, Float[np.ndarray, " C"]]
) -> dict[str, Float[np.ndarray, "G C"]]:
    """Mean `appearance_error` over the `DRIVEN` images of each of the G portraits: the persistent part."""
    drawn = zip(images, pairs.driving_faces, pairs.people, strict=True)
    errors = [appearance_error(*each, spread) for each in drawn]
    groups = [errors[n : n + DRIVEN] for n in range(0, len(errors), DRIVEN)]
    return {name: np.stack([np.mean([e[name] for e in group], axis=0) for group in groups]) for name in spread}


def _moved(person: Appearance, name: str, i: int, step: float) -> dict[str, Any]:
    value = getattr(person, name)
    if not isinstance(value, tuple):
        return {name: value + step}
    return {name: tuple(v + step if j == i else v for j, v in enumerate(value))}
