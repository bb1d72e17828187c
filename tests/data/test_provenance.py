"""What a model folder says about the people it was trained on, and what follows for a split."""

from __future__ import annotations

import json

import pytest

from af.data.index import Index
from af.data.provenance import TRAINED_ON, HeldOut, drawn, person_digest, with_earlier_people
from af.data.shards import ShardReader


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
    info = {"stage": "x", TRAINED_ON: ["b"]}
    assert with_earlier_people(info, None) == info
    for known, expected in (({TRAINED_ON: ["a"]}, {**info, TRAINED_ON: ["a", "b"]}), ({}, {"stage": "x"})):
        assert with_earlier_people(info, known) == expected


def test_drawn_people_are_known_by_their_description(latents, filmed):
    assert drawn(Index.load(latents / "test"))
    assert not drawn(Index.load(filmed / "test"))
    assert ShardReader(filmed / "test").read_meta(0).separation == "tracks"
