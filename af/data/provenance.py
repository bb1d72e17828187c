"""Provenance of conversations: synthetic or filmed, and whether a model was trained on their people."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from af.data.index import Index
from af.data.shards import ShardReader

#: Key in model.json of the people the model was trained on.
TRAINED_ON: Final = "trained_on"


def person_digest(name: str) -> str:
    """A digest for a person in a model folder, because names are not stored with the weights."""
    return hashlib.sha256(name.encode()).hexdigest()[:16]


def people_digests(indexes: Iterable[Index]) -> list[str]:
    """Sorted digests of all people in `indexes`."""
    return sorted(map(person_digest, {name for index in indexes for s in index.samples for name in s.participants}))


def trained_on(info: Mapping[str, Any]) -> set[str] | None:
    """The digests of the people a model was trained on; None when its folder does not list them."""
    told = info.get(TRAINED_ON)
    return set(told) if isinstance(told, list) and all(isinstance(person, str) for person in told) else None


def with_earlier_people(info: Mapping[str, Any], start: Mapping[str, Any] | None) -> dict[str, Any]:
    """`info` of a model that started from another (`start`), with that model's people added.

    If these are unknown, the list is removed: people missing from it would count as held out.
    """
    if start is None:
        return dict(info)
    earlier = trained_on(start)
    if earlier is None:
        return {key: value for key, value in info.items() if key != TRAINED_ON}
    return {**info, TRAINED_ON: sorted({*info.get(TRAINED_ON, ()), *earlier})}


@dataclass(frozen=True)
class HeldOut:
    """Whether a split's people were in the training data: `known` is "held out", "training data" or "unknown"; `text`
    is a sentence about it.
    """

    known: str
    text: str

    @staticmethod
    def of(index: Index, models: Mapping[str, Mapping[str, Any]], limit: int | None = None) -> HeldOut:
        """Check the first `limit` conversations of `index` against model folders {name: content of model.json}."""
        people = {name for sample in index.samples[:limit] for name in sample.participants}
        silent = [name for name, info in models.items() if trained_on(info) is None]
        for name, info in models.items():
            trained = trained_on(info) or set()
            if seen := [person for person in people if person_digest(person) in trained]:
                which = (
                    f"{len(seen)} of the {len(people)} people here" if len(seen) < len(people) else "all people here"
                )
                return HeldOut("training data", f"training data: {which} took part in the training of {name}")
        if silent:
            split = " (this split is called train)" if index.split == "train" else ""
            say = "does not say" if len(silent) == 1 else "do not say"
            return HeldOut("unknown", f"unknown whether held out{split}: {', '.join(silent)} {say} who was trained on")
        return HeldOut("held out", f"held out: none of the {len(people)} people here was trained on")


def drawn(index: Index, limit: int | None = None) -> bool:
    """Whether the first `limit` conversations are all synthetic; the shipped tracker reads no other faces."""
    reader = ShardReader(index)
    metas = (reader.read_meta(i) for i in range(len(index.samples[:limit])))
    return all(meta.separation == "synthetic" and "seed" in meta.extra for meta in metas)
