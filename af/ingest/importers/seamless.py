"""Seamless Interaction (https://github.com/facebookresearch/seamless_interaction, "Dataset Structure").

A file is named V<vendor>_S<session>_I<interaction>_P<participant>, with .mp4 for the video and .wav for the voice; those
of one vendor, session and interaction belong together. Three layouts, or parts of them, are read:
<label>/<split>/<batch>/<archive>/ID.{mp4,wav}, <label>/<split>/<batch>/<archive>.tar with these members, and
<label>/<split>/{video,audio}/ID.{mp4,wav}. The split dev is val.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from af.data.archives import walk
from af.data.tables import Row
from af.ingest.sources import UnusableRow

_NAME: Final = re.compile(r"(V\d+)_(S\d+)_(I\d+)_(P\d+[A-Z]*)")
_SPLITS: Final = {"train": "train", "dev": "val", "test": "test"}


def rows(folder: Path) -> Iterator[Row]:
    """A row for every interaction of two people. Others are rejected as `unpaired`, or for a `missing_file`."""
    found: dict[str, dict[str, dict[str, Path]]] = defaultdict(lambda: defaultdict(dict))
    for path in walk(folder):
        if path.suffix in (".mp4", ".wav") and (name := _NAME.fullmatch(path.stem)):
            vendor, session, interaction, participant = name.groups()
            found[f"{vendor}_{session}_{interaction}"][f"{vendor}_{participant}"][path.suffix] = path
    for session, people in sorted(found.items()):
        yield f"{folder}: {session}", _row(session, people)


def _row(session: str, people: dict[str, dict[str, Path]]) -> dict[str, Any] | UnusableRow:
    if len(people) != 2:
        return UnusableRow(
            f"a conversation has two people, here are {len(people)}: {', '.join(sorted(people))}", "unpaired"
        )
    row: dict[str, Any] = {"session": session}
    for role, (person, files) in zip("ab", sorted(people.items()), strict=True):
        if lacks := [what for what, suffix in (("video", ".mp4"), ("voice", ".wav")) if suffix not in files]:
            return UnusableRow(f"there is no {lacks[0]} of {person}", "missing_file")
        row |= {role: str(files[".mp4"]), f"audio_{role}": str(files[".wav"]), f"participant_{role}": person}
        split = next((_SPLITS[part] for part in reversed(files[".mp4"].parts) if part in _SPLITS), None)
        if row.setdefault("split", split) != split:
            return UnusableRow(f"its people are in two splits, {row['split']} and {split}", "two_splits")
    return row
