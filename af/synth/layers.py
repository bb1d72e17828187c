"""The layers of a synthetic face, each drawn onto the stack; `render` defines their order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from af.synth.appearance import Appearance
from af.synth.canvas import Array, Stack, per_frame, ramp, strip
from af.synth.face import FACE_INDEX

HEAD_UNIT = 0.64  # half a face's height in half image heights, at scale 0
PIVOT = 1.15  # the head turns about a point this far below its middle (the neck)


@dataclass(frozen=True)
class Pose:
    """Face parameters of a few frames by name, and positions on the turned head."""

    values: dict[str, Array]

    @classmethod
    def of(cls, face: Array) -> Pose:
        """The poses of rows of face parameters (`face.FACE_NAMES`)."""
        face = np.asarray(face, np.float32)
        return cls({name: face[:, i] for name, i in FACE_INDEX.items()})

    def place(self, x: float, y: float, z: float) -> tuple[Array, Array, Array]:
        """Head point (x, y, z), z towards the viewer, after yaw and pitch: x, y, and its horizontal foreshortening."""
        yaw, pitch = self.values["yaw"], self.values["pitch"]
        turned_x = x * np.cos(yaw) + z * np.sin(yaw)
        turned_z = z * np.cos(yaw) - x * np.sin(yaw)
        turned_y = y * np.cos(pitch) + turned_z * np.sin(pitch)
        narrow = np.clip(np.cos(yaw + np.arctan2(x, z)) / np.cos(np.arctan2(x, z)), 0.3, 1.15)
        return turned_x, turned_y, narrow

    def stack(self, background: Array) -> Stack:
        """The stack for drawing the layers, in head coordinates."""
        roll, unit = self.values["roll"], HEAD_UNIT * np.exp(self.values["scale"])
        centre_x = 2 * self.values["shift_x"] + unit * PIVOT * np.sin(roll)
        centre_y = 0.03 + 2 * self.values["shift_y"] + unit * PIVOT * (1 - np.cos(roll))
        return Stack(np.repeat(background[:, None], len(roll), axis=1), roll, unit, centre_x, centre_y)


def _rgb(*values: float) -> Array:
    return np.array(values, np.float32)


@dataclass(frozen=True)
class Palette:
    """A person's colours, 0 to 255."""

    skin: Array
    shade: Array  # shadowed skin
    light: Array  # lit skin
    blush: Array
    hair: Array
    hair_dark: Array
    hair_light: Array
    lips: Array
    mouth: Array
    line: Array  # lashes, the line between the lips

    @classmethod
    def of(cls, a: Appearance) -> Palette:
        """The palette derived from skin, hair and lips."""
        skin, hair, lips = np.array(a.skin, np.float32), np.array(a.hair, np.float32), np.array(a.lips, np.float32)
        return cls(
            skin=skin,
            shade=skin * _rgb(0.72, 0.60, 0.56),
            light=np.minimum(skin * _rgb(1.06, 1.05, 1.04) + 8, 255),
            blush=skin * 0.55 + 0.45 * _rgb(226, 96, 92) * (0.45 + 0.55 * skin[0] / 255),
            hair=hair,
            hair_dark=hair * 0.72,
            hair_light=np.minimum(hair * 1.25 + 14, 255),
            lips=lips,
            mouth=_rgb(74, 22, 28),
            line=skin * 0.12 + _rgb(26, 16, 16),
        )


def hair_behind(stack: Stack, pose: Pose, a: Appearance, paint: Palette) -> None:
    """Hair behind head and shoulders."""
    yaw = pose.values["yaw"]
    if a.bun:
        x, y, _ = pose.place(0, -1.12, -0.25)
        stack.ellipse(x, y, a.bun, a.bun * 0.9, paint.hair)
        stack.glow(x - 0.3 * a.bun, y - 0.4 * a.bun, a.bun * 0.6, a.bun * 0.45, paint.hair_light, 0.6)
    # The back of the head appears beside the face when the head turns.
    stack.ellipse(-0.20 * np.sin(yaw), -0.22, a.face_width + 0.02, 0.80 + 0.5 * a.hair_volume, paint.hair_dark)
    if a.hair_length < -0.5:
        return
    # A curtain: round above the ears, straight down to `hair_length` below, swinging against the turn.
    half, top, bottom = a.face_width + 0.035 + 0.8 * a.hair_volume, 0.98 + a.hair_volume, a.hair_length
    x = -0.10 * np.sin(yaw)
    window = stack.window(x, (bottom - top) / 2, half, (bottom + top) / 2)
    p, q = stack.local(window, x, 0.0, half, 1.0)
    p *= p
    upper, lower = np.minimum(q, 0), np.maximum(q, 0, out=q)
    upper *= np.float32(1 / top)
    upper *= upper
    lower *= np.float32(1 / bottom)
    lower *= lower
    lower *= lower
    p += upper
    p += lower
    np.subtract(1, p, out=p)
    p *= per_frame(stack.per_unit * 0.5 * half)
    stack.paint(window, ramp(p), paint.hair_dark)


