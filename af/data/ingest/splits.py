"""Which split a conversation belongs to, so that no person is in two."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from af.data.ingest.sources import Source
from af.data.schema import SPLITS


def groups_of_people(pairs: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Person -> the first name (in sorted order) among all people connected through conversations."""
    parent: dict[str, str] = {}

    def root(person: str) -> str:
        parent.setdefault(person, person)
        while parent[person] != person:
            parent[person] = parent[parent[person]]
            person = parent[person]
        return person

    for a, b in pairs:
        first, second = sorted((root(a), root(b)))
        parent[second] = first
    return {person: root(person) for person in parent}


def _by_hash(name: str, fractions: Sequence[float]) -> str:
    place = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64 * sum(fractions)
    for split, fraction in zip(SPLITS, fractions, strict=True):
        if place < fraction:
            return split
        place -= fraction
    return next(s for s, f in zip(reversed(SPLITS), reversed(fractions), strict=True) if f > 0)


def assign_splits(
    sources: Sequence[Source],
    *,
    split: str,
    fractions: Sequence[float] | None,
    assigned: Mapping[str, str],
) -> list[tuple[str, str | None]]:
    """(split, objection) of every source; an objection says why it cannot be used there.

    A source's own `split` comes first, then the splits of people who are `assigned` already (from earlier runs), then
    `fractions` of train, val and test by a hash over people who are connected by conversations, or else `split`.
    """
    home = dict(assigned)
    chosen: list[tuple[str, str | None]] = []
    people = groups_of_people([s.participants for s in sources])
    for source in sources:  # stated ones first: they decide for the people in them
        if source.split is not None:
            for person in source.participants:
                home.setdefault(person, source.split)
    by_group: dict[str, set[str]] = {}
    for person, where in home.items():
        if person in people:
            by_group.setdefault(people[person], set()).add(where)
    for source in sources:
        own = sorted({home[p] for p in source.participants if p in home})
        group = people[source.participants[0]]
        if source.split is not None:
            wanted = source.split
        elif own:
            wanted = own[0]
        elif fractions is None:
            wanted = split
        elif len(by_group.get(group, ())) == 1:  # people they are connected to are settled already
            wanted = next(iter(by_group[group]))
        else:
            wanted = _by_hash(group, fractions)
        if fractions is None and source.split is None:
            wanted = split
        for person in source.participants:
            home.setdefault(person, wanted)
        conflict = next((p for p in source.participants if home[p] != wanted), None)
        objection = None
        if conflict is not None:
            objection = f"{conflict!r} is already in split {home[conflict]}, so this cannot go into {wanted}"
        chosen.append((wanted, objection))
    return chosen
