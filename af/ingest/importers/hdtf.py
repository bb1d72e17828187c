"""HDTF (https://github.com/MRzzm/HDTF, README): people who speak to a camera, one in each video.

The set is lists: <part>_annotion_time.txt has a line for each video, its name and the times of its clips; whoever uses it
fetches the videos and cuts <video name>_<clip index>.mp4 from them. Such clips are read at any depth, with or without a
part's name before theirs (RD_, WDA_, WRA_) and with any zeros before the index; whole videos, too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from af.data.archives import walk
from af.data.tables import Row
from af.ingest.sources import UnusableRow

_CLIP: Final = re.compile(r"(?:(?:RD|WDA|WRA)_)?(?P<video>.+?)(?:_0*(?P<clip>\d+))?")
_LIST: Final = "_annotion_time.txt"


def rows(folder: Path) -> Iterator[Row]:
    """A row for every clip, and one that is rejected for every list of clips of which some are missing."""
    found = list(walk(folder))
    there: set[tuple[str, int]] = set()
    whole: set[str] = set()
    for path in found:
        if path.suffix.lower() != ".mp4" or (name := _CLIP.fullmatch(path.stem)) is None:
            continue
        video, clip = name["video"], name["clip"]
        whole |= {video} if clip is None else set()
        there |= set() if clip is None else {(video, int(clip))}
        yield str(path), {"single": str(path), "participant_a": _person(video), "session": path.stem}
    for path in found:
        if path.name.endswith(_LIST):
            lines = [line.split() for line in path.read_text("utf-8", "replace").splitlines() if line.strip()]
            named = {(Path(video).stem, n) for video, *times in lines for n in range(len(times))}
            if missing := sorted(clip for clip in named - there if clip[0] not in whole):
                some = ", ".join(f"{video}_{n}.mp4" for video, n in missing[:3])
                text = f"{len(missing)} of its {len(named)} clips are not there, such as {some}"
                yield str(path), UnusableRow(text, "missing_file")


def _person(video: str) -> str:
    """The person of a video: AmyKlobuchar0 and AmyKlobuchar1 are one; the numbers of the part RD tell people apart."""
    return f"hdtf-{video if video.startswith('Radio') else video.rstrip('0123456789')}"
