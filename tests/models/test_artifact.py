from __future__ import annotations

import json

import pytest
import torch

from af.errors import UserError
from af.models.artifact import build, load_model, save_model
from af.nn.equalized import EqualLinear

CONFIG = {"_target_": "af.nn.equalized.EqualLinear", "inputs": 3, "outputs": 4}


def save(folder):
    return save_model(folder, EqualLinear(3, 4), CONFIG, {"stage": "test"})


def test_a_model_comes_back_with_its_weights_and_its_digest(tmp_path):
    digest = save(tmp_path)
    artifact = load_model(tmp_path)
    assert artifact.digest == digest
    assert artifact.info["stage"] == "test"
    assert not artifact.model.training
    state = EqualLinear(3, 4).state_dict()
    assert artifact.model.state_dict().keys() == state.keys()
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("missing", ["model.json", "model.safetensors"])
def test_a_folder_that_is_no_model_is_named(tmp_path, missing):
    save(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(UserError, match=missing.replace(".", r"\.")):
        load_model(tmp_path)


def test_a_cut_off_weights_file_is_named(tmp_path):
    save(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5])
    with pytest.raises(UserError, match="cannot be read"):
        load_model(tmp_path)


def test_weights_that_do_not_fit_are_refused(tmp_path):
    save(tmp_path)
    info = json.loads((tmp_path / "model.json").read_text())
    info["model"]["outputs"] = 5
    (tmp_path / "model.json").write_text(json.dumps(info))
    with pytest.raises(UserError, match="does not fit"):
        load_model(tmp_path)


def test_only_our_own_classes_are_built_from_a_file():
    with pytest.raises(UserError, match="not part of this package"):
        build({"_target_": "os.system", "command": "true"})


def test_nested_descriptions_are_built_first():
    linear = build(CONFIG)
    assert torch.is_tensor(linear(torch.zeros(1, 3)))
