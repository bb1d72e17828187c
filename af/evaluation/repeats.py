"""Clips that are there twice, or held against themselves: found by content, whatever they are called."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Final

import numpy as np

from af.evaluation.clips import EvaluationClip, partners

#: What a clip is made of, in words.
PARTS: Final = {
    "user": "user", "true": "true avatar", "generated": "generated avatar", "avatar_audio": "avatar's voice",
    "user_audio": "user's voice",
}  # fmt: skip

#: Digests of each part of each clip: two parts are one when they share any.
Digests = Mapping[str, Mapping[str, Collection[str]]]


def digest(array: np.ndarray) -> str:
    """What stands for the content of an array: its shape, type and bytes."""
    array = np.ascontiguousarray(array)
    return hashlib.blake2b(f"{array.shape} {array.dtype}".encode() + array.tobytes(), digest_size=16).hexdigest()


def digests_of(clip: EvaluationClip) -> dict[str, list[str]]:
    """Of the face parameters and voices of a clip."""
    return {part: [digest(values)] for part in PARTS if (values := getattr(clip, part)) is not None}


def repeats(clips: Digests) -> dict[str, list[str]]:
    """{clip: remarks} on parts that are the same within a clip, or as in a clip before it."""
    remarks: dict[str, list[str]] = {}
    first: dict[str, tuple[str, str]] = {}
    for name, parts in clips.items():
        said = remarks.setdefault(name, [])
        for one, other in combinations(parts, 2):
            if set(parts[one]) & set(parts[other]):
                said.append(
                    f"the {PARTS[one]} and the {PARTS[other]} are the same: held against itself, anything is perfect"
                )
        shared: dict[str, list[str]] = {}
        for part, digests in parts.items():
            where = next((first[d] for d in digests if d in first and first[d][0] != name), None)
            if where is not None:
                words = PARTS[part] if where[1] == part else f"{PARTS[part]} (there the {PARTS[where[1]]})"
                shared.setdefault(where[0], []).append(words)
            for d in digests:
                first.setdefault(d, (name, part))
        said += [
            f"not another sample than clip {other}: the same {', '.join(words)}" for other, words in shared.items()
        ]
    return {name: said for name, said in remarks.items() if said}


def kept_apart(clips: Sequence[EvaluationClip], digests: Digests) -> tuple[list[EvaluationClip], dict[str, list[str]]]:
    """The clips with one identity (session) for those of one true avatar (user), so that no null pairs a clip with
    itself under another name and no interval counts it as two; and remarks on clips whose null is the truth all the same.
    """
    identity: dict[str, str] = {}
    session: dict[str, str] = {}
    found = []
    for clip in clips:
        parts = digests.get(clip.name, {})
        people, users = parts.get("true", ()), [*parts.get("user", ()), *parts.get("true", ())]
        own = next((identity[d] for d in people if d in identity), clip.identity)
        met = next((session[d] for d in users if d in session), clip.session or clip.name)
        identity |= dict.fromkeys(people, own)
        session |= dict.fromkeys(users, met)
        found.append(replace(clip, identity=own, session=met))
    paired = partners(found)
    remarks = {}
    for i, clip in enumerate(found if paired is not None else ()):
        assert paired is not None
        other = found[paired[i]]
        if np.array_equal(clip.user, other.user):
            remarks[clip.name] = [
                f"its null is the truth: the user of {other.name}, the only one left to pair it with, is the same"
            ]
    return found, remarks
