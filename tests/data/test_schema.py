from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from af.data.schema import ClipMeta, spans
from af.errors import UserError
from af.specs import FaceSpec, FeatureSpec, MotionSpec, SchemaError, require_spec
from tests.toy_shards import AUDIO, FACE, MOTION, STREAMING, meta


@pytest.mark.parametrize("spec", [AUDIO, STREAMING, MOTION, FACE])
def test_specs_survive_json(spec):
    assert type(spec).from_json(json.loads(json.dumps(spec.to_json()))) == spec


def test_description_survives_json():
    clip = meta(
        3,
        20,
        32,
        "val",
        valid={"a": ((0, 5), (7, 20)), "b": ()},
        crop_boxes={"a": [[1.5, 2.0, 30.0]] * 20},
        source={"a": "some file.mp4"},
        time_range_s=(1.0, 1.8),
        extra={"note": [1, 2]},
    )
    again = ClipMeta.from_json(json.loads(json.dumps(clip.to_json())))
    assert again == clip
    assert again.valid_mask("a").tolist() == [True] * 5 + [False] * 2 + [True] * 13
    assert not again.valid_mask("b").any()


@settings(deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=60))
def test_spans_are_the_mask(mask):
    clip = meta(0, len(mask), 32, "train", valid={"a": spans(np.array(mask)), "b": ()})
    assert clip.valid_mask("a").tolist() == mask


def test_everything_is_valid_unless_said():
    assert meta(0, 7, 32, "train").valid_mask("b").all()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"split": "dev"}, "split"),
        ({"frames": 0}, "frames"),
        ({"frames": True}, "frames"),
        ({"fps": 30}, "fps"),
        ({"sample_rate": 44100}, "sample_rate"),
        ({"schema": 2}, "schema"),
        ({"participants": ["one"]}, "participants"),
        ({"valid": {"a": [[0, 5]], "b": [[4, 99]]}}, "valid.b"),
        ({"valid": {"a": [[5, 2]], "b": []}}, "valid.a"),
        ({"crop_boxes": {"a": [[0, 0, 1]]}}, "crop_boxes.a"),
        ({"nonsense": 1}, "nonsense"),
        ({"motion_spec": {"dim": 6}}, "MotionSpec"),
        ({"time_range_s": [0.0, float("nan")]}, "time_range_s"),
    ],
)
def test_wrong_values_are_refused_by_name(change, named):
    data = {**meta(0, 10, 32, "train").to_json(), **change}
    with pytest.raises(SchemaError, match=named):
        ClipMeta.from_json(data)


def test_missing_values_are_refused_by_name():
    data = meta(0, 10, 32, "train").to_json()
    del data["licence"]
    with pytest.raises(SchemaError, match="licence"):
        ClipMeta.from_json(data)


def test_streaming_needs_its_window():
    with pytest.raises(SchemaError, match="block_frames"):
        FeatureSpec("logmel", "1", 80, "streaming")
    with pytest.raises(SchemaError, match="window_frames"):
        FeatureSpec("logmel", "1", 80, "streaming", block_frames=10, window_frames=5)
    with pytest.raises(SchemaError, match="block_frames"):
        FeatureSpec("logmel", "1", 80, "utterance", block_frames=10)


def test_face_layout_is_checked():
    with pytest.raises(SchemaError, match="expression"):
        FaceSpec(("a", "b"), 3, "t")
    with pytest.raises(SchemaError, match="names"):
        FaceSpec(("a", "a"), 1, "t")


def test_a_model_refuses_other_features_and_says_both():
    require_spec(AUDIO, AUDIO, where="x", remedy="")
    other = dataclasses.replace(MOTION, autoencoder="f" * 64)
    with pytest.raises(UserError, match=r"(?s)shards/train.*autoencoder.*ffff.*0000.*encode again"):
        require_spec(other, MOTION, where="shards/train", remedy="encode again")
    with pytest.raises(UserError, match="no MotionSpec"):
        require_spec(None, MOTION, where="shards/train", remedy="")
    with pytest.raises(UserError, match=r"everything|mode"):
        require_spec(STREAMING, AUDIO, where="shards/train", remedy="")
    assert MotionSpec.from_json(other.to_json()) == other
