from __future__ import annotations

import copy
import json
import shutil
import struct
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from af.cli.main import main
from af.errors import UserError
from af.files import sha256_of
from af.models.artifact import load_as, load_model, save_model
from af.models.autoencoder import MotionAutoencoder
from af.models.denoiser import MotionDenoiser
from af.models.motion_space import MotionSpace
from af.models.registry import build
from af.pipeline.avatar import Avatar
from tests.conftest import AUTOENCODER, DENOISER

CONFIG = {
    "_target_": "af.models.motion_space.MotionSpace",
    "kind": "coefficients",
    "latent_dim": 4,
    "directions": 2,
}


def save(folder):
    return save_model(folder, MotionSpace("coefficients", 4, 2), CONFIG, {"stage": "test"})


def edit(folder: Path, change) -> None:
    """model.json after `change(content)`."""
    content = json.loads((folder / "model.json").read_text())
    change(content)
    (folder / "model.json").write_text(json.dumps(content))


def test_a_model_comes_back_with_its_weights_and_its_digest(tmp_path):
    digest = save(tmp_path)
    artifact = load_model(tmp_path)
    assert artifact.digest == digest
    assert artifact.info["stage"] == "test"
    assert not artifact.model.training
    assert artifact.model.state_dict().keys() == MotionSpace("coefficients", 4, 2).state_dict().keys()
    assert not list(tmp_path.glob("*.tmp"))


def test_weights_may_be_stored_in_half_precision_and_in_no_other(tmp_path):
    model = MotionSpace("coefficients", 4, 2)
    model.mean[:] = torch.tensor([1 / 3, 2.0])
    save_model(tmp_path, model, CONFIG, {}, half=True)
    assert {value.dtype for value in load_file(tmp_path / "model.safetensors").values()} == {torch.float16}
    found = load_model(tmp_path).model.mean
    assert found.dtype == torch.float32
    assert found.tolist() == model.mean.half().tolist()
    for kind in (torch.bfloat16, torch.float64, torch.int32):
        state = {name: value.to(kind) for name, value in load_file(tmp_path / "model.safetensors").items()}
        save_file(state, tmp_path / "model.safetensors")
        edit(tmp_path, lambda info: info.update(sha256=sha256_of(tmp_path / "model.safetensors")))
        with pytest.raises(UserError, match="expected float32 or float16"):
            load_model(tmp_path)