def body(stack: Stack, pose: Pose, a: Appearance, paint: Palette) -> None:
    """Neck, shoulders and neckline. The body follows most of the head's shift but none of its turns."""
    body_x = 1.4 * pose.values["shift_x"]
    body_y = 1.7 * pose.values["shift_y"] - 0.02
    upright = np.zeros_like(stack.unit)
    body = Stack(stack.frames, upright, upright + HEAD_UNIT, body_x, body_y)
    width = 0.34 * a.face_width / 0.77
    window = body.window(0, 0.95, width + 0.45, 0.72)
    # The neck's axis runs from the jaw (which moves with the head) to the shoulders.
    jaw_x = (stack.centre_x - stack.sin * stack.unit * 0.55 - body_x) / body.unit
    p, q = body.local(window, 0.0, 0.0)
    lean = np.clip((1.25 - q) * np.float32(1.1), 0, 1)
    p -= lean * per_frame(jaw_x)
    np.abs(p, out=p)
    flare = np.maximum(q - np.float32(1.05), 0)
    distance = (np.float32(width) - p + flare * np.float32(0.8)) * per_frame(body.per_unit)
    below = (q - per_frame((stack.centre_y - body_y) / body.unit + 0.35)) * per_frame(body.per_unit)
    coverage = ramp(np.minimum(distance, below))
    shadow = np.clip((np.float32(1.42) - q) * np.float32(2.0), 0, 1) * np.float32(0.75)
    stack.paint(window, coverage, paint.skin[:, None, None, None] + _mix(paint.shade - paint.skin, shadow))
    clothes = np.array(a.clothes, np.float32)
    window = body.window(0, 2.05, 1.5, 0.85)
    p, q = body.local(window, 0.0, 2.15, 1.42, 0.88)
    shoulder = (1 - (p * p * (0.4 + 0.6 * p * p) + q * q)) * per_frame(body.per_unit * 0.5)
    p, q = body.local(window, 0.0, 1.18, width + 0.10, 0.34)
    neckline = (p * p + q * q - 1) * per_frame(body.per_unit * 0.17)
    light = np.clip((np.float32(0.5) - q) * np.float32(0.12), -0.35, 0.1) + 1
    stack.paint(window, ramp(np.minimum(shoulder, neckline)), _mix(clothes, light))


def _mix(colour: Array, amount: Array) -> Array:
    """Colour (3,) times a plane (T,Y,X)."""
    return colour[:, None, None, None] * amount


def ears(stack: Stack, pose: Pose, a: Appearance, paint: Palette, over_head: bool) -> None:
    """Ears: behind the head, or with `over_head` the nearer one over it when the head turns."""
    if a.hair_length > 0.3:
        return  # under the hair
    for side in (-1, 1):
        x, y, _ = pose.place(side * (a.face_width + 0.02), 0.02, 0.0)
        # In front view both are behind the face; the near ear shows on the side of the head when it turns.
        near = np.clip(-side * np.sin(pose.values["yaw"]) * 5 - 0.6, 0, 1)
        if over_head and not near.any():
            continue
        alpha = near if over_head else 1.0
        stack.ellipse(x, y, 0.12 * a.ears, 0.2 * a.ears, paint.skin * 0.93, alpha)
        stack.glow(x + side * 0.01, y, 0.08 * a.ears, 0.15 * a.ears, paint.shade, 0.7 * alpha)


