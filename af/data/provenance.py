"""Provenance: whether conversations are synthetic or filmed, on whose people and by which licences a model was trained."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from af.data.index import Index
from af.data.schema import UNKNOWN
from af.data.shards import ShardReader

#: Key in model.json of the people the model was trained on.
TRAINED_ON: Final = "trained_on"
#: Key in model.json of the data sets it was trained on, with licence and consent as the shards record them.
SOURCES: Final = "sources"
#: Stands for data of which nothing is recorded.
UNRECORDED: Final[Mapping[str, Any]] = {"dataset": UNKNOWN, "licence": UNKNOWN, "consent": UNKNOWN, "frames": 0}


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


def data_sources(indexes: Iterable[Index]) -> list[dict[str, Any]]:
    """The data sets in `indexes`: `dataset`, `licence`, `consent` and `frames` of each."""
    found: dict[tuple[str, str, str], int] = {}
    for shard in (shard for index in indexes for shard in index.shards):
        for source in shard.sources or [{**UNRECORDED, "frames": shard.frames}]:
            found[_source(source)] = found.get(_source(source), 0) + source["frames"]
    return _listed(found)


def sources_of(*infos: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The data sets that models (content of model.json) were trained on; `UNRECORDED` is one of them if a model does not
    say all of it. Data that several were trained on count once.
    """
    found: dict[tuple[str, str, str], int] = {}
    for info in infos:
        told = info.get(SOURCES)
        for source in told if isinstance(told, list) and told else [UNRECORDED]:
            known = {**UNRECORDED, **source} if isinstance(source, Mapping) else UNRECORDED
            frames = known["frames"] if isinstance(known["frames"], int) else 0
            found[_source(known)] = max(found.get(_source(known), 0), frames)
    return _listed(found)


def non_commercial(licence: str) -> bool:
    """Whether a licence, by its name or its words, forbids commercial use."""
    return re.search(r"\bnc\b|non-?\s?commercial|research[- ](use[- ])?only", licence, re.IGNORECASE) is not None


def _source(source: Mapping[str, Any]) -> tuple[str, str, str]:
    return str(source["dataset"]), str(source["licence"]), str(source["consent"])


def _listed(found: Mapping[tuple[str, str, str], int]) -> list[dict[str, Any]]:
    return [dict(zip(UNRECORDED, (*source, frames), strict=True)) for source, frames in sorted(found.items())]


def with_earlier(info: Mapping[str, Any], start: Mapping[str, Any] | None) -> dict[str, Any]:
    """`info` of a model that started from another (`start`), with that model's people and data sets added.

    If its people are unknown, the list is removed: people missing from it would count as held out.
    """
    if start is None:
        return dict(info)
    earlier, both = trained_on(start), {**info, SOURCES: sources_of(start, info)}
    if earlier is None:
        return {key: value for key, value in both.items() if key != TRAINED_ON}
    return {**both, TRAINED_ON: sorted({*info.get(TRAINED_ON, ()), *earlier})}


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
