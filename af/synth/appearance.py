"""The appearance of a synthetic person: colours and proportions drawn from a seed."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import numpy as np

Colour = tuple[float, float, float]  # RGB, 0–255

_SKIN = (
    (255, 224, 202),
    (246, 208, 180),
    (236, 190, 158),
    (222, 170, 132),
    (198, 142, 104),
    (168, 114, 80),
    (132, 86, 60),
    (98, 64, 48),
)
_HAIR = (
    (34, 28, 30),
    (58, 40, 34),
    (88, 58, 40),
    (126, 84, 52),
    (170, 122, 70),
    (216, 174, 106),
    (158, 72, 40),
    (150, 148, 150),
    (206, 204, 204),
)
_HAIR_ODDS = (0.2, 0.19, 0.17, 0.13, 0.09, 0.08, 0.07, 0.04, 0.03)
_IRIS = ((84, 52, 32), (112, 74, 42), (124, 108, 58), (86, 128, 84), (78, 122, 164), (104, 122, 136), (60, 40, 30))


@dataclass(frozen=True)
class Appearance:
    """One synthetic person. Lengths are in head units (half the height of the face), colours RGB 0–255."""

    skin: Colour
    hair: Colour
    iris: Colour
    lips: Colour
    clothes: Colour
    background: Colour
    face_width: float  # half width of the face
    jaw: float  # how much the face narrows towards the chin
    chin: float  # extra length of the lower face
    eye_size: float
    eye_spacing: float  # half distance between the eyes
    eye_tilt: float
    brow_thickness: float
    brow_height: float
    nose_width: float
    nose_length: float
    mouth_width: float
    lip_fullness: float
    hairline: float  # height of the hair above the forehead's middle (negative is up)
    hair_sides: float  # how far the hairline comes down at the temples
    hair_part: float  # asymmetry of the hairline
    hair_volume: float
    hair_drop: float  # how far the hair comes down at the sides of the face
    hair_length: float  # how far hair hangs down behind the head (below 0: none)
    bun: float  # radius of a bun on top, 0 for none
    beard: float  # 0 none … 1 full
    glasses: float  # 1 for glasses, 0 for none
    ears: float  # size

    @classmethod
    def sample(cls, rng: np.random.Generator) -> Appearance:
        """Draw a person; the same generator state draws the same person."""
        tone = rng.uniform(0, len(_SKIN) - 1)
        low = int(tone)
        skin = np.array(_SKIN[low]) * (1 - tone + low) + np.array(_SKIN[min(low + 1, len(_SKIN) - 1)]) * (tone - low)
        skin = np.clip(skin * rng.normal(1, 0.015, 3), 40, 255)
        darkness = tone / (len(_SKIN) - 1)
        hair_odds = np.array(_HAIR_ODDS) * np.array([1, 1, 1] + [max(0.05, 1 - 1.5 * darkness)] * 4 + [1, 1])
        hair = np.array(_HAIR[rng.choice(len(_HAIR), p=hair_odds / hair_odds.sum())]) * rng.uniform(0.88, 1.12)
        iris_odds = np.array([1, 1] + [max(0.03, 1 - 1.6 * darkness)] * 4 + [1])
        iris = np.array(_IRIS[rng.choice(len(_IRIS), p=iris_odds / iris_odds.sum())]) * rng.uniform(0.9, 1.15)
        redness = rng.uniform(0.25, 0.75)
        lips = skin * np.array([0.86, 0.62, 0.60]) * (1 - redness) + np.array([196, 84, 88]) * redness
        lips *= 1 - 0.30 * darkness
        hue = rng.uniform()
        background = _hsv(hue, rng.uniform(0.10, 0.34), rng.uniform(0.62, 0.92))
        clothes = _hsv(hue + rng.uniform(0.25, 0.75), rng.uniform(0.2, 0.58), rng.uniform(0.3, 0.85))
        style = rng.choice(list(_STYLES), p=[odds for odds, *_ in _STYLES.values()])
        _, hairline, sides, part, volume, drop, length, bun = _STYLES[style]
        bearded = style in ("short", "parted", "shaved") and rng.uniform() < 0.35
        return cls(
            skin=_colour(skin),
            hair=_colour(hair),
            iris=_colour(iris),
            lips=_colour(lips),
            clothes=clothes,
            background=background,
            face_width=rng.uniform(0.70, 0.84),
            jaw=rng.uniform(0.16, 0.40),
            chin=rng.uniform(-0.05, 0.08),
            eye_size=rng.uniform(1.0, 1.28),
            eye_spacing=rng.uniform(0.31, 0.37),
            eye_tilt=rng.uniform(-0.06, 0.10),
            brow_thickness=rng.uniform(0.028, 0.055),
            brow_height=rng.uniform(0.29, 0.35),
            nose_width=rng.uniform(0.75, 1.25),
            nose_length=rng.uniform(0.22, 0.31),
            mouth_width=rng.uniform(0.25, 0.32),
            lip_fullness=rng.uniform(0.7, 1.35),
            hairline=hairline + rng.uniform(-0.06, 0.06),
            hair_sides=sides * rng.uniform(0.85, 1.15),
            hair_part=(part + rng.uniform(-0.05, 0.05)) * rng.choice([-1, 1]),
            hair_volume=volume * rng.uniform(0.8, 1.2),
            hair_drop=drop + rng.uniform(-0.04, 0.04),
            hair_length=length + rng.uniform(-0.12, 0.12),
            bun=bun * rng.uniform(0.85, 1.15),
            beard=rng.uniform(0.5, 0.9) if bearded else 0.0,
            glasses=float(rng.uniform() < 0.15),
            ears=rng.uniform(0.85, 1.15),
        )


#: Probability, hairline, sides, part, volume, drop, length, bun.
_STYLES = {
    "short": (0.22, -0.58, 0.55, 0.05, 0.07, -0.02, -1.0, 0.0),
    "parted": (0.18, -0.54, 0.60, 0.22, 0.09, 0.02, -1.0, 0.0),
    "long": (0.2, -0.56, 0.80, 0.10, 0.13, 0.75, 1.15, 0.0),
    "fringe": (0.15, -0.38, 0.26, 0.00, 0.13, 0.60, 0.75, 0.0),
    "bun": (0.09, -0.62, 0.50, 0.00, 0.08, -0.02, -1.0, 0.34),
    "round": (0.1, -0.62, 0.46, 0.00, 0.28, 0.28, 0.62, 0.0),
    "shaved": (0.06, -0.74, 0.45, 0.00, 0.03, -0.15, -1.0, 0.0),
}


def _colour(values: np.ndarray) -> Colour:
    red, green, blue = (float(v) for v in np.clip(values, 0, 255))
    return red, green, blue


def _hsv(hue: float, saturation: float, value: float) -> Colour:
    return _colour(255 * np.array(colorsys.hsv_to_rgb(hue % 1, saturation, value)))