def head(stack: Stack, pose: Pose, a: Appearance, paint: Palette) -> None:
    """The head with its shading and blush."""
    yaw, pitch = np.sin(pose.values["yaw"]), np.sin(pose.values["pitch"])
    chin = 1.0 + a.chin + 0.09 * pose.values["mouth_open"]
    window = stack.window(0.1 * yaw, 0.1 * pitch, a.face_width + 0.16, float(chin.max()) + 0.12)
    p, q = stack.local(window, 0.06 * yaw, 0.08 * pitch)
    lower = np.maximum(q, 0)
    p -= lower * per_frame(0.22 * yaw)  # the chin is in front of the axis
    lower *= lower
    narrowing = np.float32(a.face_width) - np.float32(a.face_width * a.jaw) * lower
    p /= narrowing
    side = p.copy()
    p *= p
    # The skull ends at -1, the chin lower; pitch makes the far end shorter.
    q *= np.where(q > 0, per_frame(1 / (chin - 0.04 * pitch)), np.float32(1.0))
    vertical = q.copy()
    q *= q
    p += q
    distance = (1 - p) * per_frame(stack.per_unit * (0.5 * a.face_width))
    # Shading: darker towards the rim and below, light from the upper left.
    shade = p
    shade *= p
    shade *= np.float32(0.42)
    side -= per_frame(1.1 * yaw)
    shade += side * np.float32(0.13)
    shade += vertical * np.float32(0.07)
    shade += np.float32(0.02)
    colour = paint.skin[:, None, None, None] + _mix(paint.shade - paint.skin, shade)
    if a.beard:
        beard = np.clip((vertical - 0.30 + 0.25 * (1 - side * side)) * np.float32(2.6), 0, 1)
        beard *= np.float32(a.beard)
        colour += (paint.hair[:, None, None, None] * np.float32(0.9) - colour) * beard
    stack.paint(window, ramp(distance), colour)
    smile = np.maximum(pose.values["smile"], 0)
    for s in (-1, 1):
        x, y, narrow = pose.place(s * 0.44, 0.26, 0.66)
        stack.glow(x, y - 0.05 * smile, 0.26 * narrow, 0.2, paint.blush, (0.42 + 0.45 * smile) * narrow)


def nose(stack: Stack, pose: Pose, a: Appearance, paint: Palette) -> None:
    """The nose."""
    tip = a.nose_length
    wide = 0.15 * a.nose_width
    x, y, _ = pose.place(0.05, tip * 0.35, 0.98)
    stack.glow(x, y, 0.11 * a.nose_width, 0.26, paint.shade, 0.38)
    x, y, _ = pose.place(0, tip + 0.06, 1.0)
    stack.glow(x, y, wide * 1.25, 0.085, paint.shade, 1.0)
    for side in (-1, 1):
        x, y, _ = pose.place(side * wide * 0.5, tip + 0.06, 1.0)
        stack.glow(x, y, 0.055, 0.04, paint.line, 0.75)
    x, y, _ = pose.place(-0.015, tip - 0.03, 1.08)
    stack.glow(x, y, 0.11 * a.nose_width, 0.11, paint.light, 0.75)
    x, y, _ = pose.place(-0.02, tip - 0.2, 1.0)
    stack.glow(x, y, 0.05, 0.18, paint.light, 0.5)


