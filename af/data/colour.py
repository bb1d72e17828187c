"""Conversion of HDR and wide-gamut images to BT.709 by lookup tables, applied by FFmpeg.

Brightness up to a knee is kept (BT.2408: diffuse white at 203 cd/m², 75 % of an HLG signal); highlights above it are
compressed to stay below white instead of clipping.
"""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
from av import VideoFormat
from av.filter import Graph
from jaxtyping import Float64, UInt8

_PQ, _HLG = 16, 18  # transfer characteristics (ITU-T H.273)
#: In cd/m²: white of a graphic in an HDR image, and the peak of an HLG image.
_WHITE, _HLG_PEAK = 203.0, 1000.0
_KNEE: Final = 0.6
_DISPLAY_GAMMA: Final = 2.4  # BT.1886
_STEPS: Final = 33
#: Primaries (H.273) far from BT.709's: BT.2020, DCI-P3, Display P3; chromaticities of red, green, blue and white.
_PRIMARIES: Final = {
    1: ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060), (0.3127, 0.3290)),
    9: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046), (0.3127, 0.3290)),
    11: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), (0.3140, 0.3510)),
    12: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), (0.3127, 0.3290)),
}


def is_standard(primaries: int, transfer: int) -> bool:
    """Whether an image's colours need no conversion; undeclared colours need none."""
    return primaries not in _PRIMARIES.keys() - {1} and transfer not in (_PQ, _HLG)


def name(primaries: int, transfer: int) -> str:
    """The common name of such colours."""
    light = {_PQ: "PQ", _HLG: "HLG"}.get(transfer, "")
    gamut = {9: "BT.2020", 11: "DCI-P3", 12: "Display P3"}.get(primaries, "")
    return " ".join(filter(None, (gamut, light)))


def to_bt709(rgb: Float64[np.ndarray, "... 3"], primaries: int, transfer: int) -> Float64[np.ndarray, "... 3"]:
    """Convert code values in [0, 1] of the given primaries and transfer to BT.709 for a display of gamma 2.4."""
    light = _light(rgb, transfer)
    if primaries in _PRIMARIES:
        to_709 = np.linalg.inv(_to_xyz(1)) @ _to_xyz(primaries)
        light = np.maximum(light @ (to_709 / to_709.sum(1, keepdims=True)).T, 0)  # keeps white white
    top = light.max(-1, keepdims=True)
    if transfer in (_PQ, _HLG):
        bent = _KNEE + (1 - _KNEE) * -np.expm1(-(top - _KNEE) / (1 - _KNEE))
        light = light * np.where(top > _KNEE, bent / np.maximum(top, _KNEE), 1)
    return np.minimum(light, 1) ** (1 / _DISPLAY_GAMMA)


def _light(rgb: Float64[np.ndarray, "... 3"], transfer: int) -> Float64[np.ndarray, "... 3"]:
    """Linear light on a display, diffuse white = 1."""
    if transfer == _PQ:  # SMPTE ST 2084
        power = rgb ** (32 / 2523)
        return (np.maximum(power - 107 / 128, 0) / (2413 / 128 - 2392 / 128 * power)) ** (16384 / 2610) * 10000 / _WHITE
    if transfer == _HLG:  # BT.2100: scene light, then the display's own gamma on the brightness
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        scene = np.where(rgb <= 0.5, rgb**2 / 3, (np.exp((rgb - c) / a) + b) / 12)
        brightness = scene @ np.array([0.2627, 0.6780, 0.0593])
        return scene * np.maximum(brightness, 1e-9)[..., None] ** 0.2 * _HLG_PEAK / _WHITE
    return rgb**_DISPLAY_GAMMA


def _to_xyz(primaries: int) -> Float64[np.ndarray, "3 3"]:
    *colours, white = (np.array([x, y, 1 - x - y]) / y for x, y in _PRIMARIES[primaries])
    matrix = np.stack(colours, 1)
    return matrix * np.linalg.solve(matrix, white)


@cache
def _cube(primaries: int, transfer: int) -> str:
    """The table as text of a .cube file; red changes fastest."""
    steps = np.linspace(0, 1, _STEPS)
    blue, green, red = np.meshgrid(steps, steps, steps, indexing="ij")
    rows = to_bt709(np.stack([red, green, blue], -1).reshape(-1, 3), primaries, transfer)
    return f"LUT_3D_SIZE {_STEPS}\n" + "\n".join(f"{r:.6f} {g:.6f} {b:.6f}" for r, g, b in rows)


class ToBt709:
    """Converts images (`rgb48le` frames of one size) with one kind of colour to BT.709 RGB arrays."""

    def __init__(self, width: int, height: int, time_base: Any, primaries: int, transfer: int) -> None:
        self._graph = Graph()
        source = self._graph.add_buffer(width=width, height=height, format=VideoFormat("rgb48le"), time_base=time_base)
        with tempfile.TemporaryDirectory() as folder:  # the filter reads its table on creation
            file = Path(folder) / "table.cube"
            file.write_text(_cube(primaries, transfer))
            table = self._graph.add("lut3d", file=str(file))
            self._graph.link_nodes(source, table, self._graph.add("buffersink")).configure()

    def __call__(self, image: Any) -> UInt8[np.ndarray, "Y X 3"]:
        """Convert one image."""
        self._graph.push(image)
        wide: np.ndarray = self._graph.pull().to_ndarray()
        return ((wide.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
