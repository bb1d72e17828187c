"""Anti-aliased drawing on a stack of frames at once; shapes are distances in head coordinates.

A `Stack` holds a few frames as float planes. `window` finds the pixels that a feature can touch in any frame; the
feature is drawn on those pixels only, which makes small features cheap.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Array = np.ndarray
Number = float | Array  # one value, or one per frame


@dataclass(frozen=True)
class Window:
    """A part of the image, the same for all frames of a stack, with its pixel centres."""

    rows: slice
    columns: slice
    x: Array
    y: Array


class Stack:
    """`frames` (3,T,Y,X) to draw on, and each frame's map from pixels to head coordinates.

    Image coordinates lie in [-1, 1] (right, down). Head coordinates have their origin between the ears and half a
    face's height as unit; `roll` turns them clockwise, `unit` is their unit in image coordinates.
    """

    def __init__(self, frames: Array, roll: Array, unit: Array, centre_x: Array, centre_y: Array) -> None:
        size = frames.shape[-1]
        self.size, self.frames = size, frames
        self.pixels = ((np.arange(size, dtype=np.float32) + 0.5) * (2 / size) - 1).astype(np.float32)
        self.cos, self.sin, self.unit = np.cos(roll), np.sin(roll), unit
        self.centre_x, self.centre_y = centre_x, centre_y
        self.per_unit = unit * (size / 2)  # pixels per head unit, per frame

    def window(self, x: Number, y: Number, half_width: float, half_height: float) -> Window:
        """Pixels within a box around head point (x, y) in any frame; none if it lies outside the image."""
        image_x = self.centre_x + self.unit * (self.cos * x - self.sin * y)
        image_y = self.centre_y + self.unit * (self.sin * x + self.cos * y)
        reach_x = self.unit * (np.abs(self.cos) * half_width + np.abs(self.sin) * half_height)
        reach_y = self.unit * (np.abs(self.sin) * half_width + np.abs(self.cos) * half_height)
        columns, rows = self._pixels(image_x, reach_x), self._pixels(image_y, reach_y)
        return Window(rows, columns, self.pixels[columns], self.pixels[rows])

    def _pixels(self, centre: Array, reach: Array) -> slice:
        first = int((float((centre - reach).min()) + 1) * (self.size / 2)) - 1
        last = int((float((centre + reach).max()) + 1) * (self.size / 2)) + 2
        return slice(max(0, first), max(0, min(self.size, last)))

    def local(self, window: Window, x: Number, y: Number, width: Number = 1.0, height: Number = 1.0):
        """Coordinates (p, q), each (T,rows,columns), with origin (x, y) and units `width`, `height` of the head."""
        scale_p, scale_q = 1 / (self.unit * width), 1 / (self.unit * height)
        c, s = self.cos, self.sin
        origin_p = (c * self.centre_x + s * self.centre_y) * scale_p + x / width
        origin_q = (c * self.centre_y - s * self.centre_x) * scale_q + y / height
        p = _plane(c * scale_p, s * scale_p, origin_p, window)
        q = _plane(-s * scale_q, c * scale_q, origin_q, window)
        return p, q

    def paint(self, window: Window, coverage: Array, colour: Array) -> None:
        """Blend `colour` ((3,) or (3,T,rows,columns)) over the window by `coverage` (T,rows,columns) in [0, 1]."""
        target = self.frames[:, :, window.rows, window.columns]
        change = (colour[:, None, None, None] if colour.ndim == 1 else colour) - target
        change *= coverage
        target += change

    def ellipse(self, x: Number, y: Number, width: Number, height: Number, colour: Array, alpha: Number = 1.0) -> None:
        """A filled, anti-aliased ellipse at a head point."""
        self._oval(x, y, width, height, colour, alpha, soft=False)

    def glow(self, x: Number, y: Number, width: Number, height: Number, colour: Array, alpha: Number) -> None:
        """An ellipse that fades towards its edge: shading, blush, highlights."""
        self._oval(x, y, width, height, colour, alpha, soft=True)

    def _oval(
        self, x: Number, y: Number, width: Number, height: Number, colour: Array, alpha: Number, *, soft: bool
    ) -> None:
        window = self.window(x, y, float(np.max(width)), float(np.max(height)))
        inside, q = self.local(window, x, y, width, height)
        inside *= inside
        q *= q
        inside += q
        np.subtract(1, inside, out=inside)
        if soft:
            np.maximum(inside, 0, out=inside)
            inside *= inside
        else:  # a ramp one pixel wide
            inside *= per_frame(self.per_unit * 0.5 * np.sqrt(width * height))
            ramp(inside)
        inside *= per_frame(alpha)
        self.paint(window, inside, colour)


def per_frame(value: Number) -> Array:
    """A value, or one value per frame, ready to be broadcast over (T,rows,columns)."""
    return np.asarray(value, dtype=np.float32).reshape(-1, 1, 1)


def ramp(distance: Array) -> Array:
    """Coverage from the signed distance to the edge in pixels (positive inside), in place."""
    distance += 0.5
    return np.clip(distance, 0, 1, out=distance)


def strip(above: Array, below: Array) -> Array:
    """Coverage between two edges from signed distances in pixels; also correct for strips thinner than a pixel.

    Overwrites both arguments.
    """
    coverage = ramp(above)
    coverage += ramp(below)
    coverage -= 1
    return np.maximum(coverage, 0, out=coverage)


def _plane(along_x: Array, along_y: Array, origin: Array, window: Window) -> Array:
    columns = along_x[:, None] * window.x
    rows = along_y[:, None] * window.y - origin[:, None]
    return (columns[:, None, :] + rows[:, :, None]).astype(np.float32, copy=False)
