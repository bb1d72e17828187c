"""Assigning conversations to splits such that no person is in two."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from af.data.archives import exists
from af.data.schema import SPLITS, groups_of_people, person_key
from af.ingest.sources import Source, file_keys


def _place(name: str) -> float:
    """A hash of `name`, from 0 to 1."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64


def _by_hash(name: str, fractions: Sequence[float]) -> str:
    place = _place(name) * sum(fractions)
    for split, fraction in zip(SPLITS, fractions, strict=True):
        if place < fraction:
            return split
        place -= fraction
    return next(s for s, f in zip(reversed(SPLITS), reversed(fractions), strict=True) if f > 0)


def one_person(sources: Sequence[Source]) -> tuple[dict[str, str], list[str]]:
    """(map from participant id to person, lines on people with several ids).

    Ids belong to one person if they differ only in case, spaces or forms of a letter, or if they are given for the same
    file (`sources.file_keys`).
    """
    keys = file_keys(path for source in sources for path, _ in source.faces)
    seen: dict[tuple[str, str], str] = {}
    written: dict[str, str] = {}
    alike: list[tuple[str, str]] = []
    lines: list[str] = []
    for source in sources:
        for person, (path, side) in zip(source.participants, source.faces, strict=True):
            key = person_key(person)
            if written.setdefault(key, person) != person:
                lines.append(f"{written[key]!r} and {person!r} are treated as one person")
            other = seen.setdefault((keys.get(path, path), side), person)
            alike.append((key, person_key(other)))
            if person_key(other) != key:
                lines.append(f"{other!r} and {person!r} are seen in one file ({path}): treated as one person")
    groups = groups_of_people(alike)
    ids = {person for source in sources for person in source.participants}
    return {person: groups[person_key(person)] for person in ids}, list(dict.fromkeys(lines))


def assign_splits(
    sources: Sequence[Source],
    *,
    split: str,
    fractions: Sequence[float] | None,
    assigned: Mapping[str, str],
    same: Mapping[str, str] | None = None,
) -> list[tuple[str, str | None]]:
    """(split, objection) for every source; an objection says why the source cannot be used.

    A source's own `split` takes precedence, then the splits `assigned` to its people by earlier runs, then `fractions`
    of train, val and test by a hash over people connected by conversations, or else `split`. A split left empty by the
    hash gets a group of another one if possible. `same` is the map from `one_person`.
    """
    known = same or {}

    def who(source: Source) -> tuple[str, str]:
        one, other = (known.get(p, person_key(p)) for p in source.participants)
        return one, other

    home: dict[str, str] = {}
    for person, where in assigned.items():
        home.setdefault(known.get(person, person_key(person)), where)
    people = groups_of_people([who(s) for s in sources])
    for source in sources:  # stated splits first: they decide for their people
        if source.split is not None:
            for person in who(source):
                home.setdefault(person, source.split)
    settled: dict[str, set[str]] = {}
    for person, where in home.items():
        if person in people:
            settled.setdefault(people[person], set()).add(where)
    by_hash: dict[str, str] = {}
    if fractions is not None:
        there = {people[who(s)[0]] for s in sources if all(map(exists, s.files))}  # missing files fill no split
        by_hash = {group: _by_hash(group, fractions) for group in people.values()}
        by_hash |= _by_hashes(there, settled, fractions, set(home.values()))
    chosen: list[tuple[str, str | None]] = []
    for source in sources:
        own = sorted({home[p] for p in who(source) if p in home})
        group = people[who(source)[0]]
        if source.split is not None:
            wanted = source.split
        elif fractions is None:
            wanted = split
        elif own:
            wanted = own[0]
        elif len(settled.get(group, ())) == 1:  # connected people already have a split
            wanted = next(iter(settled[group]))
        else:
            wanted = by_hash[group]
        for person in who(source):
            home.setdefault(person, wanted)
        conflict = next((n for n, p in enumerate(who(source)) if home[p] != wanted), None)
        objection = None
        if conflict is not None:
            person = source.participants[conflict]
            objection = f"{person!r} is already in split {home[who(source)[conflict]]}, so this cannot go into {wanted}"
        chosen.append((wanted, objection))
    return chosen


def _by_hashes(
    groups: Collection[str], settled: Mapping[str, set[str]], fractions: Sequence[float], taken: Collection[str]
) -> dict[str, str]:
    """Map unsettled groups to splits by hash. A split with a fraction that would stay empty gets a group of a split
    that has several or matters less: first train, then test, then val.
    """
    free = sorted(groups - settled.keys(), key=_place, reverse=True)
    home = {group: _by_hash(group, fractions) for group in free}
    order = [s for s in ("train", "test", "val") if fractions[SPLITS.index(s)] > 0]
    for empty in order:
        filled = Counter([*home.values(), *(where for g in settled if g in groups for where in settled[g])])
        if filled[empty] or empty in taken:
            continue
        less = order[order.index(empty) + 1 :]
        if spare := [g for g in free if filled[home[g]] > 1 or home[g] in less]:
            home[spare[-1 if empty == "train" else 0]] = empty
    return home
