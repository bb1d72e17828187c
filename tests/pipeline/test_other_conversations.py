"""The other conversation of a sample is of strangers where there are any, and any of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from af.data.index import Index, SampleEntry
from af.errors import UserError
from af.pipeline.rolling import OtherConversations

BOTH = {"a.mp4": (0, 1), "b.mp4": (1, 1)}


def index_of(samples: list[tuple[str, str, str, bool]]) -> Index:
    entries = tuple(
        SampleEntry(f"k{n}", 0, 100, (a, b), session, {}, BOTH if two_sided else {"a.mp4": (0, 1)})
        for n, (session, a, b, two_sided) in enumerate(samples)
    )
    return Index(Path("there"), "train", (), entries, 64, {})


def nearness(index: Index, i: int, j: int) -> int:
    own, other = index.samples[i], index.samples[j]
    return 2 * (own.session == other.session) + bool(set(own.participants) & set(other.participants))


SAMPLES = st.lists(
    st.tuples(st.sampled_from("stuv"), st.sampled_from("abcdef"), st.sampled_from("abcdef"), st.booleans()), min_size=1
)


@settings(max_examples=200, deadline=None)
@given(SAMPLES, st.integers(0, 5))
def test_it_is_one_of_the_least_near(samples, seed):
    index = index_of(samples)
    others = OtherConversations(index)
    for i in range(len(samples)):
        possible = [j for j, sample in enumerate(samples) if j != i and sample[3]]
        if not possible:
            with pytest.raises(UserError, match="there is only one"):
                others.of(i, seed)
            continue
        found = others.of(i, seed)
        assert found in possible
        assert nearness(index, i, found) == min(nearness(index, i, j) for j in possible)


def test_every_stranger_is_met_by_some_seed():
    index = index_of([("s", "a", "b", True), ("s", "c", "d", True)] + [(f"t{n}", "x", f"y{n}", True) for n in range(6)])
    assert {OtherConversations(index).of(0, seed) for seed in range(200)} == set(range(2, 8))
