"""The page of an ingestion: what was kept and dropped, with images, numbers and reasons. It opens from disk."""

from __future__ import annotations

import base64
import contextlib
import html
import itertools
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
from jaxtyping import UInt8

from af.data.selection import MEASURES
from af.data.video import iter_video
from af.files import atomic_path, write_text
from af.ingest.clips import Cut
from af.ingest.detection import half_of
from af.ingest.measures import SHOWN, SHOWN_PX
from af.ingest.report import IngestReport, Outcome
from af.ingest.sources import Source

PAGE: Final = "ingest_report.html"
_MOST = 120  # conversations of each kind on the page
_OF_EACH = 3  # clips kept and clips dropped of each conversation
_LOOKED: Final = (500, 10)  # of a dropped video: frames to read, and from one image to the next

_STYLE: Final = """
:root { --ink: #1d2733; --soft: #66717e; --line: #dfe4ea; --paper: #f6f7f9; --card: #fff; --good: #2f7d4f; --bad: #b3394a }
@media (prefers-color-scheme: dark) { :root { --ink: #e8ecf1; --soft: #98a4b3; --line: #2e3742; --paper: #14181d;
  --card: #1c2229; --good: #6cc592; --bad: #f08896 } }
body { margin: 0 auto; max-width: 1180px; padding: 20px; background: var(--paper); color: var(--ink);
  font: 14px/1.45 system-ui, sans-serif }
h1 { font-size: 20px; margin: 0 } h2 { font-size: 16px; margin: 28px 0 8px } h3 { font-size: 14px; margin: 0 }
article { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 12px; margin: 10px 0 }
h3, p { overflow-wrap: anywhere } p { margin: 4px 0 } .soft { color: var(--soft) }
.kept { color: var(--good) } .dropped { color: var(--bad) }
.clip { display: flex; gap: 14px; flex-wrap: wrap; align-items: flex-start; border-top: 1px solid var(--line);
  margin-top: 8px; padding-top: 8px }
.clip > div { flex: 1 1 420px; min-width: 0 } img { display: block; border-radius: 4px; max-width: 100% }
table { border-collapse: collapse; font-size: 12px; font-variant-numeric: tabular-nums }
th, td { text-align: right; padding: 1px 8px; border-bottom: 1px solid var(--line); white-space: nowrap; font-weight: 400 }
th { color: var(--soft) } tr > :first-child { text-align: left } td.text { text-align: left; white-space: normal }
.scroll { overflow-x: auto }
"""


def write_strips(folder: Path, cuts: Sequence[Cut]) -> None:
    """Write images of the first clips that are kept, and of the first that are not, into `folder`."""
    kept, dropped = ([c for c in cuts if (c.objection is None) is good] for good in (True, False))
    for cut in (*kept[:_OF_EACH], *dropped[:_OF_EACH]):
        _write_jpeg(folder / f"{cut.key}.jpg", cut.strip)


def write_first_look(folder: Path, source: Source) -> None:
    """Write images from the beginning of a conversation without clips, as far as it can be read, into `folder`."""
    rows = [_row(source.file(role), source.half(role)) for role in source.roles]
    if any(row is not None for row in rows):
        nothing = np.zeros((SHOWN_PX, SHOWN * SHOWN_PX, 3), np.uint8)
        _write_jpeg(folder / "first.jpg", np.concatenate([nothing if row is None else row for row in rows]))


def forget_strips(folder: Path) -> None:
    """Remove the images of an earlier state."""
    shutil.rmtree(folder, ignore_errors=True)


def _write_jpeg(path: Path, image: UInt8[np.ndarray, "Y X 3"]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_bytes(cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 80])[1].tobytes())


def _row(path: str, half: str) -> UInt8[np.ndarray, "Y X 3"] | None:
    """A few images of a video, fitted into squares; None if none can be read."""
    most, every = _LOOKED
    found: list[np.ndarray] = []
    with contextlib.suppress(Exception):  # what fails here failed before, and is reported
        for frame in itertools.islice(iter_video(path, max_side=4 * SHOWN_PX), 0, most, every):
            image = half_of(frame, half)
            height, width = (max(1, round(n * SHOWN_PX / max(image.shape[:2]))) for n in image.shape[:2])
            square = np.zeros((SHOWN_PX, SHOWN_PX, 3), np.uint8)
            top, left = (SHOWN_PX - height) // 2, (SHOWN_PX - width) // 2
            small = cv2.resize(np.ascontiguousarray(image), (width, height), interpolation=cv2.INTER_AREA)
            square[top : top + height, left : left + width] = small
            found.append(square)
    if not found:
        return None
    return np.concatenate([found[n] for n in np.linspace(0, len(found) - 1, SHOWN).round().astype(int)], 1)


def write_page(path: Path, report: IngestReport, strips: Path, title: str, keep: str | None) -> None:
    """Write the page of a `report`; `strips` has a folder of images for each conversation."""
    write_text(path, "\n".join(_page(report, strips, title, keep)))