def mouth(stack: Stack, pose: Pose, a: Appearance, paint: Palette) -> None:
    """Lips, and the mouth's inside."""
    smile, spread = pose.values["smile"], pose.values["mouth_width"]
    opening = 0.42 * pose.values["mouth_open"] + 0.04 * np.maximum(smile, 0)
    centre_y = 0.555 + 0.6 * a.chin
    x, y, narrow = pose.place(0, centre_y, 0.86)
    half = 1.25 * a.mouth_width * (1 + 0.20 * spread + 0.34 * smile) * narrow
    window = stack.window(x, y + 0.08, float(half.max()) * 1.1, 0.50)
    p, r = stack.local(window, x, y, half, 1.0)
    pixels = per_frame(stack.per_unit)
    squared = p * p
    arch = 1 - squared
    # Corners rise with the smile while the middle sinks a little.
    r -= per_frame(0.07 * smile + 0.01) - squared * per_frame(0.27 * smile + 0.06)
    round_arch = arch * (1 + np.float32(0.7) * squared)
    upper_lip, lower_lip = 0.10 * a.lip_fullness, 0.13 * a.lip_fullness
    upper = r + round_arch * per_frame(0.30 * opening)  # distance below the upper inner edge
    lower = round_arch * per_frame(0.70 * opening) - r  # distance above the lower inner edge
    # Lips are thinner when stretched by a smile.
    thin = per_frame(1 - 0.25 * np.maximum(smile, 0) - 0.10 * spread)
    bow = (arch + np.float32(0.05)) * (np.float32(0.72) + np.float32(1.1) * squared) * thin
    lip_top = upper + bow * np.float32(upper_lip)
    lip_bottom = lower + (arch + np.float32(0.04)) * thin * np.float32(lower_lip)
    shape = strip(lip_top * pixels, lip_bottom * pixels)
    tone = np.clip(r * np.float32(1.6) + np.float32(0.95), 0.80, 1.12)
    stack.paint(window, shape, _mix(paint.lips, tone))
    inside = strip(upper * pixels, lower * pixels)
    if opening.max() > 0.005:
        stack.paint(window, inside, paint.mouth)
        teeth = ramp((np.float32(0.075) - np.abs(upper - np.float32(0.02))) * pixels)
        teeth *= inside
        teeth *= np.clip(arch * np.float32(2.2), 0, 1)
        stack.paint(window, teeth, _rgb(250, 246, 238))
        tongue = ramp((per_frame(0.25 * opening) + np.float32(0.02) - lower - squared * np.float32(0.12)) * pixels)
        tongue *= inside
        tongue *= per_frame(np.clip(opening * 8 - 0.8, 0, 1))
        stack.paint(window, tongue, _rgb(190, 84, 88))
    # The dark line between closed lips; it dissolves into the opening.
    seam = np.clip((np.float32(0.014) - np.abs(upper)) * pixels + np.float32(0.5), 0, 0.85)
    seam *= np.clip(arch * np.float32(6) + np.float32(0.25), 0, 1)
    seam *= per_frame(np.clip(1.0 - 6 * opening, 0.25, 1))
    stack.paint(window, seam, paint.line)


def eye(stack: Stack, pose: Pose, a: Appearance, paint: Palette, side: int) -> None:
    """An eye with its lid; `side` -1 is the left one in the image."""
    v = pose.values
    smile, blink = np.maximum(v["smile"], 0), v["blink"]
    x, y, narrow = pose.place(side * a.eye_spacing, -0.06, 0.80)
    half = 0.185 * a.eye_size * narrow
    stack.glow(x, y - 0.03, 0.30 * narrow, 0.20, paint.shade, 0.40)  # the socket
    window = stack.window(x, y, float(half.max()) * 1.25, 0.22)
    p, r = stack.local(window, x, y, half, 1.0)
    pixels = per_frame(stack.per_unit)
    r += p * np.float32(a.eye_tilt * 0.35 * -side)
    arch = 1 - p * p
    high, low = 0.135 * a.eye_size, 0.095 * a.eye_size
    lid_high = high * (1 + 0.10 * v["brow"] - 0.12 * smile) * (1 + 0.12 * -v["gaze_y"])
    lid_low = low * (1 - 0.42 * smile)
    closing = np.clip(blink, 0, 1) * (lid_high + 0.80 * lid_low)
    under_lid = r + arch * per_frame(lid_high - closing)  # distance below the upper lid
    over_lid = arch * per_frame(lid_low) - r
    # The lid itself, which covers the eye in a blink.
    lid = strip((r + arch * per_frame(lid_high)) * pixels, over_lid * pixels)
    stack.paint(window, lid, paint.skin * 0.62 + paint.shade * 0.38)
    opened = strip(under_lid * pixels, over_lid * pixels)
    white = np.clip(under_lid * np.float32(4.5) + np.float32(0.62), 0, 1)  # the lid's shadow on the ball
    stack.paint(window, opened, _mix(_rgb(250, 249, 248), white))
    radius = 0.112 * a.eye_size
    dx = p * per_frame(half / narrow) - per_frame(0.075 * v["gaze_x"])
    dy = r - per_frame(0.055 * v["gaze_y"] - 0.012)
    distance = dx * dx
    distance += dy * dy
    for part, colour in ((radius, np.array(a.iris, np.float32)), (0.52 * radius, _rgb(18, 14, 16))):
        coverage = ramp((np.float32(part**2) - distance) * (pixels * np.float32(0.5 / part)))
        coverage *= opened
        stack.paint(window, coverage, colour)
    dx += np.float32(0.040)
    dy += np.float32(0.045)
    sparkle = ramp((np.float32(0.032**2) - dx * dx - dy * dy) * (pixels * np.float32(0.5 / 0.032)))
    sparkle *= opened
    stack.paint(window, sparkle, _rgb(255, 255, 255))
    lash = np.clip((np.float32(0.024) - np.abs(under_lid + np.float32(0.008))) * pixels + np.float32(0.5), 0, 0.92)
    lash *= np.clip(arch * np.float32(5) + np.float32(1.0), 0, 1)
    stack.paint(window, lash, paint.line)


