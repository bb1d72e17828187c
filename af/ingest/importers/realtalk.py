"""RealTalk (https://huggingface.co/datasets/scottgeng00/realtalk, "File Overview").

videos/videos_<number>.tar (or the files in it) hold <video id>.avi, 25 fps, with person p0 on the left and p1 on the
right. The audio is one mix of both voices. Separate it with a tool of your choice and put the voices beside the folder's
other files as voices/<video id>.p0.wav and .p1.wav; without them the mix is used for both, and noted as such.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from af.data.archives import walk
from af.data.tables import Row
from af.ingest.sources import UnusableRow

_VIDEO: Final = re.compile(r"[\w-]{11}")


def rows(folder: Path) -> Iterator[Row]:
    """A row for every video, with people called <video id>-p0 and -p1, since the set does not name them."""
    found = list(walk(folder))
    voices = {path.name: path for path in found if path.suffix == ".wav"}
    for path in found:
        if path.suffix != ".avi" or not _VIDEO.fullmatch(path.stem):
            continue
        row: dict[str, Any] = {"video": str(path), "session": path.stem}
        for role, person in zip("ab", ("p0", "p1"), strict=True):
            row[f"participant_{role}"] = f"{path.stem}-{person}"
            row[f"audio_{role}"] = voices.get(f"{path.stem}.{person}.wav")
        have = [row[f"audio_{role}"] is not None for role in "ab"]
        if any(have) and not all(have):
            yield str(path), UnusableRow(f"only one of {path.stem}.p0.wav and .p1.wav is there", "missing_file")
        else:
            yield str(path), {name: None if value is None else str(value) for name, value in row.items()}