@pytest.mark.parametrize("missing", ["model.json", "model.safetensors"])
def test_a_folder_that_is_no_model_is_named(tmp_path, missing):
    save(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(UserError, match=missing.replace(".", r"\.")):
        load_model(tmp_path)


def longer_header(data: bytes) -> bytes:
    return struct.pack("<Q", 2**40) + data[8:]


def another_number(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


WEIGHT_FAULTS = {
    "cut off": (lambda d: d[:-5], "cannot be read as safetensors"),
    "empty": (lambda d: b"", "cannot be read as safetensors"),
    "more than it says": (lambda d: d + b"\0" * 64, "cannot be read as safetensors"),
    "a header beyond the end": (longer_header, "cannot be read as safetensors"),
    "no header": (lambda d: b"\xff" * len(d), "cannot be read as safetensors"),
    "a pickle": (lambda d: b"\x80\x04" + d, "cannot be read as safetensors"),
    "another number": (another_number, "is not the file that model.json describes"),
}


@pytest.mark.parametrize("fault", WEIGHT_FAULTS)
def test_weights_that_are_not_the_ones_written_are_refused(tmp_path, fault):
    save(tmp_path)
    damage, message = WEIGHT_FAULTS[fault]
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(damage(weights.read_bytes()))
    with pytest.raises(UserError, match=message):
        load_model(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named_when_read_and_not_written(tmp_path, value):
    save(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    state["std"][1] = value
    save_file(state, tmp_path / "model.safetensors")
    edit(tmp_path, lambda info: info.update(sha256=sha256_of(tmp_path / "model.safetensors")))
    with pytest.raises(UserError, match="NaN or infinite: std"):
        load_model(tmp_path)
    space = MotionSpace("coefficients", 4, 2)
    space.std[0] = value
    with pytest.raises(UserError, match=r"is not written.*NaN or infinite: std"):
        save_model(tmp_path / "new", space, CONFIG, {})
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("odd", [torch.Tensor.to_sparse, lambda value: value.to(torch.complex64)])
def test_a_checkpoint_of_weights_that_are_no_dense_real_numbers_is_refused(tmp_path, odd):
    state = {f"autoencoder.{name}": odd(value) for name, value in build(AUTOENCODER).state_dict().items()}
    model = {"part": "autoencoder", "config": AUTOENCODER, "info": {}, "averages": []}
    torch.save({"model": model, "state_dict": state, "global_step": 1}, tmp_path / "last.ckpt")
    with pytest.raises(UserError, match="no dense real numbers: "):
        load_model(tmp_path / "last.ckpt")


def test_another_autoencoder_under_a_digest_that_the_denoiser_knows_is_refused(
    tmp_path, autoencoder_folder, denoiser_folder
):
    shutil.copytree(autoencoder_folder, tmp_path / "vae")
    state = load_file(tmp_path / "vae" / "model.safetensors")
    state["direction_weight"] += 0.1
    save_file(state, tmp_path / "vae" / "model.safetensors")
    with pytest.raises(UserError, match=r"not the file that model\.json describes"):
        Avatar.load(tmp_path / "vae", denoiser_folder)
    edit(tmp_path / "vae", lambda info: info.update(sha256=sha256_of(tmp_path / "vae" / "model.safetensors")))
    with pytest.raises(UserError, match="trained on latents from another autoencoder"):
        Avatar.load(tmp_path / "vae", denoiser_folder)


def test_a_model_of_another_kind_is_refused_before_it_is_built(autoencoder_folder, denoiser_folder):
    with pytest.raises(UserError, match="is a MotionAutoencoder, not a motion denoiser"):
        load_as(autoencoder_folder, MotionDenoiser)
    with pytest.raises(UserError, match="is a MotionDenoiser, not a motion autoencoder"):
        Avatar.load(denoiser_folder, denoiser_folder)


# What may be built.

WRITES = {"_target_": "af.files.write_text", "path": "written.txt", "text": "by a model"}
NOT_MODELS = [
    "af.files.write_text",
    "os.system",
    "af.synth.build.build",
    "af.cli.main.main",
    "builtins.eval",
    7,
    None,
]


@pytest.mark.parametrize("target", NOT_MODELS)
def test_only_classes_that_are_registered_are_built_from_a_file(target):
    with pytest.raises(UserError, match="not a class that may be built from a file"):
        build({"_target_": target, "command": "true"})


@pytest.mark.parametrize("place", ["model", "nested", "in a list", "features", "features of a pair", "start"])
def test_a_model_folder_that_would_write_writes_nothing(
    tmp_path, monkeypatch, capsys, place, denoiser_folder, autoencoder_folder, latents
):
    folder = tmp_path / "denoiser"
    shutil.copytree(denoiser_folder, folder)
    changes = {
        "model": lambda info: info.update(model=WRITES),
        "nested": lambda info: info["model"].update(motion_space=WRITES),
        "in a list": lambda info: info["model"].update(motion_space=[WRITES]),
    }
    edit(folder, changes.get(place, lambda info: info.update(features=WRITES)))
    monkeypatch.chdir(tmp_path)
    if place == "start":  # a stage that starts from the model builds its features by configuration
        words = [
            f"start={folder}",
            f"data.root={latents}",
        ]
        assert (
            main(
                [
                    "train",
                    "experiment=preference_demo",
                    "scheme=forcing",
                    "trainer.max_steps=1",
                    f"run={tmp_path / 'run'}",
                    *words,
                ]
            )
            == 1
        )
        assert "may be built from a file" in capsys.readouterr().err
    else:
        with pytest.raises(UserError, match="not a class that may be built from a file"):
            load_model(folder) if place != "features of a pair" else Avatar.load(autoencoder_folder, folder)
    assert not (tmp_path / "written.txt").exists()


@pytest.mark.parametrize("key", ["_args_", "_partial_", "_recursive_"])
def test_a_description_says_a_class_and_plain_values_alone(tmp_path, key):
    with pytest.raises(UserError, match=f"{key} is not allowed"):
        build({**CONFIG, key: True})
    with pytest.raises(UserError, match="not a plain value"):
        build({**CONFIG, "kind": "${oc.env:HOME}"})


def test_an_installed_package_says_what_may_be_built_of_its_own(tmp_path, monkeypatch):
    (tmp_path / "theirs_af.py").write_text(
        "from torch import nn\nclass Mine(nn.Linear):\n    pass\nclass Other(nn.Linear):\n    pass\n"
    )
    about = tmp_path / "theirs_af-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs-af\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[af.models]\nmine = theirs_af:Mine\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "theirs_af", raising=False)
    config = {"_target_": "theirs_af.Mine", "in_features": 2, "out_features": 3}
    with pytest.raises(UserError, match="may be built"):
        build({**config, "_target_": "theirs_af.Other"})
    assert "theirs_af" not in sys.modules  # nothing that is not registered is even imported
    save_model(tmp_path / "model", build(config), config, {})
    assert isinstance(load_model(tmp_path / "model").model, nn.Linear)


# model.json, changed in every place.

ABSURD = [None, [], "x", -1, 0, 10**9, 2.5, WRITES]


def places(value, path=()):
    """The path of every key of nested objects."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield (*path, key)
            yield from places(part, (*path, key))


def changed(content: dict, path: tuple, value) -> dict:
    content = copy.deepcopy(content)
    inner = content
    for key in path[:-1]:
        inner = inner[key]
    if value is KeyError:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return content


def loads_or_says_why(load, folder: Path, content) -> None:
    (folder / "model.json").write_text(content if isinstance(content, str) else json.dumps(content))
    try:
        load()
    except UserError as error:
        text = str(error)
    else:
        return
    assert len(text) < 2000, text
    assert str(folder) in text, text


@pytest.mark.parametrize("which", ["vae", "denoiser"])
def test_whatever_stands_in_a_description_is_a_model_or_one_error(
    tmp_path, monkeypatch, which, autoencoder_folder, denoiser_folder
):
    monkeypatch.chdir(tmp_path)
    folder, images = tmp_path / which, load_model(autoencoder_folder)
    shutil.copytree({"vae": autoencoder_folder, "denoiser": denoiser_folder}[which], folder)
    whole = json.loads((folder / "model.json").read_text())

    def load() -> None:
        if which == "vae":
            Avatar.of(load_model(folder, MotionAutoencoder), load_model(denoiser_folder))
        else:
            Avatar.of(images, load_model(folder, MotionDenoiser))

    before = torch.get_rng_state()
    for path in places(whole):
        for value in (*ABSURD, KeyError):
            loads_or_says_why(load, folder, changed(whole, path, value))
    for text in ("", "null", "[]", "{}", '{"format": 1}', "{", "NaN", "[" * 10**5, '"x"', "\0", "9" * 10**4):
        loads_or_says_why(load, folder, text)
    (folder / "model.json").write_text(json.dumps(whole))
    load()
    torch.set_rng_state(before)
    assert not (tmp_path / "written.txt").exists()


@pytest.mark.parametrize(
    ("base", "absurd"),
    [
        (DENOISER, {"depth": 10**9}),
        (DENOISER, {"hidden": 2**40, "heads": 2}),
        (DENOISER, {"audio_feature_dim": 10**12}),
        (AUTOENCODER, {"motion_layers": 10**9}),
        (AUTOENCODER, {"image_size": 2**40, "channel_base": 2**41}),
        (AUTOENCODER, {"latent_dim": 10**9}),
        (DENOISER, {"window_frames": 10**9}),
    ],
)
def test_a_size_that_the_weights_do_not_have_is_refused_before_memory_is_taken(tmp_path, base, absurd):
    import resource

    save_model(tmp_path, build(base), base, {})
    edit(tmp_path, lambda info: info["model"].update(absurd))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=r"larger than the weights|at most|does not fit the weights|cannot be built"):
        load_model(tmp_path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


def test_an_autoencoder_comes_back_in_the_memory_layout_it_is_built_in(autoencoder_folder):
    model, _ = load_as(autoencoder_folder, MotionAutoencoder)
    wanted = {name: p.stride() for name, p in build(AUTOENCODER).named_parameters()}
    assert {name: p.stride() for name, p in model.named_parameters()} == wanted


# Other files that a program builds something from.


def test_what_a_configuration_takes_from_a_model_folder_is_checked_too(tmp_path, denoiser_folder, monkeypatch):
    from af.cli.config import compose, resolve

    shutil.copytree(denoiser_folder, tmp_path / "model")
    for value in (WRITES, {"path": "${oc.env:HOME}"}, None):
        edit(tmp_path / "model", lambda info, value=value: info.update(motion_spec=value))
        with pytest.raises(UserError, match="motion_spec"):
            resolve(
                compose(
                    "train",
                    ["experiment=preference_demo", "scheme=forcing", f"start={tmp_path / 'model'}", "data.root=x"],
                )
            )


STATISTICS = {"mean": torch.zeros(2), "covariance": torch.eye(2), "basis": torch.eye(4, 2)}


@pytest.mark.parametrize(
    "change",
    [
        {"mean": torch.full((2,), torch.nan)},
        {"covariance": torch.full((2, 2), torch.inf)},
        {"covariance": -torch.eye(2)},
        {"basis": torch.zeros(4, 3)},
        {"basis": torch.zeros(2)},
        {"more": torch.zeros(1)},
    ],
)
def test_motion_statistics_that_are_no_statistics_are_refused(tmp_path, change):
    from af.pipeline.encode import STATISTICS_NAME, read_statistics

    file = tmp_path / STATISTICS_NAME
    save_file(STATISTICS, file)
    assert read_statistics(tmp_path).basis.equal(STATISTICS["basis"])
    older = {"mean": torch.zeros(2), "std": torch.ones(2), "basis": torch.eye(4, 2)}
    save_file(older, file)
    assert read_statistics(tmp_path).covariance.equal(STATISTICS["covariance"])
    save_file({**older, "covariance": torch.eye(2)}, file)
    with pytest.raises(UserError, match=STATISTICS_NAME):
        read_statistics(tmp_path)
    save_file({**STATISTICS, **change}, file)
    with pytest.raises(UserError, match=STATISTICS_NAME):
        read_statistics(tmp_path)
    file.write_bytes(b"cut")
    with pytest.raises(UserError, match=STATISTICS_NAME):
        read_statistics(tmp_path)


@pytest.mark.parametrize("change", ["nan", "names", "expression", "version"])
def test_a_tracker_that_was_changed_is_refused(tmp_path, change):
    from safetensors import safe_open

    from af.models.tracker import load_tracker, shipped_weights

    state = load_file(shipped_weights())
    with safe_open(shipped_weights(), framework="pt") as file:
        about = dict(file.metadata())
    if change == "nan":
        state["centre"][0] = torch.nan
    else:
        about[change] = "null"
        about.pop("version")
    save_file(state, tmp_path / "tracker.safetensors", about)
    with pytest.raises(UserError, match=r"tracker\.safetensors"):
        load_tracker(tmp_path / "tracker.safetensors")
