"""One self-contained HTML page of an evaluation: clips side by side, sortable by any metric, with their curves."""

from __future__ import annotations

import base64
import html
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from string import Template

import numpy as np
from jaxtyping import Float

from af.evaluation.table import HEADER, row_cells
from af.metrics.records import MetricRow


@dataclass(frozen=True)
class Curve:
    """Lines over x: `series` {"user" | "generated" | "true": values}; `time` says that x is the video's time."""

    x: Float[np.ndarray, " L"]
    series: Mapping[str, Float[np.ndarray, " L"]]
    time: bool = True
    unit: str = ""


@dataclass(frozen=True)
class GalleryClip:
    """A card: mp4 bytes (H.264, yuv420p) and JPEG bytes of the first frame by side, numbers by tag, curves by name."""

    name: str
    videos: Mapping[str, bytes]
    values: Mapping[str, float]
    curves: Mapping[str, Curve] = field(default_factory=dict)
    posters: Mapping[str, bytes] = field(default_factory=dict)


def _list(values: np.ndarray) -> list[float | None]:
    return [round(float(v), 4) if math.isfinite(v) else None for v in values]


def gallery_html(
    title: str,
    subtitle: str,
    clips: Sequence[GalleryClip],
    rows: Sequence[MetricRow] = (),
    on_card: Sequence[str] = (),
) -> str:
    """The page, videos and all: opens from disk, asks no server for anything. `on_card`: numbers shown at first."""
    data = [
        {
            "name": clip.name,
            "videos": {side: base64.b64encode(video).decode() for side, video in clip.videos.items()},
            "posters": {side: base64.b64encode(picture).decode() for side, picture in clip.posters.items()},
            "values": {k: float(f"{v:.6g}") if math.isfinite(v) else None for k, v in clip.values.items()},
            "key": [k for k in on_card if k in clip.values],
            "curves": {
                name: {
                    "x": _list(curve.x),
                    "series": {k: _list(v) for k, v in curve.series.items()},
                    "time": curve.time,
                    "unit": curve.unit,
                }
                for name, curve in clip.curves.items()
            },
        }
        for clip in clips
    ]
    cells = [[*HEADER, "protocol"], *([*row_cells(row), row.protocol] for row in rows)]
    lines = [
        "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in line) + "</tr>"
        for line, tag in zip(cells, ["th", *["td"] * len(rows)], strict=True)
    ]
    # "</" inside JSON would end the script element
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    page = resources.files("af.metrics").joinpath("assets/gallery.html").read_text(encoding="utf-8")
    return Template(page).substitute(
        title=html.escape(title), subtitle=html.escape(subtitle), table=f"<table>{''.join(lines)}</table>", data=text
    )