def brow(stack: Stack, pose: Pose, a: Appearance, paint: Palette, side: int) -> None:
    """A brow."""
    brow = pose.values["brow"]
    x, y, narrow = pose.place(side * (a.eye_spacing + 0.015), -0.06 - a.brow_height, 0.84)
    y = y - 0.085 * brow
    half = 0.235 * narrow
    window = stack.window(x, y, float(half.max()), 0.16)
    p, r = stack.local(window, x, y, half, 1.0)
    arch = 1 - p * p
    p *= np.float32(side)  # from the nose outwards
    r += arch * per_frame(0.055 + 0.02 * brow) - p * np.float32(0.035)
    thick = np.float32(a.brow_thickness) * (np.float32(0.95) - np.float32(0.35) * p)
    thick *= np.minimum(np.float32(0.35) + arch * np.float32(1.6), 1)
    thick = np.where(arch > 0, thick, arch)
    pixels = per_frame(stack.per_unit)
    coverage = strip((thick - r) * pixels, (thick + r) * pixels)
    coverage *= np.float32(0.9)
    stack.paint(window, coverage, paint.hair_dark * 0.85)


def hair_front(stack: Stack, pose: Pose, a: Appearance, paint: Palette) -> None:
    """Hair over the forehead."""
    yaw, pitch = np.sin(pose.values["yaw"]), np.sin(pose.values["pitch"])
    half, height = a.face_width + 0.05 + 0.8 * a.hair_volume, 1.0 + a.hair_volume
    lowest = min(0.95 * height, a.hair_drop + 0.12)
    middle = (lowest - height) / 2
    window = stack.window(0.0, middle, half + 0.1, (lowest + height) / 2 + 0.1)
    pixels = per_frame(stack.per_unit)
    p, q = stack.local(window, -0.03 * yaw, 0.03 * pitch, half, height)
    vertical = q * np.float32(0.9)
    # Hair on the near side ends in a rounded edge at `hair_drop`.
    ends = (np.float32(a.hair_drop) - q * np.float32(height) - p * p * np.float32(0.10)) * pixels
    p *= p
    q *= q
    p += q
    cap = np.minimum((1 - p) * (pixels * np.float32(0.5 * half)), ends)
    # The hairline is on the front of the head, moves with its turn, and drops towards the temples.
    forehead = 0.55
    p, r = stack.local(window, forehead * yaw, a.hairline + 0.62 * pitch, a.face_width, 1.0)
    line = p * p
    line *= line * np.float32(0.45) + np.float32(0.55)
    line *= np.float32(a.hair_sides)
    line += p * np.float32(a.hair_part)
    line -= r
    slope = np.float32(0.8)
    coverage = ramp(np.minimum(cap, line * (pixels * slope)))
    shine = np.clip(1 - np.abs(vertical + np.float32(0.62)) * np.float32(3.2), 0, 1)
    shine *= np.clip(1 - np.abs(p + np.float32(0.25)) * np.float32(1.2), 0, 1)
    shine *= np.float32(0.75)
    stack.paint(window, coverage, paint.hair[:, None, None, None] + _mix(paint.hair_light - paint.hair, shine))


def glasses(stack: Stack, pose: Pose, a: Appearance) -> None:
    """Glasses."""
    frame = _rgb(38, 34, 40)
    for side in (-1, 1):
        x, y, narrow = pose.place(side * (a.eye_spacing + 0.01), -0.03, 0.86)
        half = 0.29 * narrow
        window = stack.window(x, y, float(half.max()) + 0.05, 0.32)
        p, q = stack.local(window, x, y, half, 0.25)
        p *= p
        q *= q
        p *= p * np.float32(0.5) + np.float32(0.5)
        q *= q * np.float32(0.5) + np.float32(0.5)
        p += q
        p -= 1
        np.abs(p, out=p)
        distance = (np.float32(0.16) - p) * per_frame(stack.per_unit * 0.12)
        stack.paint(window, np.clip(ramp(distance), 0, 0.9), frame)
    x, y, _ = pose.place(0, -0.07, 0.98)
    stack.ellipse(x, y, np.full_like(x, 0.075), np.full_like(x, 0.022), frame, 0.9)
