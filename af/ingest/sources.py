"""Sources of an ingestion: pairs of videos, side-by-side videos and videos of one person, from flags or a manifest."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from af.data.archives import exists, open_binary, stamp, walk
from af.data.schema import ROLES, SPLITS, person_key
from af.data.tables import Row, read_rows, shown, unreadable_text
from af.errors import UserError
from af.ingest.options import FACES, LONGEST_OFFSET_S

SILENCE: Final = "silence"
#: Columns of a manifest, with their documentation.
COLUMNS: Final[Mapping[str, str]] = {
    "a": "video of the first person (the user)",
    "b": "video of the second person (the avatar)",
    "video": "instead of a and b: one video with the first person in its left half, the second in its right half",
    "single": "instead of a and b: a video of one person alone, described by the columns of the first person",
    "audio_a": f"audio of the first person: a file, '{SILENCE}', or empty for the video's own audio",
    "audio_b": "the same for the second person",
    "participant_a": "id of the first person, the same in all their conversations",
    "participant_b": "id of the second person",
    "session": "id of the conversation",
    "split": "train, val or test",
    "offset": "seconds by which b's recording begins after a's",
    "face_a": "which face is the first person: talking, largest, left or right",
    "face_b": "the same for the second person",
}
_PATHS: Final = ("a", "b", "video", "single", "audio_a", "audio_b")
_SECOND: Final = ("audio_b", "participant_b", "face_b", "offset")
#: Endings of videos looked for in a folder of single-person videos.
VIDEOS: Final = frozenset({".mp4", ".mov", ".mkv", ".avi", ".webm", ".m4v", ".mpg", ".mpeg", ".mts", ".wmv", ".flv"})


class UnusableRow(UserError):
    """A single conversation of a list is wrong; `reason` is a short word for counting."""

    def __init__(self, text: str, reason: str = "bad_row") -> None:
        super().__init__(text)
        self.reason = reason


@dataclass(frozen=True)
class Rejected:
    """A conversation that cannot be started: its name in reports, a short reason for counting, and a line."""

    name: str
    reason: str
    line: str


@dataclass(frozen=True)
class Source:
    """One conversation, or one person alone, to ingest. Paths are absolute. Instead of `a` and `b`, `video` is a
    side-by-side video, and `single` shows one person, who is then "a" and has no partner.

    `stereo`: the left channel of a side-by-side video is the left person's voice, the right one the right person's.
    Names are stripped and their accents normalised. Raises `UserError` for impossible combinations.
    """

    a: str | None = None
    b: str | None = None
    video: str | None = None
    single: str | None = None
    audio_a: str | None = None
    audio_b: str | None = None
    participant_a: str | None = None
    participant_b: str | None = None
    session: str | None = None
    split: str | None = None
    offset: float | None = None
    face_a: str | None = None
    face_b: str | None = None
    stereo: bool = False

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, str) and (fault := unreadable_text(value)):
                raise UserError(f"{name} {shown(value)} {fault}")
        for name in ("participant_a", "participant_b", "session"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, " ".join(unicodedata.normalize("NFC", value).split()) or None)
        if [bool(self.a or self.b), bool(self.video), bool(self.single)].count(True) != 1 or bool(self.a) != bool(
            self.b
        ):
            raise UserError(
                "a conversation is either two videos (a and b) or one side-by-side video (video); one person alone is single"
            )
        if self.single and (second := next((name for name in _SECOND if getattr(self, name)), None)):
            raise UserError(f"{second} is for two people, and single is a video of one")
        if self.a and self.b and same_file(self.a, self.b):
            raise UnusableRow(f"a and b are one file ({shown(self.a)}): a conversation has two people", "same_person")
        if self.split is not None and self.split not in SPLITS:
            raise UserError(f"split {self.split!r}: allowed are {', '.join(SPLITS)}")
        for name in ("face_a", "face_b"):
            if getattr(self, name) not in (None, *FACES):
                raise UserError(f"{name} {getattr(self, name)!r}: allowed are {', '.join(FACES)}")
        if self.offset is not None and not abs(self.offset) <= LONGEST_OFFSET_S:
            raise UserError(f"offset {self.offset:g}: expected seconds from {-LONGEST_OFFSET_S} to {LONGEST_OFFSET_S}")
        if self.offset and self.video:
            raise UserError("offset is for two videos: one side-by-side video has one clock")
        one, other = self.participant_a, self.participant_b
        if one and other and person_key(one) == person_key(other):
            both = f"both {one!r}" if one == other else f"one person ({one!r}, {other!r})"
            raise UnusableRow(f"participant_a and participant_b are {both}", "same_person")

    def file(self, role: str) -> str:
        """The video that shows the person called `role` ("a" or "b")."""
        return str(getattr(self, role) or self.video or self.single)

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles of the people in it: both, or only a."""
        return ROLES[:1] if self.single else ROLES

    def half(self, role: str) -> str:
        """The half of the video ("left" or "right") that shows the person, or "" for the whole."""
        return "" if self.video is None else dict(zip(ROLES, ("left", "right"), strict=True))[role]

    @property
    def files(self) -> tuple[str, ...]:
        """All files of the conversation."""
        paths = (getattr(self, name) for name in _PATHS)
        return tuple(dict.fromkeys(p for p in paths if p and p != SILENCE))

    @property
    def name(self) -> str:
        """Its name in reports."""
        return shown(self.video or self.single or f"{self.a} + {self.b}")

    @property
    def id(self) -> str:
        """Twelve hexadecimal digits from its files, the same in every run and for every spelling of their paths."""
        paths = (getattr(self, name) for name in _PATHS)
        named = [str(p and _real(p)) for name, p in zip(_PATHS, paths, strict=True) if name != "single" or p]
        text = "\n".join([*named, str(self.stereo)])
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def faces(self) -> tuple[tuple[str, str], tuple[str, str]]:
        """(file, half) that shows each of the two people; one person alone is listed twice."""
        one, other = ((_real(self.file(role)), self.half(role)) for role in ROLES)
        return one, other

    @property
    def participants(self) -> tuple[str, str]:
        """Ids of the two people, or of one person twice; without an id, each file counts as another person."""
        ids = [
            f"{Path(path).stem}-{hashlib.sha256(f'{side} {path}'.lstrip().encode()).hexdigest()[:8]}"
            for path, side in self.faces
        ]
        first = self.participant_a or ids[0]
        return first, first if self.single else self.participant_b or ids[1]

    def fingerprint(self) -> dict[str, Any]:
        """Size and modification time of every file (None: missing) and the conversation's settings, to detect
        changes.
        """
        out: dict[str, Any] = {}
        if settings := {k: getattr(self, k) for k in ("offset", "face_a", "face_b") if getattr(self, k) is not None}:
            out["settings"] = settings
        for path in self.files:
            try:
                found = stamp(path)
                out[path] = [found.size, found.mtime_ns]
            except OSError:
                out[path] = None
        return out


