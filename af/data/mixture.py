"""Mixtures of data sets: joined indexes and plans interleaved by weight.

Positions are divided into rounds of 1,000. Each round has every set's share, to the nearest thousandth, in an order
hashed from (seed, round); each set follows its own plan at its own pace. The sample at a position depends only on seed
and weights, as with a single set, so a run can resume anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np

from af.data.index import Index
from af.data.plan import EndlessPlan, Item, Plan, kept, mix_array
from af.data.stores import Location, location
from af.errors import UserError
from af.specs import is_number

ROUND: Final = 1000
_ORDER: Final = 5
_ROUNDS_KEPT: Final = 4

#: One location, or several with weights: {place: weight}, or [{root: place, weight: number}, ...].
Root = str | Location | Mapping[str, float] | Sequence[Mapping[str, Any]]


def roots(root: Root | None) -> dict[Location, float]:
    """The locations and weights in `data.root`. Raises `UserError` unless it is a `Root` with weights > 0."""
    if not isinstance(root, str | Location | Mapping | Sequence) or (not isinstance(root, Location) and not root):
        raise UserError("data.root: set the location of the shards: a folder, a URL, or several of them with weights")
    if isinstance(root, (str, Location)):
        return {location(root): 1.0}
    forms = "{FOLDER: WEIGHT, ...} or, with URLs on a command line, [{root: URL, weight: WEIGHT}, ...]"
    entries: Any = [{"root": k, "weight": w} for k, w in root.items()] if isinstance(root, Mapping) else root
    found: dict[Location, float] = {}
    for entry in entries:
        if not isinstance(entry, Mapping) or set(entry) != {"root", "weight"}:
            raise UserError(f"data.root: {entry!r} in a list; expected {forms}")
        place, weight = entry["root"], entry["weight"]
        if not is_number(weight) or weight <= 0:
            raise UserError(f"data.root: weight {weight!r} of {place}; expected a positive number, as in {forms}")
        if location(place) in found:
            raise UserError(f"data.root: {place} occurs twice")
        found[location(place)] = float(weight)
    return found


def joined(indexes: Sequence[Index]) -> Index:
    """All samples, in order, as one index. Raises `UserError`, naming the folders, when specs or image sizes differ.

    A spec missing in some sets is missing in the joined index.
    """
    first = indexes[0]
    if len(indexes) == 1:
        return first
    for other in indexes[1:]:
        require_alike(first, other)
    offset, samples = 0, []
    for index in indexes:
        samples += [replace(s, shard=s.shard + offset) for s in index.samples]
        offset += len(index.shards)
    names = dict.fromkeys(name for index in indexes for name in index.specs)
    common = {
        n: first.specs.get(n) if all(i.specs.get(n) == first.specs.get(n) for i in indexes) else None for n in names
    }
    return replace(
        first,
        shards=tuple(s for i in indexes for s in i.shards),
        samples=tuple(samples),
        specs=common,
        homes=tuple(i.path(n).parent for i in indexes for n in range(len(i.shards))),
    )


def require_alike(first: Index, other: Index, *, faces: bool = False) -> None:
    """Raise `UserError`, naming both folders, unless image sizes and feature specs agree, and with `faces` also the
    layouts of face parameters.
    """
    remedy = "Join only compatible sets: encode them with the same autoencoder and features (af encode)."
    if first.image_size != other.image_size:
        sizes = f"images of {first.image_size} pixels, {other.folder} of {other.image_size}"
        raise UserError(f"{first.folder} has {sizes}; they do not go together. {remedy}")
    for name in dict.fromkeys([*first.specs, *other.specs]):
        mine, theirs = first.specs.get(name), other.specs.get(name)
        if mine == theirs or (name == "face" and not faces and not (mine and theirs)):
            continue
        if mine is None or theirs is None:
            has, lacks = (first, other) if theirs is None else (other, first)
            fault = f"{has.folder} has {name} features, {lacks.folder} has none"
        else:
            different = [k for k in {**mine, **theirs} if mine.get(k) != theirs.get(k)]
            values = ", ".join(f"{k}: {mine.get(k)!r} and {theirs.get(k)!r}" for k in different)
            fault = f"{first.folder} and {other.folder} differ in {name} ({values})"
        raise UserError(f"{fault}; they do not go together. {remedy}")


class MixedPlan(Plan[Item]):
    """Plans of several sets, interleaved by weight; items refer to samples of the `joined` index.

    Raises `UserError` for weights too small for a position per round.
    """

    def __init__(self, plans: Sequence[EndlessPlan[Item]], weights: Sequence[float], *, seed: int) -> None:
        if len(plans) != len(weights) or not plans:
            raise ValueError(f"{len(plans)} plans and {len(weights)} weights")
        self.plans: Sequence[EndlessPlan[Item]] = plans
        self.seed = seed
        self.shares = _shares(weights)
        for plan, share in zip(plans, self.shares, strict=True):
            if share == 0:
                raise UserError(
                    f"data.root: the weight of {plan.index.folder} is less than 1/{ROUND} of all; leave it out"
                )
        self._offsets = np.cumsum([0, *(len(plan.index.samples) for plan in plans)])[:-1]
        self._rounds: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def item(self, position: int) -> Item:
        """The item at `position` >= 0."""
        turn, within = divmod(position, ROUND)
        owners, ranks = kept(self._rounds, turn, lambda: self._round(turn), _ROUNDS_KEPT)
        owner = int(owners[within])
        item = self.plans[owner].item(turn * self.shares[owner] + int(ranks[within]))
        return replace(item, position=position, sample=item.sample + int(self._offsets[owner]))

    def _round(self, turn: int) -> tuple[np.ndarray, np.ndarray]:
        """For each position of a round: its set, and how many earlier positions of the round that set has."""
        order = np.argsort(mix_array(self.seed, turn, _ORDER, last=np.arange(ROUND)), kind="stable")
        owners = np.repeat(np.arange(len(self.shares)), self.shares)[order]
        ranks = np.empty(ROUND, np.int64)
        for n, share in enumerate(self.shares):
            ranks[owners == n] = np.arange(share)
        return owners, ranks


def _shares(weights: Sequence[float]) -> list[int]:
    """Positions per round for each weight: rounded down, with the rest given to the largest remainders."""
    exact = np.asarray(weights, np.float64) / np.sum(weights) * ROUND
    shares = np.floor(exact + 1e-9).astype(np.int64)
    for n in np.argsort(shares - exact, kind="stable")[: ROUND - int(shares.sum())]:
        shares[n] += 1
    return [int(s) for s in shares]
