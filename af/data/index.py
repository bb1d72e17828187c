"""The index of a split folder: the location of every member of every sample, from tar headers alone."""

from __future__ import annotations

import os
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from af.data import codecs
from af.data.checks import ShardError, check_fields, roles_of
from af.data.disk_cache import local_copy
from af.data.schema import FIELDS, KEY_PATTERN, ROLES, SPLITS, ClipMeta, Spans, is_quality
from af.data.stores import Location, NotInStore, RemotePath, location
from af.errors import UserError
from af.files import sha256_of, write_json
from af.specs import SchemaError

INDEX_NAME: Final = "index.json"
INDEX_SCHEMA: Final = 1
_END_OF_TAR: Final = 1024
_SHARD_NAME: Final = re.compile(r"[^/\\.\x00][^/\\\x00]{0,200}\.tar")


@dataclass(frozen=True)
class SampleEntry:
    """Location of a sample (shard number in the index, byte offset and size of each member) and data for planning:
    length, people, the (start, stop) runs of frames with a tracked face, and measures, by role.
    """

    key: str
    shard: int
    frames: int
    participants: tuple[str, str]
    session: str
    valid: Mapping[str, Spans]
    members: Mapping[str, tuple[int, int]]
    quality: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles in the sample: both, or only a (a one-sided sample)."""
        return roles_of(self.members)

    @property
    def avatars(self) -> tuple[str, ...]:
        """The roles that a denoiser can learn. A mute sample has none: `af encode` gives it motion, but no audio
        features.
        """
        mute = "a.motion.npy" in self.members and "a.audio.npy" not in self.members
        return () if mute and len(self.roles) == 1 else self.roles


@dataclass(frozen=True)
class ShardEntry:
    """One tar of a split folder. By `mtime_ns`, indexing again skips unchanged shards. `sources` are the data sets in it:
    `dataset`, `licence`, `consent` and `frames` of each (none: made by a version that did not record them).
    """

    name: str
    bytes: int
    sha256: str
    samples: int
    frames: int
    mtime_ns: int
    sources: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class Index:
    """All that is known about a split folder without reading its samples."""

    folder: Location
    split: str
    shards: tuple[ShardEntry, ...]
    samples: tuple[SampleEntry, ...]
    image_size: int | None
    specs: Mapping[str, Mapping[str, Any] | None]
    homes: tuple[Location, ...] = ()  # folder of each shard, if there are several (`af.data.mixture`)

    @property
    def frames(self) -> int:
        """Total number of frames."""
        return sum(s.frames for s in self.shards)

    def conversations(self) -> Index:
        """The index without its one-sided samples. Raises `UserError` when no sample is left."""
        both = tuple(sample for sample in self.samples if len(sample.roles) == 2)
        if self.samples and not both:
            raise UserError(f"{self.folder}: every sample shows one person alone; this needs conversations")
        return replace(self, samples=both)

    def without(self, other: Index) -> Index:
        """The index without the samples that show anybody in `other`."""
        people = {name for sample in other.samples for name in sample.participants}
        return replace(self, samples=tuple(sample for sample in self.samples if people.isdisjoint(sample.participants)))

    def path(self, shard: int) -> Location:
        """The tar file of shard number `shard`."""
        return (self.homes[shard] if self.homes else self.folder) / self.shards[shard].name

    def local(self, shard: int) -> Path:
        """The shard as a local file; a remote one is fetched into the cache (`local_copy`)."""
        entry = self.shards[shard]
        return local_copy(self.path(shard), entry.bytes, entry.sha256)

    def to_json(self) -> dict[str, Any]:
        """The content of index.json."""
        return {
            "schema": INDEX_SCHEMA,
            "split": self.split,
            "samples": len(self.samples),
            "frames": self.frames,
            "image_size": self.image_size,
            "specs": self.specs,
            "shards": [vars(s) for s in self.shards],
            "entries": [
                {**vars(s), "participants": list(s.participants), "members": {k: list(v) for k, v in s.members.items()}}
                for s in self.samples
            ],
        }

    @staticmethod
    def load(folder: Location | str, *, check_files: bool = True) -> Index:
        """Read index.json of a split folder, local or remote. Raises `UserError` when it is missing or broken, or (with
        `check_files`, for local folders) when a shard is missing or has another size than indexed.
        """
        folder = location(folder)
        file = folder / INDEX_NAME
        try:
            content = file.read_bytes()
        except (FileNotFoundError, NotADirectoryError, NotInStore):
            inner = [s for s in SPLITS if (folder / s / INDEX_NAME).is_file()]
            beside = [s for s in SPLITS if (folder.parent / s / INDEX_NAME).is_file()] if folder.name in SPLITS else []
            if beside and not (isinstance(folder, Path) and tars(folder)):
                raise UserError(
                    f"{folder}: there is no split {folder.name}, only {', '.join(beside)}; "
                    "more people, or af shards split, give one"
                ) from None
            remedy = (
                f"make it with: af shards index {folder}" if isinstance(folder, Path) else "upload it with the shards"
            )
            hint = f"did you mean {folder / inner[0]}?" if inner else remedy
            raise UserError(f"{file}: no index of shards there; {hint}") from None
        try:
            data = codecs.decode_json(content)
            if data["schema"] != INDEX_SCHEMA:
                raise UserError(f"{file}: schema {data['schema']}, this version reads {INDEX_SCHEMA}")
            index = Index(
                folder=folder,
                split=data["split"],
                shards=tuple(ShardEntry(**s) for s in data["shards"]),
                samples=tuple(_sample_entry(s) for s in data["entries"]),
                image_size=data["image_size"],
                specs=data["specs"],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{file}: broken index ({error}); make it again with: af shards index {folder}") from None
        _check_entries(file, index)
        if check_files and isinstance(folder, Path):
            _check_files(folder, index)
        return index


def _check_entries(file: Location, index: Index) -> None:
    """Raise UserError unless a (foreign) index names only shards beside it and bytes within them."""
    if problem := next(_problems(index), None):
        remedy = f"make it again with: af shards index {index.folder}"
        raise UserError(f"{file}: {problem} is not allowed in an index; {remedy}")


def _problems(index: Index) -> Iterator[str]:
    for shard in index.shards:
        if not _SHARD_NAME.fullmatch(str(shard.name)):
            yield f"shard {shard.name!r}"
    for sample in index.samples:
        if not 0 <= sample.shard < len(index.shards):
            yield f"sample {sample.key!r} in shard number {sample.shard}"
        if not KEY_PATTERN.fullmatch(str(sample.key)) or sample.frames < 1 or not set(sample.members) <= set(FIELDS):
            yield f"sample {sample.key!r} of {sample.frames} frames with {', '.join(sample.members)}"
        if not is_quality(sample.quality):
            yield f"sample {sample.key!r} with measures that are no numbers"
        for name, (at, size) in sample.members.items():
            if at < 0 or size < 0 or at + size > index.shards[sample.shard].bytes:
                yield f"{sample.key}.{name} outside its shard"
        if any(not 0 <= frame <= sample.frames for runs in sample.valid.values() for run in runs for frame in run):
            yield f"sample {sample.key}: runs outside its {sample.frames} frames"


def _check_files(folder: Path, index: Index) -> None:
    for entry in index.shards:
        tar = folder / entry.name
        if not tar.is_file():
            remedy = f"restore it or run: af shards index {folder}"
            raise UserError(f"{tar}: missing, though {INDEX_NAME} lists it; {remedy}")
        if (size := tar.stat().st_size) != entry.bytes:
            raise UserError(f"{tar}: {size} bytes, {INDEX_NAME} says {entry.bytes}; run: af shards index {folder}")


def _sample_entry(data: Mapping[str, Any]) -> SampleEntry:
    members = {str(k): (int(v[0]), int(v[1])) for k, v in data["members"].items()}
    valid = {str(role): tuple((int(start), int(stop)) for start, stop in data["valid"][role]) for role in ROLES}
    first, second = data["participants"]
    known = (data["key"], int(data["shard"]), int(data["frames"]), (first, second), data["session"], valid, members)
    return SampleEntry(*known, data.get("quality", {}))


@dataclass(frozen=True)
class TarMember:
    """A member of a tar: its name, split at the first dot, and the location of its bytes."""

    key: str
    field: str
    offset: int
    size: int


def scan_tar(path: Path, named: Location | None = None) -> Iterator[list[TarMember]]:
    """Members of each sample of a tar, in order, from headers only; errors call the tar `named`. Raises `ShardError`
    for anything but plain files with allowed names, truncated archives, and samples with non-adjacent members.
    """
    size, end, seen, named = path.stat().st_size, 0, set(), named or path
    sample: list[TarMember] = []
    try:
        with tarfile.open(path, "r:") as tar:
            for info in tar:
                if not info.isreg() or info.issparse():
                    raise ShardError(named, info.name, "bad_name", "not a plain file")
                key, _, field = info.name.partition(".")
                if not KEY_PATTERN.fullmatch(key) or field not in FIELDS:
                    reason = "bad_name" if not KEY_PATTERN.fullmatch(key) else "unknown_field"
                    raise ShardError(
                        named, info.name, reason, "name is not KEY.FIELD with a known field and without a path"
                    )
                end = info.offset_data + info.size
                if end > size:
                    raise ShardError(named, info.name, "truncated", "the tar is cut off inside this member")
                if sample and sample[0].key != key:
                    yield sample
                    sample = []
                if not sample and key in seen:
                    raise ShardError(
                        named, info.name, "half_sample", "key occurs twice, or its members are not adjacent"
                    )
                if any(m.field == field for m in sample):
                    raise ShardError(named, info.name, "bad_name", "the member occurs twice")
                seen.add(key)
                sample.append(TarMember(key, field, info.offset_data, info.size))
    except (tarfile.TarError, EOFError, UnicodeDecodeError) as error:
        raise ShardError(named, "", "truncated", f"not a complete tar file ({error})") from None
    blocks = -(-end // 512) * 512
    if size < blocks + _END_OF_TAR:
        raise ShardError(named, "", "truncated", "the tar is cut off: its end mark is missing")
    if sample:
        yield sample


def read_meta(file: Location, key: str, data: bytes) -> ClipMeta:
    """The checked description in a sample's json bytes. Raises `ShardError`."""
    try:
        return ClipMeta.from_json(codecs.decode_json(data))
    except (codecs.CodecError, SchemaError) as error:
        raise ShardError(file, f"{key}.json", "bad_json", str(error)) from None


