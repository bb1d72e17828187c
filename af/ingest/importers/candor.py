"""CANDOR (https://huggingface.co/datasets/betterup/candor-processed), video calls of two people.

<conversation>/processed/ holds <person>.mp4 of each, with their own voice, beside a video of both, and channel_map.json,
whose L and R name the two, as https://github.com/rishabhjain16/lipreading-data-guide describes (Candor/docs). The
licence forbids synthetic media and biometric identifiers of the participants (docs/datasets.md).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from af.data.archives import exists, open_binary, walk
from af.data.tables import Row
from af.ingest.sources import UnusableRow

_MAP: Final = "channel_map.json"


def rows(folder: Path) -> Iterator[Row]:
    """A row for every conversation, with the set's ids. Those that lack a video are rejected for a `missing_file`."""
    for path in walk(folder):
        if path.name == _MAP and path.parent.name == "processed":
            yield str(path.parent.parent), _row(path)


def _row(path: Path) -> dict[str, Any] | UnusableRow:
    try:
        with open_binary(path) as file:
            named = json.loads(file.read())
        people = [str(named[side]) for side in "LR"]
        if people[0] == people[1] or any(set(person) & set("/\0") for person in people):
            raise ValueError(people)
    except (ValueError, KeyError, TypeError, OSError) as error:
        return UnusableRow(f"{path} does not name two people, L and R ({error!r})")
    row: dict[str, Any] = {"session": path.parent.parent.name}
    for role, person in zip("ab", people, strict=True):
        video = path.with_name(f"{person}.mp4")
        if not exists(video):
            return UnusableRow(f"{video} is not there", "missing_file")
        row |= {role: str(video), f"participant_{role}": f"candor-{person}"}
    return row
