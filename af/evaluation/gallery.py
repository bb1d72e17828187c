"""One self-contained HTML page of an evaluation: clips side by side, sortable by any metric, with their curves."""

from __future__ import annotations

import base64
import html
import io
import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from af.clock import FPS
from af.errors import UserError
from af.evaluation.table import HEADER, row_cells
from af.files import write_text
from af.metrics.lipsync import MOUTH_NAMES
from af.metrics.records import EvaluationClip, MetricResult, MetricRow

if TYPE_CHECKING:
    from rich.console import Console

    from af.evaluation.measured import Measured

#: The page contains its videos: about 0.1 MB per clip and second, for three sides of 192 px.
LARGEST_SIDE, MOST_CLIPS = 192, 60
CURVES = ("mouth_open", "jawOpen", "smile", "pitch", "roll")


#: {"user" | "generated" | "true": values of every frame}.
Series = Mapping[str, Float[np.ndarray, " T"]]


@dataclass(frozen=True)
class GalleryClip:
    """A card: mp4 bytes (H.264, yuv420p) and JPEG bytes of the first frame by side, numbers by tag, curves by name."""

    name: str
    videos: Mapping[str, bytes]
    values: Mapping[str, float]
    curves: Mapping[str, Series] = field(default_factory=dict)
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
    """The page with its videos, which opens from disk without a server. `on_card`: tags shown first."""
    data = [
        {
            "name": clip.name,
            "videos": {side: base64.b64encode(video).decode() for side, video in clip.videos.items()},
            "posters": {side: base64.b64encode(image).decode() for side, image in clip.posters.items()},
            "values": {k: float(f"{v:.6g}") if math.isfinite(v) else None for k, v in clip.values.items()},
            "key": [k for k in on_card if k in clip.values],
            "curves": {
                name: {
                    "x": _list(np.arange(len(next(iter(series.values())))) / FPS),
                    "series": {side: _list(values) for side, values in series.items()},
                }
                for name, series in clip.curves.items()
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
    page = resources.files("af.evaluation").joinpath("assets/gallery.html").read_text(encoding="utf-8")
    return Template(page).substitute(
        title=html.escape(title), subtitle=html.escape(subtitle), table=f"<table>{''.join(lines)}</table>", data=text
    )


def make_gallery(
    path: Path, title: str, measured: Sequence[Measured], result: MetricResult, console: Console | None = None
) -> None:
    """Write the page of the first `MOST_CLIPS` clips, those with videos first; others have only curves."""
    from rich.console import Console

    from af.console import progress_bar

    known, cards = sorted(measured, key=lambda m: not m.videos), []
    with progress_bar(console=console or Console(quiet=True)) as progress:
        for m in progress.track(known[:MOST_CLIPS], description="gallery"):
            clip, sides = m.clip, {}
            for side, source in m.videos.items():
                made = side == "generated"
                try:
                    sides[side] = preview(source, clip.avatar_audio if made else None, generated=made)
                except UserError as error:  # a side that no metric needed
                    if console is not None:
                        console.print(
                            f"not in the gallery: {error}",
                            style="yellow",
                            markup=False,
                            highlight=False,
                            soft_wrap=True,
                        )
            posters = {side: first_frame(video) for side, video in sides.items()}
            cards.append(GalleryClip(clip.name, sides, result.per_clip.get(clip.name, {}), face_curves(clip), posters))
    shown = f"{len(cards)} clips" + (f" of {len(known)}" if len(known) > len(cards) else "")
    write_text(path, gallery_html(title, f"{shown}: user | generated | true", cards, result.rows, result.on_card))


def preview(source: Path, audio: Float[np.ndarray, " S"] | None, generated: bool = False) -> bytes:
    """A small H.264 mp4 (no side above 192 px) of a video file, with audio if given; it says if it is `generated`."""
    from af.data.generated import STATEMENT
    from af.data.video import iter_video
    from af.data.video_writer import write_video

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "preview.mp4"
        write_video(
            file, iter_video(source, max_side=LARGEST_SIDE), audio, crf=27, generated=STATEMENT if generated else None
        )
        return file.read_bytes()


def first_frame(video: bytes) -> bytes:
    """The first frame of an mp4 as JPEG, shown until the browser has decoded the video."""
    import av

    with av.open(io.BytesIO(video), "r") as container:
        image = next(container.decode(video=0)).to_image()
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def face_curves(clip: EvaluationClip) -> dict[str, Series]:
    """Mouth, smile and head of the three sides over time (the first parameters if there are none by these names)."""
    if clip.face is None:
        return {}
    names = clip.face.names
    chosen = [n for n in CURVES if n in names] or [names[0], names[min(clip.face.expression, len(names) - 1)]]
    sides = ("true", "generated", "user")
    return {n: {s: clip.side(s, names.index(n)) for s in sides[: 2 if n in MOUTH_NAMES else 3]} for n in chosen}