def meta_of(file: Location, descriptor: int, members: Sequence[TarMember]) -> ClipMeta:
    """The checked metadata of a sample of an open tar. Raises `ShardError`, also for unknown or missing members."""
    key, places = members[0].key, {m.field: m for m in members}
    if "json" not in places:
        raise ShardError(file, f"{key}.json", "half_sample", "the sample has no json")
    meta = read_meta(file, key, os.pread(descriptor, places["json"].size, places["json"].offset))
    check_fields(file, key, places, one_sided=meta.one_sided)
    return meta


def specs_of(meta: ClipMeta) -> dict[str, dict[str, Any] | None]:
    """Specs of a sample as plain JSON, by name: audio, motion, face, and teacher if present."""
    named = {"audio": meta.audio_spec, "motion": meta.motion_spec, "face": meta.face_spec}
    found = {name: None if spec is None else spec.to_json() for name, spec in named.items()}
    return found if meta.teacher_spec is None else {**found, "teacher": meta.teacher_spec.to_json()}


def tars(folder: Path) -> list[Path]:
    """The shard files of a split folder, in order."""
    return sorted(p for p in folder.glob("*.tar") if p.is_file() and not p.name.startswith("."))


def build_index(folder: Location | str, *, progress: Callable[[int, int], None] | None = None) -> Index:
    """Scan the tars of a split folder and write its index.json atomically; returns the index.

    Shards already indexed with the same size and modification time are not read again. Raises `ShardError` for broken
    shards, mixed feature specs and repeated keys.
    """
    folder = location(folder)
    if isinstance(folder, RemotePath):
        raise UserError(f"{folder}: an index is made where the shards are written; upload index.json with them")
    files = tars(folder)
    if not files:
        raise UserError(f"{folder}: no .tar shards there")
    known = _known_entries(folder)
    shards: list[ShardEntry] = []
    samples: list[SampleEntry] = []
    common: dict[str, Any] | None = None
    for number, path in enumerate(files):
        stat = path.stat()
        old = known.get(path.name)
        unchanged = old is not None and (old[0].bytes, old[0].mtime_ns) == (stat.st_size, stat.st_mtime_ns)
        if old is not None and unchanged and old[0].sources:
            entry, entries, described = old
        else:
            entry, entries, described = _index_shard(path, number)
        if entries:
            common = _same_description(path, described, common)
        shards.append(entry)
        samples += [replace(e, shard=number) for e in entries]
        if progress is not None:
            progress(number + 1, len(files))
    first: dict[str, int] = {}
    for sample in samples:
        if (other := first.setdefault(sample.key, sample.shard)) != sample.shard:
            detail = f"also in {shards[other].name}; a key names one sample"
            raise ShardError(files[sample.shard], sample.key, "repeated_key", detail)
    common = common or {"split": folder.name, "image_size": None, "specs": {}}
    index = Index(folder, common["split"], tuple(shards), tuple(samples), common["image_size"], common["specs"])
    write_json(folder / INDEX_NAME, index.to_json(), indent=None)
    return index


