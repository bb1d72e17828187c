"""No person is in two splits, and the shares are about right."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from af.data.schema import groups_of_people
from af.data.validate import validate
from af.ingest.sources import Source
from af.ingest.splits import assign_splits
from tests.ingest.test_ingest import ingest, pair
from tests.toy_videos import disc_video


def people(a: str, b: str, split: str | None = None) -> Source:
    return Source(a=f"/{a}-{b}-1", b=f"/{a}-{b}-2", participant_a=a, participant_b=b, split=split)


pairs_of_people = st.lists(
    st.tuples(st.integers(0, 30), st.integers(0, 30)).filter(lambda p: p[0] != p[1]),
    min_size=1,
    max_size=25,
    unique=True,
)


@settings(deadline=None)
@given(pairs_of_people, st.integers(0, 25))
def test_no_person_is_in_two_splits(pairs, earlier):
    """Also when the second half comes in a later run."""
    sources = [people(f"p{a}", f"p{b}") for a, b in pairs]
    fractions = (0.5, 0.25, 0.25)
    home: dict[str, str] = {}
    for batch in (sources[:earlier], sources):
        placed = assign_splits(batch, split="train", fractions=fractions, assigned=dict(home))
        for source, (where, objection) in zip(batch, placed, strict=True):
            if objection is None:
                for person in source.participants:
                    assert home.setdefault(person, where) == where
            else:
                assert any(home.get(p, where) != where for p in source.participants)
    groups = groups_of_people([s.participants for s in sources])
    assert all(groups[a] == groups[b] for a, b in (s.participants for s in sources))


def test_shares_are_about_right_and_fixed():
    sources = [people(f"a{n}", f"b{n}") for n in range(600)]
    placed = [w for w, _ in assign_splits(sources, split="train", fractions=(0.8, 0.1, 0.1), assigned={})]
    assert 440 < placed.count("train") < 520
    assert 30 < placed.count("val") < 90
    backwards = assign_splits(sources[::-1], split="train", fractions=(0.8, 0.1, 0.1), assigned={})
    assert [w for w, _ in backwards][::-1] == placed
    assert {w for w, _ in assign_splits(sources, split="train", fractions=(0, 1, 0), assigned={})} == {"val"}


def test_a_person_of_another_split_is_refused(tmp_path):
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        disc_video(tmp_path / name, 60)
    first = pair(tmp_path, participant_a="ann", participant_b="bob")
    ingest(tmp_path / "out", first)
    second = pair(tmp_path, "b.mp4", "c.mp4", participant_a="bob", participant_b="cy")
    report = ingest(tmp_path / "out", second, split="val")
    assert report.outcomes[0].reason == "identity_overlap"
    assert "'bob' is already in split train" in report.outcomes[0].line
    by_hash = ingest(tmp_path / "out", first, second, fractions=(0.0, 0.5, 0.5))
    assert [o.split for o in by_hash.outcomes] == ["train", "train"]  # bob decides
    assert validate(tmp_path / "out").ok
