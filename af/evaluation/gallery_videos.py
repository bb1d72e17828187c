"""Small previews and curves for the gallery page."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from af.clock import FPS
from af.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from af.evaluation.gallery import Curve
    from af.metrics.records import EvaluationClip, MetricRow

#: The page holds its videos: about 0.1 MB a clip and second of three 192 px sides.
LARGEST_SIDE, MOST_CLIPS = 192, 60
CURVES = ("mouth_open", "jawOpen", "smile", "pitch", "roll")


def make_gallery(
    path: Path,
    title: str,
    clips: Sequence[EvaluationClip],
    values: Mapping[str, Mapping[str, float]],
    videos: Mapping[str, Mapping[str, Path]],
    audio: Mapping[str, np.ndarray | None],
    rows: Sequence[MetricRow] = (),
    on_card: Sequence[str] = (),
    console: Console | None = None,
) -> Path:
    """Write the page for the first `MOST_CLIPS` clips of `videos`; clips without videos keep their curves."""
    from rich.console import Console

    from af.console import progress_bar
    from af.evaluation.gallery import GalleryClip, gallery_html
    from af.files import write_text

    faces = {clip.name: clip for clip in clips}
    known = list(dict.fromkeys([*videos, *faces]))
    names = known[:MOST_CLIPS]
    cards = []
    with progress_bar(console=console or Console(quiet=True)) as progress:
        for name in progress.track(names, description="gallery"):
            sides = {}
            for side, source in videos.get(name, {}).items():
                try:
                    sides[side] = preview(source, audio.get(name) if side == "generated" else None)
                except UserError as error:  # a side no metric had to read
                    if console is not None:
                        console.print(f"not in the gallery: {error}", style="yellow", markup=False, highlight=False)
            curves = face_curves(faces[name]) if name in faces else {}
            posters = {side: first_frame(video) for side, video in sides.items()}
            cards.append(GalleryClip(name, sides, values.get(name, {}), curves, posters))
    shown = f"{len(cards)} clips" + (f" of {len(known)}" if len(known) > len(cards) else "")
    write_text(path, gallery_html(title, f"{shown}: user | generated | true", cards, rows, on_card))
    return path


def preview(source: Path, audio: np.ndarray | None) -> bytes:
    """A small H.264 mp4 (no side above 192 px) of a video file, with sound if given."""
    from af.data.video import iter_video
    from af.data.video_writer import write_video

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "preview.mp4"
        write_video(file, iter_video(source, max_side=LARGEST_SIDE), audio, crf=27)
        return file.read_bytes()


def first_frame(video: bytes) -> bytes:
    """The first frame of an mp4 as JPEG: shown until the browser has decoded the video."""
    import io

    import av

    with av.open(io.BytesIO(video), "r") as container:
        image = next(container.decode(video=0)).to_image()
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def face_curves(clip: EvaluationClip) -> dict[str, Curve]:
    """Mouth, smile and head of the three sides over time (the first parameters where none has such a name)."""
    from af.evaluation.gallery import Curve
    from af.metrics.lipsync import MOUTH_NAMES

    assert clip.face is not None
    known = [n for n in CURVES if n in clip.face.names]
    chosen = known or [clip.face.names[0], clip.face.names[min(clip.face.expression, len(clip.face.names) - 1)]]
    time = np.arange(len(clip.side("true"))) / FPS
    curves = {}
    for name in chosen:
        d = clip.face.names.index(name)
        sides = ["true", "generated", *(() if name in MOUTH_NAMES else ("user",))]
        curves[name] = Curve(time, {side: clip.side(side, d) for side in sides})
    return curves
