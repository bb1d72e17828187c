"""Rearranging samples byte for byte into other shards: resharding, shuffling, splitting and merging.

Every verb first assigns samples to shards, then writes the shards as parts (resumable and divisible), then the index.
Members are checked as by `af shards validate --quick`, so broken ones get no new checksum.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from af.clock import frames_to_seconds
from af.data.checks import check_fields, check_member
from af.data.index import Index, build_index, split_folders
from af.data.mixture import require_alike
from af.data.parts import WHOLE, Part, Share, claim_output, run_job
from af.data.plan import mix
from af.data.schema import SPLITS, ClipMeta, groups_of_people, person_key
from af.data.shards import ShardReader, write_shard
from af.data.stores import Location, absolute
from af.errors import UserError

SETTINGS_NAME: Final = "arranged.json"


@dataclass(frozen=True)
class Pick:
    """A source sample and its key in the new shards."""

    index: int
    sample: int
    key: str


def load(roots: Sequence[Location]) -> list[Index]:
    """Load the indexes of all splits of all roots. Raises `UserError` when they differ in specs or image size."""
    indexes = [Index.load(folder) for root in roots for folder in split_folders(root)]
    for other in indexes[1:]:
        require_alike(indexes[0], other, faces=True)
    return indexes


def reshard(
    root: Location, out: Path, *, shard_bytes: int, shuffle: int | None = None, **how: Any
) -> list[Index] | None:
    """Write every split of `root` as shards of about `shard_bytes`, in order or shuffled by a seed. Returns the new
    indexes (None while other shares are not done).
    """
    indexes = load([root])
    picks = _picks(indexes)
    if shuffle is not None:
        picks.sort(key=lambda pick: mix(shuffle, pick.sample))
    plan = _by_split(picks, lambda pick: indexes[pick.index].split)
    return _arrange(indexes, plan, out, {"verb": "reshard", "shuffle": shuffle}, shard_bytes, **how)


def merge(
    roots: Sequence[Location], out: Path, *, shard_bytes: int, rename: bool = False, **how: Any
) -> list[Index] | None:
    """Merge the splits of several roots, as `reshard`. Raises `UserError` when a person would be in two splits, or when
    a key occurs twice, unless `rename` prefixes every key with the number of its root.
    """
    indexes = load(roots)
    _refuse_overlap(indexes)
    number = [next(n for n, root in enumerate(roots) if root in (i.folder, i.folder.parent)) for i in indexes]
    picks = _picks(indexes, [f"{n}-" for n in number] if rename else None)
    plan = _by_split(picks, lambda pick: indexes[pick.index].split)
    return _arrange(indexes, plan, out, {"verb": "merge", "rename": rename}, shard_bytes, **how)


def split_by_identity(
    root: Location,
    out: Path,
    fractions: Sequence[float],
    *,
    seed: int = 0,
    shard_bytes: int,
    rename: bool = False,
    **how: Any,
) -> list[Index] | None:
    """Divide all samples of `root`, from any split, into train, val and test by `fractions` of the frames, as
    `reshard`. People connected by conversations stay together. `rename` prefixes every key with its old split. Raises
    `UserError` when there are fewer groups of people than splits, or when a key occurs twice.
    """
    indexes = load([root])
    picks = _picks(indexes, [f"{index.split}-" for index in indexes] if rename else None)
    samples = {pick: indexes[pick.index].samples[pick.sample] for pick in picks}
    pairs = [(person_key(one), person_key(other)) for one, other in (s.participants for s in samples.values())]
    groups = groups_of_people(pairs)
    group = {pick: groups[first] for pick, (first, _) in zip(picks, pairs, strict=True)}
    frames = Counter[str]()
    for pick, sample in samples.items():
        frames[group[pick]] += sample.frames
    home = _balanced(frames, fractions, seed)
    settings = {"verb": "split", "fractions": list(fractions), "seed": seed, "rename": rename}
    return _arrange(indexes, _by_split(picks, lambda p: home[group[p]]), out, settings, shard_bytes, **how)


def holdout(root: Location, out: Path, seconds: float, *, shard_bytes: int, **how: Any) -> list[Index] | None:
    """Hold out clips of the people that a model is made for: the last ones of `root` (by their keys), at least `seconds`
    of them, are test, the last of the others val, and what remains is train, as `reshard`. Raises `UserError` when
    nothing remains.
    """
    indexes = load([root])
    left = sorted(_picks(indexes), key=lambda pick: pick.key)
    plan: dict[str, list[Pick]] = {"test": [], "val": []}
    for chosen in plan.values():
        frames = 0
        while left and frames_to_seconds(frames) < seconds:
            chosen.insert(0, pick := left.pop())
            frames += indexes[pick.index].samples[pick.sample].frames
    if not left:
        raise UserError(
            f"{root}: no clip remains to train on when {seconds:g} s are held out for val and for test; hold out less, or "
            "make shorter clips (af ingest --max-seconds)"
        )
    return _arrange(indexes, {"train": left, **plan}, out, {"verb": "holdout", "seconds": seconds}, shard_bytes, **how)


def _picks(indexes: Sequence[Index], prefixes: Sequence[str] | None = None) -> list[Pick]:
    """Every sample of every index, the index's prefix before its key."""
    before = prefixes or [""] * len(indexes)
    return [Pick(n, i, before[n] + s.key) for n, index in enumerate(indexes) for i, s in enumerate(index.samples)]


