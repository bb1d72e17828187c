"""What to ingest: pairs of videos and side-by-side videos, from flags or from a manifest file."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

from af.data.schema import SPLITS
from af.errors import UserError

SILENCE: Final = "silence"
#: Columns of a manifest, in the words of its documentation.
COLUMNS: Final[Mapping[str, str]] = {
    "a": "video of the first person (the user)",
    "b": "video of the second person (the avatar)",
    "video": "instead of a and b: one video with the first person in its left half, the second in its right half",
    "audio_a": f"sound of the first person: a file, '{SILENCE}', or empty for the video's own sound",
    "audio_b": "the same for the second person",
    "participant_a": "id of the first person, the same wherever the person occurs",
    "participant_b": "id of the second person",
    "session": "id of the conversation",
    "split": "train, val or test",
}


@dataclass(frozen=True)
class Source:
    """One conversation to ingest. Paths are absolute; `video` is a side-by-side video and excludes `a` and `b`.

    `stereo`: the left channel of a side-by-side video is the left person's voice, the right one the right person's.
    """

    a: str | None = None
    b: str | None = None
    video: str | None = None
    audio_a: str | None = None
    audio_b: str | None = None
    participant_a: str | None = None
    participant_b: str | None = None
    session: str | None = None
    split: str | None = None
    stereo: bool = False

    def __post_init__(self) -> None:
        if bool(self.video) == bool(self.a or self.b) or bool(self.a) != bool(self.b):
            raise UserError("a conversation is either two videos (a and b) or one side-by-side video (video)")
        if self.split is not None and self.split not in SPLITS:
            raise UserError(f"split {self.split!r}: allowed are {', '.join(SPLITS)}")
        if self.participant_a is not None and self.participant_a == self.participant_b:
            raise UserError(f"participant_a and participant_b are both {self.participant_a!r}")

    @property
    def files(self) -> tuple[str, ...]:
        """Every file that is read."""
        paths = (self.a, self.b, self.video, self.audio_a, self.audio_b)
        return tuple(dict.fromkeys(p for p in paths if p and p != SILENCE))

    @property
    def name(self) -> str:
        """How reports call it."""
        return self.video or f"{self.a} + {self.b}"

    @property
    def id(self) -> str:
        """Twelve hexadecimal digits from its paths: the same conversation has the same id in every run."""
        text = "\n".join(str(p) for p in (self.a, self.b, self.video, self.audio_a, self.audio_b, self.stereo))
        return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:12]

    @property
    def participants(self) -> tuple[str, str]:
        """Ids of the two people; a person without an id is taken for a different one in every file."""
        own = [
            hashlib.sha256(f"{role}{path or self.video}".encode("utf-8", "surrogateescape")).hexdigest()[:8]
            for role, path in (
                ("", self.a) if self.a else ("left ", None),
                ("", self.b) if self.b else ("right ", None),
            )
        ]
        stems = [Path(p or self.video or "").stem for p in (self.a, self.b)]
        return (
            self.participant_a or f"{stems[0]}-{own[0]}",
            self.participant_b or f"{stems[1]}-{own[1]}",
        )

    def fingerprint(self) -> dict[str, list[int] | None]:
        """Size and modification time of every file (None: missing), to notice that one was replaced."""
        out: dict[str, list[int] | None] = {}
        for path in self.files:
            try:
                stat = Path(path).stat()
                out[path] = [stat.st_size, stat.st_mtime_ns]
            except OSError:
                out[path] = None
        return out


def _resolved(value: str | None, base: Path) -> str | None:
    if not value or value == SILENCE:
        return value or None
    return str((base / Path(value).expanduser()).absolute())


def from_flags(
    pairs: Sequence[Sequence[str]],
    side_by_side: Sequence[str],
    audio: Sequence[Sequence[str]],
    participants: Sequence[Sequence[str]],
    *,
    stereo: bool = False,
) -> list[Source]:
    """Sources from command line flags; `audio` and `participants` belong to the pairs, then the side-by-side videos,
    in order. ``-`` as a sound file means the video's own. Raises `UserError` when their numbers do not match.
    """
    videos = [{"a": a, "b": b} for a, b in pairs] + [{"video": v} for v in side_by_side]
    for name, given in (("--audio", audio), ("--participants", participants)):
        if given and len(given) != len(videos):
            raise UserError(
                f"{name} is given {len(given)} times for {len(videos)} conversations: give it once for each, in order"
            )
    base = Path.cwd()
    sources = []
    for n, paths in enumerate(videos):
        sounds = [None if s == "-" else s for s in audio[n]] if audio else [None, None]
        people = participants[n] if participants else (None, None)
        sources.append(
            Source(
                **{k: _resolved(p, base) for k, p in paths.items()},
                audio_a=_resolved(sounds[0], base),
                audio_b=_resolved(sounds[1], base),
                participant_a=people[0],
                participant_b=people[1],
                stereo=stereo and "video" in paths,
            )
        )
    return sources


def from_manifest(path: Path | str, *, stereo: bool = False) -> list[Source]:
    """Sources from a CSV file with a header, a JSON list of objects, or JSON lines; columns as in `COLUMNS`.

    Relative paths count from the manifest's folder. Raises `UserError` naming the row and column that is wrong.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such manifest file")
    rows = _rows(path)
    if not rows:
        raise UserError(f"{path}: the manifest lists nothing")
    known = {f.name for f in fields(Source)} - {"stereo"}
    sources: list[Source] = []
    for number, row in enumerate(rows, 1):
        where = f"{path}, entry {number}"
        if not isinstance(row, Mapping):
            raise UserError(f"{where}: expected an object with the columns {', '.join(COLUMNS)}")
        if unknown := [str(k) for k in row if k not in known]:
            raise UserError(f"{where}: unknown column {', '.join(unknown)}; allowed: {', '.join(COLUMNS)}")
        values: dict[str, Any] = {}
        for name, value in row.items():
            if value is not None and not isinstance(value, str):
                raise UserError(f"{where}: {name} must be text, got {value!r}")
            is_path = name in ("a", "b", "video", "audio_a", "audio_b")
            values[name] = _resolved(value, path.parent) if is_path else (value or None)
        try:
            sources.append(Source(**values, stereo=stereo and bool(values.get("video"))))
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
    return sources


def _rows(path: Path) -> list[Any]:
    try:
        text = path.read_text("utf-8-sig")
        suffix = path.suffix.lower()
        if suffix == ".csv":
            table = csv.DictReader(text.splitlines(keepends=True), restkey="(more values than columns)", strict=True)
            return list(table)
        if suffix == ".jsonl":
            return [json.loads(line) for line in text.splitlines() if line.strip()]
        if suffix == ".json":
            rows = json.loads(text)
            if not isinstance(rows, list):
                raise UserError(f"{path}: expected a list of objects")
            return rows
    except (ValueError, csv.Error) as error:
        raise UserError(f"{path}: not a readable manifest ({error})") from None
    raise UserError(f"{path}: a manifest ends in .csv, .json or .jsonl")
