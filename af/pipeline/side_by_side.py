"""Images side by side, scaled to one size in the same way, each with a caption."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import cv2
import numpy as np
from jaxtyping import UInt8

#: Smaller images are enlarged to at least this many rows, to prevent blurring by players.
LEAST_SIDE = 192


def enlarged(frames: UInt8[np.ndarray, "T Y X 3"], least: int = LEAST_SIDE) -> UInt8[np.ndarray, "T Y2 X2 3"]:
    """Enlarge small frames to at least `least` rows by repeating pixels; the size is even."""
    factor = max(1, -(-least // frames.shape[1]))
    return frames.repeat(factor, axis=1).repeat(factor, axis=2)


def side_by_side(images: Mapping[str, UInt8[np.ndarray, "Y X 3"]], side: int) -> UInt8[np.ndarray, "Y2 X2 3"]:
    """The middle squares of `images` (by caption) in a row, each `side` pixels wide under its caption.

    All are scaled in the same way, by repeating pixels and then averaging, so that none looks sharper or smoother than
    it is beside the others.
    """
    columns = [np.concatenate([_strip(caption, side), _fitted(image, side)]) for caption, image in images.items()]
    return np.concatenate(columns, axis=1)


def strip_height(side: int) -> int:
    """Height in rows of the captions of `side_by_side`."""
    return max(20, 2 * (side // 20))


def _fitted(image: UInt8[np.ndarray, "Y X 3"], side: int) -> UInt8[np.ndarray, "S S 3"]:
    height, width = image.shape[:2]
    least = min(height, width)
    top, left = (height - least) // 2, (width - least) // 2
    repeated = enlarged(image[None, top : top + least, left : left + least], side)[0]
    if len(repeated) == side:
        return repeated
    return np.asarray(cv2.resize(repeated, (side, side), interpolation=cv2.INTER_AREA), np.uint8)


@lru_cache(maxsize=64)
def _strip(caption: str, side: int) -> UInt8[np.ndarray, "S X 3"]:
    height, font = strip_height(side), cv2.FONT_HERSHEY_SIMPLEX
    strip = np.full((height, side, 3), 24, np.uint8)
    (wide, above), below = cv2.getTextSize(caption, font, 1.0, 1)
    scale = min(0.75 * height / (above + below), 0.9 * side / wide)
    place = (round((side - scale * wide) / 2), round((height + scale * (above - below)) / 2))
    cv2.putText(strip, caption, place, font, scale, (235, 235, 235), 1, cv2.LINE_AA)
    return strip
