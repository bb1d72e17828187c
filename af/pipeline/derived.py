"""Deriving shards from shards, one for one, in resumable parts that can be divided among machines."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import Float

from af.data.index import Index, build_index, split_folders
from af.data.parts import WHOLE, Part, Share, claim_output, run_job
from af.data.schema import ROLES, ClipMeta
from af.data.shards import ShardReader, write_shard
from af.data.stores import Location
from af.errors import UserError


def splits_of(source: Location, splits: Sequence[str] | None = None) -> list[Index]:
    """The indexes of a folder's splits (only those named). Raises UserError when there are none."""
    found = [index for index in map(Index.load, split_folders(source)) if splits is None or index.split in splits]
    if not found:
        raise UserError(f"{source} has none of the splits {', '.join(splits or ())}")
    return found


def derive(
    indices: Sequence[Index],
    settings_file: Path,
    settings: Mapping[str, Any],
    work: Callable[..., int],
    given: tuple[Any, ...],
    *,
    digest: Callable[[Index, int], str] = lambda index, n: index.shards[n].sha256,
    finish: Callable[[list[Index]], None] = lambda made: None,
    workers: int = 1,
    share: Share = WHOLE,
    unnamed: Mapping[str, Any] = MappingProxyType({}),
    description: str,
) -> list[Index]:
    """Write a shard for each shard of `indices` beside `settings_file`. Returns the new indexes (none while other
    shares are not done) after `finish(indexes)`.

    `work(path, folder, number, *given)` writes one shard and returns its number of samples, maybe in a worker process.
    Existing shards with the same `digest` of their inputs are skipped, so a stopped job continues. Raises UserError
    when the folder was made with other `settings` (`unnamed`: those that older ones do not name) or holds other shards.
    """
    out = settings_file.parent
    claim_output(settings_file, settings, unnamed=unnamed)
    parts = [
        Part(out / index.split / shard.name, (str(index.folder), n, *given), digest(index, n))
        for index in indices
        for n, shard in enumerate(index.shards)
    ]

    def build() -> list[Index]:
        made = [build_index(out / index.split) for index in indices]
        finish(made)
        return made

    return run_job(parts, work, build, share=share, workers=workers, description=description) or []


def write_motions(
    path: Path,
    reader: ShardReader,
    motions: Mapping[tuple[int, str], Float[np.ndarray, "T D"]],
    member: str,
    describe: Callable[[int], dict[str, Any]],
) -> int:
    """Write a shard of motions by (sample, role) as ROLE.`member`; `describe` gives what a sample's json says of them.

    Returns the number of samples.
    """
    bare: dict[str, Any] = {"motion_spec": None, "audio_spec": None, "face_spec": None, "crop_boxes": {}}

    def samples() -> Iterator[tuple[str, ClipMeta, Mapping[str, Any]]]:
        for i in dict.fromkeys(i for i, _ in motions):
            meta = replace(reader.read_meta(i), **{**bare, **describe(i)})
            made = {f"{role}.{member}": motions[i, role] for role in ROLES if (i, role) in motions}
            yield reader.index.samples[i].key, meta, made

    return write_shard(path, samples())[0]
