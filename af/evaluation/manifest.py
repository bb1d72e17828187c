"""Lists of clips for `af compare` and `af study`: CSV or JSON, one row per clip, paths relative to the file."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from af.data.tables import read_rows
from af.errors import UserError
from af.files import write_text

ARRAYS = (".npy", ".npz", ".csv")


@dataclass(frozen=True)
class ManifestClip:
    """One row. Paths are absolute; a path with a suffix of `ARRAYS` holds face parameters (T, P), others are videos.

    `clip` is a unique name, `user`/`true`/`generated` the three sides. Optional: `audio` (the avatar's; default: the
    audio of the true video), `user_audio` (default: the audio of the user video), `*_face` parameter arrays besides the
    videos, `source` portrait, `identity`, `session`, `phrase_ends` (frames, separated by spaces).
    """

    clip: str
    user: Path
    true: Path
    generated: Path
    audio: Path | None = None
    user_audio: Path | None = None
    user_face: Path | None = None
    true_face: Path | None = None
    generated_face: Path | None = None
    source: Path | None = None
    identity: str = ""
    session: str = ""
    phrase_ends: tuple[int, ...] | None = None

    def face_file(self, side: str) -> Path | None:
        """The parameter array of a side, if listed."""
        path: Path = getattr(self, side)
        own: Path | None = getattr(self, f"{side}_face")
        return own or (path if path.suffix.lower() in ARRAYS else None)

    def video_file(self, side: str) -> Path | None:
        """The video of a side, if listed."""
        path: Path = getattr(self, side)
        return None if path.suffix.lower() in ARRAYS else path


REQUIRED = ("clip", "user", "true", "generated")
OPTIONAL = tuple(f.name for f in fields(ManifestClip) if f.name not in REQUIRED)
PATHS = ("user", "true", "generated", "audio", "user_audio", "user_face", "true_face", "generated_face", "source")


def read_manifest(path: Path) -> list[ManifestClip]:
    """Rows of a CSV (with a header) or JSON (a list of objects, or {"clips": [...]}) manifest.

    Raises UserError naming file, row and column. Missing files are errors of their clips, not of the list.
    """
    columns = REQUIRED + OPTIONAL
    clips: list[ManifestClip] = []
    for where, row in read_rows(path, columns, inside="clips"):
        if isinstance(row, UserError):
            raise UserError(f"{where}: {row}")
        clips.append(_clip(path, where, row))
        if clips[-1].clip in {c.clip for c in clips[:-1]}:
            raise UserError(f"{where}: the name {clips[-1].clip!r} appears twice; names must differ")
    return clips


def write_manifest(path: Path, clips: Sequence[ManifestClip]) -> None:
    """Write clips as a CSV for `read_manifest`, with relative paths where possible."""
    names = [n for n in (*REQUIRED, *OPTIONAL) if any(getattr(clip, n) not in (None, "") for clip in clips)]
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(names)
    for clip in clips:
        writer.writerow([_cell(getattr(clip, name), path.parent) for name in names])
    write_text(path, table.getvalue())


def _cell(value: Path | tuple[int, ...] | str | None, folder: Path) -> str:
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    if isinstance(value, Path):
        return str(value.relative_to(folder) if value.is_relative_to(folder) else value.absolute())
    return value or ""


def _clip(path: Path, where: str, row: Mapping[str, Any]) -> ManifestClip:
    missing = [k for k in REQUIRED if not str(row.get(k) or "").strip()]
    if missing:
        raise UserError(f"{where}: column {', '.join(missing)} is missing or empty")
    values: dict = {k: str(v).strip() for k, v in row.items() if v not in (None, "", []) and k != "phrase_ends"}
    for key in PATHS:
        if key in values:
            values[key] = Path(os.path.realpath(path.parent / values[key]))  # also raised for a loop of links
    ends = row.get("phrase_ends")
    if ends not in (None, ""):
        try:
            values["phrase_ends"] = tuple(int(e) for e in (ends.split() if isinstance(ends, str) else ends))
        except (TypeError, ValueError) as error:
            raise UserError(f"{where}: phrase_ends must be frame numbers, got {ends!r}") from error
    values.setdefault("identity", values["clip"])
    values.setdefault("session", values["clip"])
    return ManifestClip(**values)
