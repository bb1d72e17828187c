"""What a model folder says about the people it was trained on, and what follows for a split."""

from __future__ import annotations

import json
import shutil

import pytest

from af.data.index import Index, build_index
from af.data.provenance import (
    SOURCES,
    TRAINED_ON,
    UNRECORDED,
    HeldOut,
    data_sources,
    drawn,
    non_commercial,
    person_digest,
    sources_of,
    with_earlier,
)
from af.data.shards import ShardReader
from af.files import write_json


@pytest.fixture(scope="module")
def told(latents):
    """What the data of a training tell."""
    from af.models.speech import LogMel
    from af.training.datamodule import PairData, WindowData

    windows = {"window_frames": 20, "block_frames": 5, "features": LogMel(block_frames=5, window_frames=20)}
    return PairData(latents).provenance(), WindowData(latents, **windows).provenance()


def test_people_of_the_training_split_are_recorded_without_their_names(told, latents):
    people = {name for sample in Index.load(latents / "train").samples for name in sample.participants}
    for info in told:
        assert set(info[TRAINED_ON]) == set(map(person_digest, people))
        assert not any(name in json.dumps(info[TRAINED_ON]) for name in people)


def test_a_split_is_held_out_only_where_every_model_says_so(told, latents):
    models = dict(zip(("autoencoder", "denoiser"), told, strict=True))
    train, test = Index.load(latents / "train"), Index.load(latents / "test")
    assert HeldOut.of(test, models).known == "held out"
    assert HeldOut.of(train, models).known == "training data"
    for said in (None, 7, "ab", [1], [["a"]], {}):
        assert HeldOut.of(test, {**models, "changed one": {TRAINED_ON: said}}).known == "unknown"
    unknown = HeldOut.of(test, {**models, "old one": {}})
    assert unknown.known == "unknown"
    assert "old one" in unknown.text
    assert HeldOut.of(train, {"old one": {}, **models}).known == "training data"
    some = {"denoiser": {TRAINED_ON: [person_digest(test.samples[1].participants[0])]}}
    assert HeldOut.of(test, some, limit=1).known == "held out"
    assert f"1 of the {2 * len(test.samples)} people" in HeldOut.of(test, some).text


def test_people_of_an_earlier_training_count_and_unknown_ones_stay_unknown():
    source = {**UNRECORDED, "dataset": "ours", "licence": "MIT", "frames": 9}
    info = {"stage": "x", TRAINED_ON: ["b"], SOURCES: [source]}
    assert with_earlier(info, None) == info
    earlier = {TRAINED_ON: ["a"], SOURCES: [{**source, "frames": 3}]}
    assert with_earlier(info, earlier) == {**info, TRAINED_ON: ["a", "b"]}
    assert with_earlier(info, {}) == {"stage": "x", SOURCES: [source, dict(UNRECORDED)]}


@pytest.mark.parametrize("said", [None, [], "CC0", [7], [{"licence": None}]])
def test_sources_that_cannot_be_read_are_unrecorded(said):
    (source,) = sources_of({SOURCES: said})
    assert source["dataset"] == "unknown"


def test_drawn_people_are_known_by_their_description(latents, filmed):
    assert drawn(Index.load(latents / "test"))
    assert not drawn(Index.load(filmed / "test"))
    assert ShardReader(filmed / "test").read_meta(0).separation == "tracks"


@pytest.mark.parametrize(
    ("licence", "free"),
    [("CC-BY-NC-4.0", False), ("cc-by-nc-sa-4.0", False), ("CC BY-NC 4.0", False), ("non-commercial research", False), ("research use only", False),
     ("Apache-2.0", True), ("CC0-1.0", True), ("MIT", True), ("unknown", True)],
)  # fmt: skip
def test_licences_that_forbid_commerce_are_known_by_their_words(licence, free):
    assert non_commercial(licence) is not free


def test_shards_tell_their_sources_and_old_indexes_are_made_again(dyads, tmp_path):
    train = shutil.copytree(dyads / "train", tmp_path / "train")
    index = Index.load(train)
    known = {"dataset": "synthetic", "licence": "CC0-1.0", "consent": "shows no real people"}
    drawn_people = [{**known, "frames": index.frames}]
    assert data_sources([index]) == drawn_people
    old = json.loads((train / "index.json").read_text())
    for shard in old["shards"]:
        del shard["sources"]
    write_json(train / "index.json", old, indent=None)
    assert data_sources([Index.load(train)]) == [{**UNRECORDED, "frames": index.frames}]
    assert data_sources([build_index(train)]) == drawn_people
