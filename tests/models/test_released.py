from __future__ import annotations

import json

import pytest
import torch

from af.cli.main import main
from af.errors import UserError
from af.models.artifact import build, load_model
from af.models.denoiser import MotionDenoiser
from af.models.released import read_released
from af.models.released.denoiser import ReleasedSizes, read_denoiser, released_key
from af.models.released.files import read_state
from af.types import Condition

SMALL = ReleasedSizes(dim=6, hidden=16, depth=2, heads=2, condition_dim=8, condition_heads=2, audio_feature_dim=10)


@pytest.fixture
def state(generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Random weights in the released layout at a small size."""
    ours = build(SMALL.config()).state_dict()
    return {released_key(k): torch.randn(v.shape, generator=generator) for k, v in ours.items()}


def test_layout_is_the_released_one_at_its_size(shared_folder) -> None:
    keys = json.loads((shared_folder / "released" / "keys.json").read_text())["flow_transformer.pth"]
    with torch.device("meta"):
        ours = build(ReleasedSizes().config()).state_dict()
    assert {released_key(key): list(value.shape) for key, value in ours.items()} == keys


def test_weights_land_and_the_sign_turns(state) -> None:
    denoiser = read_denoiser(state, SMALL)
    for key, value in denoiser.state_dict().items():
        theirs = state[released_key(key)]
        assert torch.equal(value, -theirs if key.startswith("head.") else theirs), key
    assert not denoiser.training
    assert denoiser.mask == "frame_lookahead"
    assert not denoiser.causal_condition


def test_every_difference_is_listed(state) -> None:
    state["flow_transformer.extra"] = torch.zeros(2)
    del state["flow_transformer.blocks.1.mlp.fc1.bias"]
    state["flow_transformer.x_embedder.proj.bias"] = torch.zeros(3)
    with pytest.raises(UserError) as error:
        read_denoiser(state, SMALL)
    text = str(error.value)
    assert "3 differences" in text
    assert "missing: flow_transformer.blocks.1.mlp.fc1.bias (64,)" in text
    assert "unexpected: flow_transformer.extra (2,)" in text
    assert "shape: flow_transformer.x_embedder.proj.bias is (3,), expected (16,)" in text


def test_files(state, tmp_path) -> None:
    path = tmp_path / "a file=1.pth"
    torch.save(state, path)
    assert torch.equal(read_denoiser(path, SMALL).head.weight, read_denoiser(state, SMALL).head.weight)
    with pytest.raises(UserError, match="no such file"):
        read_state(tmp_path / "absent.pth")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"a file=1\.pth.*is it whole"):
        read_state(path)
    torch.save({"state_dict": state}, path)
    with pytest.raises(UserError, match="flat state dict"):
        read_state(path)


def test_pickled_code_is_not_run(tmp_path) -> None:
    class Trap:
        def __reduce__(self):
            return (tmp_path.joinpath("sprung").touch, ())

    torch.save({"w": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(UserError, match="read safely"):
        read_state(tmp_path / "trap.pth")
    assert not (tmp_path / "sprung").exists()


def test_kind_is_read_from_the_keys(state, monkeypatch) -> None:
    monkeypatch.setattr("af.models.released.denoiser.ReleasedSizes", lambda: SMALL)
    assert read_released(state).kind == "denoiser"
    with pytest.raises(UserError, match=r"missing: motion_autoencoder\.enc\.fc\.1\.weight"):
        read_released({"motion_autoencoder.enc.fc.0.weight": torch.zeros(1)})
    with pytest.raises(UserError, match=r"state dict: neither.*first key: model\.weight"):
        read_released({"model.weight": torch.zeros(1)})


def test_import_writes_a_model_folder_or_nothing(state, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("af.models.released.denoiser.ReleasedSizes", lambda: SMALL)
    torch.save(state, tmp_path / "flow.pth")
    assert (
        main(["import-released", str(tmp_path / "flow.pth"), "--out", str(tmp_path / "d" / "model.safetensors")]) == 0
    )
    assert "CC BY-NC 4.0" in capsys.readouterr().out
    loaded = load_model(tmp_path / "d")
    assert isinstance(loaded.model, MotionDenoiser)
    assert "CC BY-NC 4.0" in loaded.info["licence"]
    expected = read_denoiser(state, SMALL).state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in loaded.model.state_dict().items())

    del state["flow_transformer.final_layer.linear.bias"]
    torch.save(state, tmp_path / "flow.pth")
    assert main(["import-released", str(tmp_path / "flow.pth"), "--out", str(tmp_path / "e")]) == 1
    assert "missing: flow_transformer.final_layer.linear.bias" in capsys.readouterr().err
    assert not (tmp_path / "e").exists()


@pytest.fixture(scope="module")
def golden(shared_folder) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(shared_folder / "released" / "golden.safetensors")


@pytest.fixture(scope="module")
def released(shared_folder) -> MotionDenoiser:
    """The full-size denoiser with the stand-in weights that the golden tensors were made with."""
    import importlib.util

    folder = shared_folder / "released"
    spec = importlib.util.spec_from_file_location("stand_in_weights", folder / "weights.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    keys = json.loads((folder / "keys.json").read_text())["flow_transformer.pth"]
    return read_denoiser(module.state_dict(keys, 0))


def relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    return ((got - expected).norm() / expected.norm()).item()


def golden_condition(golden: dict[str, torch.Tensor], name: str) -> Condition:
    return Condition(*(golden[f"{name}_{signal}"] for signal in ("avatar_audio", "user_audio", "user_motion")))


def test_golden_projection_and_velocity(golden, released) -> None:
    with torch.inference_mode():
        assert relative_error(released.audio_projection(golden["proj_in"]), golden["proj_out"]) < 1e-5
        flow_time = 1 - golden["vel_timestep"] / 1000
        velocity = released(golden["vel_x"], flow_time, golden_condition(golden, "vel"), golden["vel_ref"])
    assert relative_error(-velocity, golden["vel_out"]) < 1e-5


@pytest.mark.parametrize("name", [pytest.param("roll", marks=pytest.mark.slow), "roll2"])
def test_golden_roll_out(golden, released, name: str) -> None:
    from af.forcing.guidance import Guidance
    from af.forcing.rollout import rollout

    frames, audio, user, evaluations = golden[f"{name}_settings"].tolist()
    with torch.inference_mode():
        motion = rollout(
            released,
            golden_condition(golden, name),
            golden[f"{name}_ref"],
            steps=int(evaluations) - 2,
            guidance=Guidance(audio=audio, user=user),
            schedule="released",
            noise=golden[f"{name}_noise"],
            prime="joint",
        )
    assert motion.shape[1] == frames
    blocks = zip(motion.split(10, 1), golden[f"{name}_out"].split(10, 1), strict=True)
    assert max(relative_error(got, expected) for got, expected in blocks) < 1e-5
