"""ResponseNet (https://huggingface.co/datasets/awakening-ai/ReactNet, "Files and versions").

<split>/{video,audio}/{speaker,listener}/ hold a video and a voice of each person; files of one conversation have one name
in all four folders, as its authors' own scripts assume (https://github.com/awakening-ai/OmniResponse, evaluation/audio).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from af.data.archives import walk
from af.data.schema import SPLITS
from af.data.tables import Row
from af.ingest.sources import UnusableRow

_SUFFIXES: Final = {"video": ".mp4", "audio": ".wav"}
_PEOPLE: Final = ("speaker", "listener")


def rows(folder: Path) -> Iterator[Row]:
    """A row for every conversation, the speaker first. Others are rejected as `unpaired`, or for a `missing_file`."""
    found: dict[tuple[str, str], dict[tuple[str, str], Path]] = defaultdict(dict)
    for path in walk(folder):
        for at in range(1, len(path.parts) - 2):
            split, kind, person = path.parts[at - 1 : at + 2]
            if split in SPLITS and person in _PEOPLE and _SUFFIXES.get(kind) == path.suffix:
                name = "/".join((*path.parts[at + 2 : -1], path.stem))
                found[split, name][kind, person] = path
    for (split, name), files in sorted(found.items()):
        yield f"{folder}: {split}, {name}", _row(split, name, files)


def _row(split: str, name: str, files: dict[tuple[str, str], Path]) -> dict[str, Any] | UnusableRow:
    row: dict[str, Any] = {"session": name, "split": split}
    for role, person in zip("ab", _PEOPLE, strict=True):
        if not any((kind, person) in files for kind in _SUFFIXES):
            return UnusableRow(f"nothing of its {person} has this name", "unpaired")
        if lacks := next((kind for kind in _SUFFIXES if (kind, person) not in files), None):
            return UnusableRow(f"there is no {lacks} of its {person}", "missing_file")
        row |= {role: str(files["video", person]), f"audio_{role}": str(files["audio", person])}
    return row
