"""Shards: tar files (also readable by WebDataset) with an index, for random access by offsets.

A split folder holds ``NNNNNN.tar`` and ``index.json``; ``<root>/train``, ``val`` and ``test`` are the splits.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
from webdataset.writer import TarWriter

from af.clock import frames_to_samples
from af.data import codecs
from af.data.archives import RangeFile
from af.data.checks import ShardError, check_array, check_fields, check_values
from af.data.disk_cache import OpenFiles
from af.data.index import Index, SampleEntry, read_meta
from af.data.schema import KEY_PATTERN, PERSON_PARTS, ROLES, ClipMeta
from af.data.stores import Location, RemotePath
from af.files import atomic_path
from af.types import Clip, Person

#: A person's fields by the names that readers use, and their members.
PERSON_FIELDS: Final = dict(
    zip(("video", "audio", "motion", "audio_features", "face", "teacher"), PERSON_PARTS, strict=True)
)
_OPEN_FILES: Final = 64
#: Fewer remote shards: one evicted from the cache still takes up space while it is open.
_OPEN_COPIES: Final = 20


def write_shard(
    path: Path, samples: Iterable[tuple[str, ClipMeta, Mapping[str, bytes | np.ndarray]]]
) -> tuple[int, int]:
    """Write samples (key, description, members by field, such as "a.mp4") as one tar; returns (samples, frames).

    ``*.npy`` fields take arrays, the others bytes. The file is written atomically; equal samples give equal bytes.
    Raises `ShardError` for unknown fields, wrong lengths, incomplete samples and repeated keys.
    """
    keys: set[str] = set()
    frames = 0
    with atomic_path(Path(path)) as temporary, open(temporary, "wb") as file:
        with TarWriter(file, encoder=False, mtime=0, mode=0o644) as tar:
            for key, meta, members in samples:
                if not KEY_PATTERN.fullmatch(key) or key in keys:
                    raise ShardError(
                        path, key, "bad_key", "keys must be unique and consist of letters, digits, _ and -"
                    )
                keys.add(key)
                frames += meta.frames
                check_fields(path, key, members.keys() | {"json"}, one_sided=meta.one_sided)
                encoded: dict[str, Any] = {"__key__": key, "json": codecs.encode_json(meta.to_json())}
                for field, value in members.items():
                    encoded[field] = _encoded_member(path, f"{key}.{field}", field, value, meta)
                tar.write(encoded)
        file.flush()
    return len(keys), frames


def _encoded_member(path: Path, member: str, field: str, value: bytes | np.ndarray, meta: ClipMeta) -> bytes:
    if isinstance(value, np.ndarray):
        if not field.endswith(".npy"):
            raise ShardError(path, member, "bad_type", "arrays are for .npy fields; encode it first")
        check_array(path, member, field, value, meta)
        return codecs.encode_npy(value)
    if field == "json" or not isinstance(value, (bytes, bytearray)):
        raise ShardError(path, member, "bad_type", f"expected bytes or an array, got {type(value).__name__}")
    return bytes(value)


def open_shard(index: Index, shard: int) -> BinaryIO:
    """Open the tar of shard number `shard`, from the cache if remote. Raises `ShardError` and `StoreError`."""
    while True:
        try:
            return open(index.local(shard), "rb")
        except FileNotFoundError:  # the copy was evicted before it was opened
            if not isinstance(index.path(shard), RemotePath):
                raise


class ShardReader:
    """Random access to the samples of a split folder. Safe in forked and spawned workers: each process opens files on
    first use, at most 64 at a time. Remote shards are fetched whole on first use (`Index.local`).
    """

    def __init__(self, folder: Location | str | Index) -> None:
        self.index = folder if isinstance(folder, Index) else Index.load(folder)
        self._files = OpenFiles()
        self._broken: dict[int, ShardError] = {}  # checked remote shards, not to be fetched again

    def __len__(self) -> int:
        return len(self.index.samples)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_broken": {}}

    def close(self) -> None:
        """Close the files of this process."""
        self._files.close()

    def _descriptor(self, shard: int) -> int:
        limit = _OPEN_COPIES if isinstance(self.index.path(shard), RemotePath) else _OPEN_FILES
        descriptor = self._files.get(shard, lambda: self._open(shard), limit)
        assert descriptor is not None
        return descriptor

    def _open(self, shard: int) -> int:
        if shard in self._broken:
            raise self._broken[shard]
        try:
            with open_shard(self.index, shard) as file:
                return os.dup(file.fileno())
        except ShardError as error:
            self._broken[shard] = error
            raise

    def has(self, i: int, field: str) -> bool:
        """Whether sample i has the member `field` (such as "a.motion.npy")."""
        return field in self.index.samples[i].members

    def read_bytes(self, i: int, field: str, start: int = 0, length: int | None = None) -> bytes:
        """Bytes [start, start + length) of a member of sample i. Raises `ShardError` when missing or truncated."""
        entry = self.index.samples[i]
        if field not in entry.members:
            raise self.error(i, field, "absent", "no such member")
        offset, size = entry.members[field]
        length = size - start if length is None else min(length, size - start)
        data = os.pread(self._descriptor(entry.shard), length, offset + start)
        if len(data) != length:
            raise self.error(i, field, "truncated", "the tar is cut off")
        return data

    def open(self, i: int, field: str) -> RangeFile:
        """A member of sample i as a file that reads only the requested bytes."""
        size = self.index.samples[i].members.get(field, (0, 0))[1]
        return RangeFile(partial(self.read_bytes, i, field), size)

    def error(self, i: int, field: str, reason: str, detail: str) -> ShardError:
        """The error for the member `field` of sample i, naming its location and the fault."""
        entry = self.index.samples[i]
        return ShardError(self.index.path(entry.shard), f"{entry.key}.{field}", reason, detail)

    def read_meta(self, i: int) -> ClipMeta:
        """The checked description of sample i."""
        entry = self.index.samples[i]
        return read_meta(self.index.path(entry.shard), entry.key, self.read_bytes(i, "json"))

    def read_rows(self, i: int, field: str, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop) of a 2-D npy member, reading only their bytes. Raises `ShardError`, also for NaNs."""
        entry = self.index.samples[i]
        try:
            shape, dtype, offset = codecs.npy_header(self.read_bytes(i, field, 0, 512))
        except codecs.CodecError as error:
            raise self.error(i, field, "pickle" if "pickle" in str(error) else "bad_npy", str(error)) from None
        if len(shape) != 2 or shape[0] != entry.frames or dtype not in (np.float16, np.float32):
            expected = f"expected {entry.frames} rows of float16 or float32"
            raise self.error(i, field, "wrong_length", f"{shape} {dtype}, {expected}")
        if not 0 <= start <= stop <= shape[0]:
            raise IndexError(f"rows [{start}, {stop}) of {shape[0]}")
        member, size = entry.members[field]
        out = np.empty((stop - start, shape[1]), dtype)
        at = offset + start * shape[1] * dtype.itemsize
        if at + out.nbytes > size:
            raise self.error(i, field, "bad_npy", f"npy says {shape} {dtype} but is shorter")
        room = out.reshape(-1).view(np.uint8).data
        if out.nbytes and os.preadv(self._descriptor(entry.shard), [room], member + at) != out.nbytes:
            raise self.error(i, field, "truncated", "the tar is cut off")
        check_values(out, partial(self.error, i, field))
        return out

    def read(self, i: int, fields: Collection[str] | None = None) -> Clip:
        """Decode sample i. `fields` are among video, audio, motion, audio_features, face (None: all present).

        Raises `ShardError` when a requested field is missing or broken.
        """
        entry = self.index.samples[i]
        if fields is not None and (unknown := set(fields) - set(PERSON_FIELDS)):
            raise ValueError(f"unknown fields {sorted(unknown)}; known: {', '.join(PERSON_FIELDS)}")
        try:
            meta = codecs.decode_json(self.read_bytes(i, "json"))
        except codecs.CodecError as error:
            raise self.error(i, "json", "bad_json", str(error)) from None
        people = {}
        for role in ROLES:
            values: dict[str, Any] = {}
            for name, part in PERSON_FIELDS.items():
                field = f"{role}.{part}"
                if name not in fields if fields is not None and role in entry.roles else not self.has(i, field):
                    continue
                values[name] = self._decoded(i, field, entry)
            people[role] = Person(**values)
        return Clip(entry.key, meta, people["a"], people["b"])

    def _decoded(self, i: int, field: str, entry: SampleEntry) -> np.ndarray:
        try:
            value = codecs.decode(field, self.read_bytes(i, field))
        except codecs.CodecError as error:
            raise self.error(i, field, "pickle" if "pickle" in str(error) else "bad_member", str(error)) from None
        expected = frames_to_samples(entry.frames) if field.endswith(".flac") else entry.frames
        if len(value) != expected:
            raise self.error(i, field, "wrong_length", f"length {len(value)}, expected {expected}")
        if not field.endswith(".npy"):
            return value
        value = value.astype(np.float32)
        check_values(value, partial(self.error, i, field))
        return value