def _known_entries(folder: Path) -> dict[str, tuple[ShardEntry, list[SampleEntry], dict[str, Any]]]:
    try:
        index = Index.load(folder, check_files=False)
    except UserError:
        return {}
    described = {"split": index.split, "image_size": index.image_size, "specs": dict(index.specs)}
    by_shard: list[list[SampleEntry]] = [[] for _ in index.shards]
    for sample in index.samples:
        by_shard[sample.shard].append(sample)
    return {s.name: (s, by_shard[n], described) for n, s in enumerate(index.shards)}


def _index_shard(path: Path, number: int) -> tuple[ShardEntry, list[SampleEntry], dict[str, Any]]:
    stat = path.stat()
    entries: list[SampleEntry] = []
    sources: Counter[tuple[str, str, str]] = Counter()
    common: dict[str, Any] | None = None
    with open(path, "rb") as file:
        for members in scan_tar(path):
            key = members[0].key
            meta = meta_of(path, file.fileno(), members)
            described = {"split": meta.split, "image_size": meta.image_size, "specs": specs_of(meta)}
            common = _same_description(f"{path}: {key}.json", described, common)
            where = {m.field: (m.offset, m.size) for m in members}
            assert meta.valid is not None
            people = (meta.participants, meta.session, meta.valid, where, meta.quality)
            entries.append(SampleEntry(key, number, meta.frames, *people))
            sources[meta.dataset, meta.licence, meta.consent] += meta.frames
    frames = sum(e.frames for e in entries)
    names = ("dataset", "licence", "consent", "frames")
    told = [dict(zip(names, (*source, count), strict=True)) for source, count in sources.items()]
    entry = ShardEntry(path.name, stat.st_size, sha256_of(path), len(entries), frames, stat.st_mtime_ns, told)
    return entry, entries, common or {}


def _same_description(where: Path | str, described: dict[str, Any], common: dict[str, Any] | None) -> dict[str, Any]:
    if common is None or described == common:
        return described
    name = next(n for n in described if described[n] != common[n])
    detail = f"{name} differs from the samples before it in this folder: {described[name]} and {common[name]}"
    raise ShardError(where, "", "mixed_specs" if name == "specs" else f"mixed_{name}", detail)


def split_folders(root: Location | str) -> list[Location]:
    """Split folders with shards in a data root (train, val, test), or the folder itself if it has shards."""
    root = location(root)
    if isinstance(root, RemotePath):  # not every store can list its files, so look for indexes
        inside = [folder for folder in (root, *(root / s for s in SPLITS)) if (folder / INDEX_NAME).is_file()]
        if not inside:
            raise UserError(f"{root}: no {INDEX_NAME} there, nor in {', '.join(SPLITS)} below it")
        return list(inside[:1] if inside[0] == root else inside)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder")
    found: list[Location] = [root] if tars(root) else [root / split for split in SPLITS if tars(root / split)]
    if not found:
        raise UserError(f"{root}: no shards (*.tar) there, nor in {', '.join(SPLITS)} below it")
    return found