def _page(report: IngestReport, strips: Path, title: str, keep: str | None) -> Iterator[str]:
    totals = report.to_json()
    name = html.escape(title)
    yield f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{name}</title><style>{_STYLE}</style>'
    yield f"<h1>{name}</h1>"
    dropped = [o for o in report.outcomes if o.reason is not None]
    kept = [o for o in report.outcomes if o.reason is None]
    yield _paragraph(
        f"{totals['conversations']} conversations: {len(kept)} with {totals['clips']} clips, "
        f"{totals['kept_s'] / 60:.1f} minutes, kept; {len(dropped)} dropped."
    )
    if keep is not None:
        yield _paragraph(f"Clips are kept if {keep}")
    for what, counts in (("Dropped", totals["failed"]), ("Seconds left out of the others", totals["dropped_s"])):
        if counts:
            yield _paragraph(f"{what}: " + ", ".join(f"{k} {v:g}" for k, v in sorted(counts.items())))
    for line in report.notes:
        yield _paragraph(line)
    yield "<h2>Measures of the clips</h2>" + _distributions(report.outcomes)
    for kind, heading, outcomes in (("dropped", "Dropped", dropped), ("kept", "Kept", kept)):
        shown = _examples(outcomes, _MOST)
        more = f" ({len(shown)} of {len(outcomes)})" if len(shown) < len(outcomes) else ""
        yield f"<h2>{heading}{more}</h2>"
        for outcome in shown:
            yield _article(outcome, kind, strips)
    yield "</html>"


def _paragraph(text: str, kind: str = "") -> str:
    return f'<p class="{kind}">{html.escape(text)}</p>'


def _examples(outcomes: Sequence[Outcome], most: int) -> list[Outcome]:
    """At most so many, of every reason, evenly spread."""
    by_reason: dict[str | None, list[Outcome]] = {}
    for outcome in outcomes:
        by_reason.setdefault(outcome.reason, []).append(outcome)
    each = max(1, most // max(1, len(by_reason)))
    return [
        group[n]
        for group in by_reason.values()
        for n in np.unique(np.linspace(0, len(group) - 1, each).round().astype(int))
    ]


def _distributions(outcomes: Sequence[Outcome]) -> str:
    """A table of all measures: 5th, 50th and 95th percentile over people in kept and in dropped clips."""
    cuts = [cut for outcome in outcomes for cut in outcome.cuts]
    rows = [
        "<tr><th></th><th>kept: 5 %</th><th>50 %</th><th>95 %</th><th>dropped: 5 %</th><th>50 %</th><th>95 %</th></tr>"
    ]
    for name, text in MEASURES.items():
        cells = []
        for good in (True, False):
            values = [
                one.get(name) for cut in cuts if (cut["dropped"] is None) is good for one in cut["quality"].values()
            ]
            known = [value for value in values if value is not None]
            cells += [f"{v:.4g}" for v in np.percentile(known, [5, 50, 95])] if known else ["-"] * 3
        row = "".join(f"<td>{cell}</td>" for cell in cells)
        rows.append(f'<tr><td>{name}</td>{row}<td class="text soft">{html.escape(text)}</td></tr>')
    return f'<div class="scroll"><table>{"".join(rows)}</table></div>'


def _article(outcome: Outcome, kind: str, strips: Path) -> str:
    parts = [f"<h3>{html.escape(_short(outcome.name))}</h3>"]
    if outcome.reason is not None:
        parts.append(_paragraph(f"dropped ({outcome.reason}): {_short(outcome.line)}", "dropped"))
    else:
        left = "".join(f", {seconds:.1f} s left out ({why})" for why, seconds in outcome.dropped_s.items())
        clips = f"{outcome.clips} clip{'s' * (outcome.clips != 1)}"
        parts.append(_paragraph(f"kept: {clips}, {outcome.kept_s:.1f} s in {outcome.split}{left}", "kept"))
    parts += [_paragraph(f"{n['kind']}: {_short(n['text'])}") for n in outcome.notes]
    parts += [_paragraph(f"{role}: {_read(media)}", "soft") for role, media in outcome.media.items()]
    folder = strips / str(outcome.id)
    if not outcome.cuts and (image := _image(folder / "first.jpg")):
        parts.append(f'<div class="clip">{image}</div>')
    shown = [(cut, image) for cut in outcome.cuts if (image := _image(folder / f"{cut['key']}.jpg"))]
    for cut, image in shown:
        start, stop = cut["seconds"]
        said = f"{start:.1f} to {stop:.1f} s: {cut['dropped'] or 'kept'}"
        text = _paragraph(said, "kept" if cut["dropped"] is None else "dropped")
        parts.append(f'<div class="clip">{image}<div>{text}{_numbers(cut["quality"])}</div></div>')
    if len(shown) < len(outcome.cuts):
        parts.append(_paragraph(f"and {len(outcome.cuts) - len(shown)} more clips", "soft"))
    return f'<article class="{kind}-card">{"".join(parts)}</article>'


def _short(text: str) -> str:
    """The text without the folders of its paths."""
    return " ".join(word.rsplit("/", 1)[-1] if word.startswith("/") else word for word in text.split(" "))


def _read(media: Mapping[str, Any]) -> str:
    video, sound = media.get("video", {}), media.get("audio", {})
    size = "{width}x{height} {codec}, {fps:g} images/s, {range} range".format(**video) if video else "no video"
    heard = (
        "track {track}; channels: {channels}; {rate} Hz".format(**sound, rate=", ".join(map(str, sound["rate_hz"])))
        if sound
        else "none"
    )
    return f"{size}; audio {heard}"


def _numbers(quality: Mapping[str, Mapping[str, float | None]]) -> str:
    head = "".join(f"<th>{role}</th>" for role in quality)
    rows = "".join(
        f"<tr><td>{name}</td>"
        + "".join(f"<td>{'unknown' if (v := one.get(name)) is None else f'{v:g}'}</td>" for one in quality.values())
        + "</tr>"
        for name in MEASURES
    )
    return f'<div class="scroll"><table><tr><th></th>{head}</tr>{rows}</table></div>'


def _image(path: Path) -> str | None:
    if not path.is_file():
        return None
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="frames" src="data:image/jpeg;base64,{data}">'