def _by_split(picks: Sequence[Pick], split_of: Callable[[Pick], str]) -> dict[str, list[Pick]]:
    found = {split: [pick for pick in picks if split_of(pick) == split] for split in SPLITS}
    return {split: chosen for split, chosen in found.items() if chosen}


def _balanced(frames: Mapping[str, int], fractions: Sequence[float], seed: int) -> dict[str, str]:
    """Map groups of people to splits: in hashed order (large groups first), each to the split lacking most frames."""
    wanted = [
        (split, f * sum(frames.values()) / sum(fractions)) for split, f in zip(SPLITS, fractions, strict=True) if f > 0
    ]
    if len(frames) < len(wanted):
        raise UserError(
            f"{len(frames)} unconnected groups of people cannot fill {len(wanted)} splits: everybody in a group is "
            "connected with the others by conversations, and no person may be in two splits"
        )
    lacking, smallest = dict(wanted), min(target for _, target in wanted)

    def order(group: str) -> tuple[int, str]:
        hashed = hashlib.sha256(f"{seed}/{group}".encode()).hexdigest()
        return (-frames[group] if frames[group] > smallest else 0), hashed

    home: dict[str, str] = {}
    for left, group in zip(range(len(frames), 0, -1), sorted(frames, key=order), strict=True):
        empty = [split for split in lacking if split not in home.values()]
        among = empty if left <= len(empty) else list(lacking)  # the last groups fill splits that would stay empty
        chosen = max(among, key=lambda split: lacking[split])
        home[group] = chosen
        lacking[chosen] -= frames[group]
    return home


def _refuse_overlap(indexes: Sequence[Index]) -> None:
    home: dict[str, Index] = {}
    for index in indexes:
        for person in sorted({p for s in index.samples for p in s.participants}):
            other = home.setdefault(person_key(person), index)
            if other.split != index.split:
                raise UserError(
                    f"participant {person!r} is in {other.folder} and in {index.folder}: no person may be in two splits; "
                    "put all into one split first (af shards split)"
                )


def _check_keys(indexes: Sequence[Index], picks: Sequence[Pick]) -> None:
    seen: dict[str, Pick] = {}
    for pick in picks:
        index = indexes[pick.index]
        if pick.key != index.samples[pick.sample].key and index.specs.get("teacher"):
            raise UserError(f"{index.folder}: a teacher's noise depends on its samples' keys: omit --rename")
        if (other := seen.setdefault(pick.key, pick)) is not pick:
            folders = f"{indexes[other.index].folder} and in {index.folder}"
            raise UserError(f"key {pick.key} is in {folders}; --rename makes keys different")


def _arrange(
    indexes: Sequence[Index],
    plan: Mapping[str, Sequence[Pick]],
    out: Path,
    settings: Mapping[str, Any],
    shard_bytes: int,
    *,
    workers: int = 1,
    share: Share = WHOLE,
) -> list[Index] | None:
    if shard_bytes < 1:
        raise ValueError(f"shard_bytes must be positive, got {shard_bytes}")
    parts = []
    folders = tuple(str(index.folder) for index in indexes)
    for split, picks in plan.items():
        _check_keys(indexes, picks)
        for number, group in enumerate(_groups(picks, indexes, shard_bytes)):
            parts.append(Part(out / split / f"{number:06d}.tar", (folders, group, split)))
    digest = hashlib.sha256("".join(s.sha256 for index in indexes for s in index.shards).encode()).hexdigest()
    places = [absolute(index.folder) for index in indexes]
    claim_output(out / SETTINGS_NAME, {**settings, "from": places, "content": digest, "shard_bytes": shard_bytes})

    def finish() -> list[Index]:
        return [build_index(out / split) for split in plan]

    return run_job(parts, write_picks, finish, share=share, workers=workers, description="writing shards")


def _groups(picks: Iterable[Pick], indexes: Sequence[Index], shard_bytes: int) -> Iterator[list[Pick]]:
    group: list[Pick] = []
    total = 0
    for pick in picks:
        size = sum(size + 1024 for _, size in indexes[pick.index].samples[pick.sample].members.values())
        if group and total + size > shard_bytes:
            yield group
            group, total = [], 0
        group.append(pick)
        total += size
    if group:
        yield group


def write_picks(
    path: Path,
    folders: tuple[str, ...],
    picks: Sequence[Pick],
    split: str,
    describe: Callable[[ClipMeta], ClipMeta] = lambda meta: meta,
) -> int:
    """Write one shard of `picks` from split folders, with json by `describe`; returns its number of samples.

    Raises `ShardError` for broken samples.
    """

    def samples() -> Iterator[tuple[str, ClipMeta, Mapping[str, Any]]]:
        for pick in picks:
            reader = _reader(folders[pick.index])
            entry, meta = reader.index.samples[pick.sample], reader.read_meta(pick.sample)
            where = reader.index.path(entry.shard)
            check_fields(where, entry.key, entry.members, one_sided=meta.one_sided)
            members = {f: reader.read_bytes(pick.sample, f) for f in entry.members if f != "json"}
            for field, data in members.items():
                check_member(where, f"{entry.key}.{field}", field, data, meta, deep=False)
            yield pick.key, replace(describe(meta), split=split), members

    return write_shard(path, samples())[0]


@lru_cache(maxsize=8)
def _reader(folder: str) -> ShardReader:
    return ShardReader(folder)
