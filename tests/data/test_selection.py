"""Clips are selected by conditions on their measures; nothing but a condition is accepted, nothing unknown passes."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from af.data.contents import stats
from af.data.index import INDEX_NAME, Index, build_index
from af.data.planned import PlannedReader, WindowSource
from af.data.selection import MEASURES, Keep, selected
from af.data.shards import write_shard
from af.data.stream import StreamReader
from af.errors import UserError
from tests.toy_shards import members, meta

SHARP = {"sharpness": 50.0, "face_px": 200.0}


def test_conditions_are_python_comparisons():
    values = {"face_px": 160, "sharpness": 41.5, "side_lag": -0.2}
    for text in (
        "face_px >= 160 and sharpness > 40",
        "100 < face_px <= 160",
        "not sharpness < 40 or face_px == 3",
        "side_lag > -.3",
        "face_px != 1 and (sharpness < 0 or sharpness > 0)",
    ):
        assert Keep(text)(values) is True
        assert Keep(f"not ({text})")(values) is False


@given(a=st.sampled_from([None, 0.0, 1.0]), b=st.sampled_from([None, 0.0, 1.0]))
def test_a_missing_value_decides_only_where_its_value_could_not(a, b):
    """Whatever the missing values were, a condition that is said to hold or to fail does."""
    values = {"face_px": a, "sharpness": b}
    for text in (
        "face_px > 0 and sharpness > 0",
        "face_px > 0 or sharpness > 0",
        "not (face_px > 0 and sharpness > 0)",
    ):
        keep = Keep(text)
        possible = {
            keep({"face_px": x, "sharpness": y})
            for x in ([0.0, 1.0] if a is None else [a])
            for y in ([0.0, 1.0] if b is None else [b])
        }
        assert keep(values) is (possible.pop() if len(possible) == 1 else None)
    assert Keep("face_px == face_px")({"face_px": float("nan")}) is None


@pytest.mark.parametrize(
    "text",
    [
        "", "face_px", "3", "face_px >= 160 &", "face_px + 1 > 2", "__import__('os').system('true') == 0", "face_px.real > 2",
        "(lambda: 1)() < 2", "[1][0] < face_px", "'a' < face_px", "True < face_px", "face_px is 3", "face_px in 3",
        "face_px > 3 if sharpness > 1 else face_px > 4", "x := 3", "not face_px", "face_px > (sharpness > 3)", "\0", "(" * 5000, "not " * 9000 + "face_px > 3",
    ],
)  # fmt: skip
def test_nothing_else_is_accepted(text):
    with pytest.raises(UserError, match="condition"):
        Keep(text)


def test_unknown_names_answer_with_the_nearest():
    with pytest.raises(UserError, match=r"data.keep=.*unknown sharpnes; did you mean sharpness\?"):
        Keep("sharpnes > 3", "data.keep")


def test_both_people_must_meet_a_condition():
    keep = Keep("sharpness > 40 and seconds >= 2")
    assert keep.objection({"a": SHARP, "b": SHARP}, 2.0) is None
    assert keep.objection({"a": SHARP, "b": {"sharpness": 3.0}}, 2.0) == (
        "b: not sharpness > 40 and seconds >= 2 (sharpness 3, seconds 2)"
    )
    assert "sharpness unknown" in str(keep.objection({"a": {}, "b": SHARP}, 2.0))
    assert keep.objection({"a": SHARP}, 2.0) is None  # alone


@pytest.fixture
def folder(tmp_path):
    """Shards of two clips each, of which the first is sharp."""
    folder = tmp_path / "train"
    for shard in range(2):
        quality = [{"a": SHARP, "b": SHARP}, {"a": SHARP, "b": {**SHARP, "sharpness": None}}]
        write_shard(
            folder / f"{shard}.tar",
            (
                (f"{n:06d}", meta(n, 30, 32, "train", quality=quality[n % 2]), members(n, 30, 32, video=False))
                for n in (2 * shard, 2 * shard + 1)
            ),
        )
    build_index(folder)
    return folder


def test_readers_give_only_selected_clips(folder):
    index, line = selected(Index.load(folder), Keep("sharpness > 40", "data.keep"))
    assert [s.key for s in index.samples] == ["000000", "000002"]
    assert "2 of 4 clips are kept by data.keep='sharpness > 40' (2 unknown)" in line
    source = WindowSource([index], [1.0], frames=10)
    for reader in (PlannedReader(), StreamReader(buffer=4)):
        batches = list(islice(reader.loader(source, batch_size=4, rank=0, world=1, workers=0), 6))
        assert {int(v) // 1000 for batch in batches for v in batch.avatar_motion[:, 0, 0]} == {0, 2}


def test_nothing_left_is_an_error_that_says_why(folder):
    index = Index.load(folder)
    with pytest.raises(UserError, match="0 of 4 clips"):
        selected(index, Keep("face_px > 1000"))
    old = replace(index, samples=tuple(replace(s, quality={}) for s in index.samples))
    with pytest.raises(UserError, match="without measures need `af ingest` again"):
        selected(old, Keep("face_px > 1"))


def test_measures_are_in_the_index_and_counted(folder):
    assert Index.load(folder).samples[1].quality["b"] == {**SHARP, "sharpness": None}
    (found,) = stats(folder)
    assert found.measures == {"face_px": (200, 200, 200, 0), "sharpness": (50, 50, 50, 2)}
    assert set(found.measures) <= set(MEASURES)


def test_an_index_with_other_measures_is_refused(folder):
    file = folder / INDEX_NAME
    described = json.loads(file.read_text())
    described["entries"][0]["quality"]["a"]["sharpness"] = "50"
    file.write_text(json.dumps(described))
    with pytest.raises(UserError, match="measures that are no numbers"):
        Index.load(folder)
