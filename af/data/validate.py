"""Validation of a folder of shards: lists all faults, counted by reason, and never executes content."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from af.data.checks import ShardError, check_member
from af.data.index import INDEX_NAME, Index, meta_of, scan_tar, specs_of, split_folders, tars
from af.data.schema import SPLITS, ClipMeta, person_key
from af.data.stores import Location
from af.errors import UserError
from af.files import sha256_of

#: A shard's name, and a function that makes it available locally.
_Find = tuple[Location, Callable[[], Path]]


@dataclass(frozen=True)
class Report:
    """The result of `validate`: totals and faults."""

    shards: int
    samples: int
    frames: int
    problems: tuple[ShardError, ...]

    @property
    def ok(self) -> bool:
        """Whether there are no problems."""
        return not self.problems

    @property
    def counts(self) -> dict[str, int]:
        """Number of problems by reason."""
        return dict(Counter(p.reason for p in self.problems))

    def text(self, most: int) -> str:
        """Readable text: at most `most` problems, and the totals."""
        lines = [f"{problem.reason}: {problem}" for problem in self.problems[:most]]
        if len(self.problems) > most:
            lines.append(f"... and {len(self.problems) - most} more (--json prints all)")
        counts = ", ".join(f"{count} x {reason}" for reason, count in sorted(self.counts.items()))
        found = "nothing wrong" if self.ok else f"{len(self.problems)} problems ({counts})"
        return "\n".join([*lines, f"{self.shards} shards, {self.samples} samples, {self.frames} frames: {found}"])

    def to_json(self) -> dict[str, Any]:
        """Plain JSON: totals, counts by reason and every problem."""
        return {**vars(self), "ok": self.ok, "counts": self.counts, "problems": [vars(p) for p in self.problems]}


class _Checker:
    def __init__(self, deep: bool) -> None:
        self.deep = deep
        self.problems: list[ShardError] = []
        self.add = self.problems.append
        self.samples = self.frames = 0
        self.people: dict[str, dict[str, tuple[str, Location]]] = {}  # split -> person -> (id as written, a shard)
        self.clips: dict[str, dict[bytes, tuple[str, Location]]] = {}  # split -> digest of a video -> (member, shard)

    def shard(self, path: Location, local: Path, expected: dict[str, Any], keys: dict[str, Location]) -> None:
        with open(local, "rb") as file:
            try:
                for members in scan_tar(local, path):
                    try:
                        self._sample(path, file.fileno(), members, expected, keys)
                    except ShardError as error:
                        self.add(error)
            except ShardError as error:
                self.add(error)

    def _sample(
        self, path: Location, descriptor: int, members: list[Any], expected: dict[str, Any], keys: dict[str, Location]
    ) -> None:
        key = members[0].key
        meta = meta_of(path, descriptor, members)
        self.samples += 1
        self.frames += meta.frames
        if key in keys:
            raise ShardError(path, key, "repeated_key", f"the key is in {keys[key].name} too")
        keys[key] = path
        for participant in meta.participants:
            self.people.setdefault(meta.split, {}).setdefault(person_key(participant), (participant, path))
        if not meta.one_sided and person_key(meta.participants[0]) == person_key(meta.participants[1]):
            self.add(ShardError(path, f"{key}.json", "one_person", f"both people are {meta.participants[0]!r}"))
        videos: set[bytes] = set()
        if (home := path.parent.name) in SPLITS and meta.split != home:
            self.add(ShardError(path, f"{key}.json", "wrong_split", f"says split {meta.split}, but is in {home}"))
        for name, value in (("specs", specs_of(meta)), ("image_size", meta.image_size)):
            if expected.setdefault(name, value) != value:
                detail = f"{name} differs within the folder: {value} here, {expected[name]} in the first sample"
                self.add(ShardError(path, f"{key}.json", f"mixed_{name}", detail))
        for member in members:
            try:
                self._member(path, key, member.field, os.pread(descriptor, member.size, member.offset), meta, videos)
            except ShardError as error:
                self.add(error)

    def _member(self, path: Location, key: str, field: str, data: bytes, meta: ClipMeta, videos: set[bytes]) -> None:
        if field.endswith(".mp4"):
            digest = hashlib.sha256(data).digest()
            self.clips.setdefault(meta.split, {}).setdefault(digest, (f"{key}.{field}", path))
            if digest in videos:
                raise ShardError(path, key, "one_person", "a.mp4 and b.mp4 are the same video")
            videos.add(digest)
        check_member(path, f"{key}.{field}", field, data, meta, deep=self.deep)  # nothing to check of json

    def index(self, folder: Path) -> None:
        file = folder / INDEX_NAME
        try:
            index = Index.load(folder, check_files=False)
        except UserError as error:
            self.add(ShardError(file, "", "no_index", str(error).removeprefix(f"{file}: ")))
            return
        listed = {s.name: s for s in index.shards}
        present = {p.name: p for p in tars(folder)}
        for name in sorted(listed.keys() | present.keys()):
            if name not in present:
                fault = ("missing", f"listed in {INDEX_NAME} but missing")
            elif name not in listed:
                fault = ("not_indexed", f"not in {INDEX_NAME}; run: af shards index {folder}")
            elif (size := present[name].stat().st_size) != listed[name].bytes:
                fault = ("checksum", f"{size} bytes, {INDEX_NAME} says {listed[name].bytes}")
            elif sha256_of(present[name]) != listed[name].sha256:
                fault = ("checksum", f"its SHA-256 is not the one in {INDEX_NAME}")
            else:
                continue
            self.add(ShardError(folder / name, "", *fault))

    def identities(self) -> None:
        """Report people in two splits: by id, in any spelling, or by the same video under another id."""
        for kind, found in (("participant", self.people), ("the same video", self.clips)):
            for first, second in itertools.combinations([s for s in SPLITS if s in found], 2):
                for key in sorted(found[first].keys() & found[second].keys()):  # type: ignore[attr-defined]
                    (one, place), (other, elsewhere) = found[first][key], found[second][key]  # type: ignore[index]
                    spelling = f" as {other!r}" if other != one else ""
                    detail = f"{kind} {one!r} is in {first} and{spelling} in {second} ({elsewhere.name})"
                    self.add(ShardError(place, "", "identity_overlap", detail))


def _listed(folder: Location) -> list[_Find]:
    index = Index.load(folder)
    return [(index.path(n), partial(index.local, n)) for n in range(len(index.shards))]


def validate(
    folder: Location | str, *, deep: bool = True, progress: Callable[[int, int], None] | None = None
) -> Report:
    """Check every shard below `folder` (a split folder, or a root with train, val, test): archives, names, json,
    members' formats and lengths, checksums in the index, one feature spec per folder, splits without shared people.

    `deep` decodes every video frame; otherwise only mp4 headers are read. `progress(done, total)` counts shards. Remote
    shards are taken from the index and fetched, which checks size and checksum. Raises `UserError` only when there is
    nothing to check or a store cannot be read.
    """
    folders = split_folders(folder)
    files: list[tuple[Location, list[_Find]]] = [
        (f, [(p, partial(Path, p)) for p in tars(f)] if isinstance(f, Path) else _listed(f)) for f in folders
    ]
    total, done = sum(len(t) for _, t in files), 0
    checker = _Checker(deep)
    for split, shards in files:
        if isinstance(split, Path):
            checker.index(split)
        expected: dict[str, Any] = {}
        keys: dict[str, Location] = {}
        for path, local in shards:
            try:
                checker.shard(path, local(), expected, keys)
            except ShardError as error:
                checker.add(error)
            done += 1
            if progress is not None:
                progress(done, total)
    checker.identities()
    return Report(total, checker.samples, checker.frames, tuple(checker.problems))
