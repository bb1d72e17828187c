"""ViCo (https://vico.solutions, "Guidelines", and the README of its challenge's train set).

A .csv lists clips with uuid, speaker_id and, in the listening set, listener_id. The clip's only audio is the speaker's,
audios/<uuid>.wav; videos/<uuid>.speaker.mp4 and videos/<uuid>.listener.mp4 have none. The listener is silent.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from af.data.tables import Row
from af.errors import UserError
from af.ingest.sources import SILENCE, UnusableRow


def rows(folder: Path) -> Iterator[Row]:
    """A row for every listed clip: speaker and listener, or the speaker alone where no listener is listed."""
    seen: set[str] = set()
    for table in sorted(folder.rglob("*.csv")):
        try:
            with open(table, newline="", encoding="utf-8-sig") as file:
                listed = list(csv.DictReader(file))
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"{table}: not a readable table ({error})") from None
        for number, clip in enumerate(listed, 1):
            if clip.get("uuid") and clip.get("speaker_id") and clip["uuid"] not in seen:
                seen.add(clip["uuid"])
                yield f"{table}, entry {number}", _row(table.parent, clip)


def _row(folder: Path, clip: Mapping[str, str]) -> dict[str, Any] | UnusableRow:
    name, listener = clip["uuid"], clip.get("listener_id")
    files = {"speaker": folder / "videos" / f"{name}.speaker.mp4", "voice": folder / "audios" / f"{name}.wav"}
    if listener:
        files["listener"] = folder / "videos" / f"{name}.listener.mp4"
    if missing := [str(path) for path in files.values() if not path.is_file()]:
        return UnusableRow(f"{missing[0]} is not there", "missing_file")
    row = {
        "a" if listener else "single": str(files["speaker"]),
        "audio_a": str(files["voice"]),
        "participant_a": f"vico-{clip['speaker_id']}",
        "session": name,
    }
    if listener:
        row |= {"b": str(files["listener"]), "audio_b": SILENCE, "participant_b": f"vico-{listener}"}
    return row
