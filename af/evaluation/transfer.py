"""One person's motion on another's face, held against the truth: synthetic people can be drawn with any expression.

For a portrait of person A and a driving frame of person B the right image is A drawn with B's face parameters. So an
autoencoder's image can be compared pixel by pixel, its expression can be tracked, and what it did to A can be read off:
the difference of the two images is explained, to first order, by changes of A's colours and proportions, and what
persists from image to image is an error of the identity.
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

#: What a person's colours and proportions are; the rest is style (hair) that changes too much to be seen to first order.
COLOURS = ("skin", "hair", "iris", "lips", "clothes", "background")
SHAPES = (
    "face_width", "jaw", "chin", "eye_size", "eye_spacing", "eye_tilt", "brow_thickness", "brow_height", "nose_width",
    "nose_length", "mouth_width", "lip_fullness", "hairline", "hair_volume",
)  # fmt: skip
_OPEN = 0.3  # blink of a portrait at most
_PEOPLE = 400  # drawn for the spread between people
_STEP = 0.25  # of that spread, for derivatives
#: Driving frames a portrait. One image cannot tell a wider mouth from a wider opened one, their mean can.
DRIVEN = 8
#: By how much face parameters are off where the measure's own floor is read, as a share of their ranges.
FACES_OFF = 0.02
_NOISE = 4.0  # grey values (of 255) that a pixel may differ for no reason


@dataclass(frozen=True)
class Pairs:
    """Portraits and driving frames of different people, uint8 images, with what is true of them."""

    portraits: UInt8[np.ndarray, "N Y X 3"]
    portrait_faces: Float[np.ndarray, "N P"]
    people: tuple[Appearance, ...]
    driving: UInt8[np.ndarray, "N Y X 3"]
    driving_faces: Float[np.ndarray, "N P"]

    @property
    def truth(self) -> UInt8[np.ndarray, "N Y X 3"]:
        """The people of the portraits with the driving faces."""
        drawn = zip(self.driving_faces, self.people, strict=True)
        return np.concatenate([render(face[None], person, self.portraits.shape[1]) for face, person in drawn])


def draw_pairs(index: Index, count: int, *, seed: int = 0) -> Pairs:
    """`count` portraits with driving frames of other people, of a synthetic split; each portrait `DRIVEN` times in turn.

    UserError when the split is not synthetic.
    """
    reader, rng = ShardReader(index), np.random.default_rng(seed)
    if len(index.samples) < 2:
        raise UserError(f"{index.folder}: transfer needs two conversations of different people")
    chosen = np.resize(rng.permutation(len(index.samples)), -(-count // DRIVEN))
    portraits = np.repeat(chosen, DRIVEN)[:count]
    others = (portraits + rng.integers(1, len(index.samples), count)) % len(index.samples)  # never the portrait's clip

    def draw(i: int, *, portrait: bool = False) -> tuple[np.ndarray, np.ndarray, Appearance]:
        clip, role = reader.read(i, {"video", "face"}), rng.choice(["a", "b"])
        extra, person = clip.meta.get("extra", {}), clip.person(role)
        if "seed" not in extra or person.video is None or person.face is None:
            raise UserError(f"{index.folder}: only synthetic shards with videos know who is to be seen (af synth)")
        blink = person.face[:, FACE_INDEX["blink"]]
        # nobody can keep the colour of eyes that a portrait does not show
        t = (
            rng.choice(np.flatnonzero(blink <= max(_OPEN, blink.min())))
            if portrait
            else rng.integers(len(person.video))
        )
        return person.video[t], person.face[t], appearance_of(extra, role)

    shown = [draw(int(i), portrait=True) for i in chosen]
    sides = [shown[n // DRIVEN] for n in range(count)], [draw(int(i)) for i in others]
    (portrait, face, people), (driving, driving_face, _) = (zip(*side, strict=True) for side in sides)
    return Pairs(np.stack(portrait), np.stack(face), people, np.stack(driving), np.stack(driving_face))


def with_faces_off(pairs: Pairs, *, seed: int = 0) -> UInt8[np.ndarray, "N Y X 3"]:
    """The right people with face parameters that are off by `FACES_OFF` of their ranges (normal, kept within them).

    What `appearance_error` reads on these is the least that it can tell: a face that is a little off and a person of
    other proportions look alike.
    """
    low, high = np.array([FACE_RANGES[name] for name in FACE_NAMES]).T
    noise = np.random.default_rng((seed, 1)).normal(size=pairs.driving_faces.shape)
    faces = np.clip(pairs.driving_faces + FACES_OFF * (high - low) * noise, low, high)
    return replace(pairs, driving_faces=faces).truth


@torch.inference_mode()
def transfer(
    model: MotionAutoencoder, portraits: UInt8[np.ndarray, "N Y X 3"], driving: UInt8[np.ndarray, "N Y X 3"]
) -> UInt8[np.ndarray, "N Y X 3"]:
    """The portraits with the motion of the driving frames."""
    device = next(model.parameters()).device
    step = 32
    pieces = [
        image_array(model(*(image_tensor(side[i : i + step], device) for side in (portraits, driving))).image)
        for i in range(0, len(portraits), step)
    ]
    return np.concatenate(pieces)


def explained(truth: Float[np.ndarray, "N P"], found: Float[np.ndarray, "N P"]) -> Float[np.ndarray, " P"]:
    """R² of each parameter: 1 is exact, 0 as good as the mean, below 0 worse. NaN where the truth is constant."""
    spread = truth.var(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(spread > 0, 1 - np.square(truth - found).mean(0) / spread, np.nan)


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
    """By how much (in standard deviations between people) an image shows other colours and proportions than `person`'s.

    The most likely change of appearance and of the face parameters at once, given the difference from the true image:
    least squares on derivatives of the drawing, with a standard normal prior, so that what cannot be seen counts as 0.
    """
    size = image.shape[0]
    names = [(name, i) for name, values in spread.items() for i in range(len(values))]
    steps = [replace(person, **_moved(person, name, i, _STEP * spread[name][i])) for name, i in names]
    base = render(face[None], person, size)[0].astype(np.float64)
    columns = [(render(face[None], other, size)[0] - base) / _STEP for other in steps]
    # Face parameters are free to differ too: their changes must not pass for changes of the person.
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
    """What persists of `appearance_error` in the images of each of the G portraits: the mean of its `DRIVEN` images."""
    drawn = zip(images, pairs.driving_faces, pairs.people, strict=True)
    errors = [appearance_error(*each, spread) for each in drawn]
    groups = [errors[n : n + DRIVEN] for n in range(0, len(errors), DRIVEN)]
    return {name: np.stack([np.mean([e[name] for e in group], axis=0) for group in groups]) for name in spread}


def _moved(person: Appearance, name: str, i: int, step: float) -> dict[str, Any]:
    value = getattr(person, name)
    if not isinstance(value, tuple):
        return {name: value + step}
    return {name: tuple(v + step if j == i else v for j, v in enumerate(value))}