def _real(path: str) -> str:
    """The canonical path, without links and `..`; 'silence' is unchanged."""
    return path if path == SILENCE else os.path.realpath(path)


def same_file(one: str, other: str) -> bool:
    """Whether two paths lead to one file (by another spelling or a link) or to files of the same content."""
    keys = file_keys([one, other])
    return _real(one) == _real(other) or (len(keys) == 2 and keys[one] == keys[other])


def file_keys(paths: Iterable[str]) -> dict[str, str]:
    """Map each path to a key, equal for all names of one file, links and copies included. Missing files have none.

    Copies have equal sizes and equal first, middle and last half MiB; only files of equal size are opened.
    """
    inode: dict[str, tuple[int, ...]] = {}
    sizes: dict[int, dict[tuple[int, ...], str]] = {}
    for path in dict.fromkeys(paths):
        try:
            found = stamp(path)
        except OSError:
            continue
        inode[path] = found.place
        sizes.setdefault(found.size, {})[found.place] = path
    keys: dict[tuple[int, ...], str] = {}
    for size, files in sizes.items():
        for number, path in files.items():
            keys[number] = _sampled(path, size) if len(files) > 1 and size else "/".join(map(str, number))
    return {path: keys[number] for path, number in inode.items()}


def _sampled(path: str, size: int, piece: int = 1 << 19) -> str:
    digest = hashlib.sha256(str(size).encode())
    try:
        with open_binary(path) as file:
            for at in (0, size // 2, max(0, size - piece)):
                file.seek(at)
                digest.update(file.read(piece))
    except OSError:
        return path
    return digest.hexdigest()


def _resolved(value: str | None, base: Path) -> str | None:
    """The file named by a path in a list: as written, or with common differences (spaces around it, another encoding of
    accents, backslashes).
    """
    if not value or not value.strip() or value.strip() == SILENCE:
        return (value or "").strip() or None
    bare = value.strip()
    forms = [value, bare, *(unicodedata.normalize(form, bare) for form in ("NFC", "NFD")), bare.replace("\\", "/")]
    places = [os.path.abspath(os.path.join(base, os.path.expanduser(form))) for form in forms]
    return next((place for place in places if exists(place)), places[1])


def from_flags(
    pairs: Sequence[Sequence[str]],
    side_by_side: Sequence[str],
    audio: Sequence[Sequence[str]],
    participants: Sequence[Sequence[str]],
    *,
    stereo: bool = False,
    singles: Sequence[str] = (),
) -> tuple[list[Source], list[Rejected]]:
    """Sources from command line flags; `audio` and `participants` are for the pairs, then the side-by-side videos, in
    order. ``-`` as an audio file means the video's own. `singles` are videos of one person, or folders of such, which
    are searched. Raises `UserError` when numbers do not match, and for a folder without videos.
    """
    videos = [{"a": a, "b": b} for a, b in pairs] + [{"video": v} for v in side_by_side]
    for name, given in (("--audio", audio), ("--participants", participants)):
        if given and len(given) != len(videos):
            raise UserError(
                f"{name} is given {len(given)} times for {len(videos)} conversations: give it once for each, in order"
            )
    rows: list[Row] = []
    for n, paths in enumerate(videos):
        row: dict[str, Any] = dict(paths)
        if audio:
            row |= {f"audio_{role}": None if path == "-" else path for role, path in zip(ROLES, audio[n], strict=True)}
        if participants:
            row |= {f"participant_{role}": person for role, person in zip(ROLES, participants[n], strict=True)}
        rows.append((shown(" + ".join(paths.values())), row))
    rows += [(shown(video), {"single": video}) for place in singles for video in _videos(place)]
    return from_rows(rows, Path.cwd(), stereo=stereo)


def _videos(place: str) -> list[str]:
    """The videos in a folder or its archives, at any depth, or the single file."""
    folder = Path(place).expanduser()
    if not folder.is_dir():
        return [place]
    found = [str(path) for path in walk(folder) if path.suffix.lower() in VIDEOS]
    if not found:
        raise UserError(f"{place}: no video there (of {', '.join(sorted(VIDEOS))})")
    return found


def from_manifest(path: Path | str, *, stereo: bool = False) -> tuple[list[Source], list[Rejected]]:
    """Sources from a table (`af.data.tables`) with the columns `COLUMNS`, and the rejected rows.

    Paths are relative to the manifest's folder. Raises `UserError` for faults of the whole list.
    """
    path = Path(path)
    return from_rows(read_rows(path, COLUMNS), path.parent, stereo=stereo)


def from_rows(rows: Iterable[Row], base: Path, *, stereo: bool = False) -> tuple[list[Source], list[Rejected]]:
    """Sources from rows with the columns `COLUMNS`, and the rejected rows. Paths are relative to `base`."""
    sources: list[Source] = []
    rejected: list[Rejected] = []
    seen: dict[str, str] = {}
    for where, row in rows:
        try:
            if isinstance(row, UserError):
                raise row
            source = _source(row, base, stereo)
            if (before := seen.setdefault(source.id, where)) != where:
                raise UnusableRow(f"the same files as {before}: listed twice", "listed_twice")
            sources.append(source)
        except UserError as error:
            rejected.append(Rejected(where, getattr(error, "reason", "bad_row"), f"{where}: {error}"))
    return sources, rejected


def _source(row: Mapping[str, Any], base: Path, stereo: bool) -> Source:
    values: dict[str, Any] = {}
    for name, value in row.items():
        if name == "offset" and value is not None:
            try:
                value = float(str(value).strip().replace(",", "."))  # some spreadsheets write a decimal comma
            except ValueError:
                raise UserError(f"offset {value!r} is not a number of seconds") from None
        elif value is not None and not isinstance(value, str):
            raise UserError(f"{name} must be text, got {value!r}")
        elif name in _PATHS:
            value = _resolved(value, base)
        elif name in ("split", "face_a", "face_b"):
            value = value and value.strip().lower()
        values[name] = value
    return Source(**values, stereo=stereo and bool(values.get("video")))
