"""`experiment=person`: a small folder on its base, which every reader takes for a whole model."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from af import Avatar
from af.cli.main import main
from af.errors import UserError
from af.files import sha256_of
from af.models.artifact import load_model
from af.share.folder import write_folder
from af.training.stage import Stage

PLAIN = ["data.workers=0", "trainer.precision=32-true", "checkpoints.every_n_steps=3", "logger=none"]
PERSON = ["experiment=person", *PLAIN, "data.batch_size=2", "data.regions=null", "data.vary=null", "adapt.rank=1"]
PERSON += ["loss.perceptual=0", "loss.distance=null"]
DENOISER = ["experiment=person_denoiser", *PLAIN, "data.batch_size=4", "adapt.rank=1", "callbacks.previews=null"]


@pytest.fixture(params=["person", "person_denoiser"])
def arguments(request, dyads, latents, autoencoder_folder, denoiser_folder) -> list[str]:
    if request.param == "person":
        return [*PERSON, f"start={autoencoder_folder}", f"data.root={dyads}"]
    return [*DENOISER, f"start={denoiser_folder}", f"data.root={latents}"]


def train(arguments: list[str], run: Path, *more: str) -> int:
    return main(["train", *arguments, f"run={run}", "trainer.max_steps=5", "trainer.val_check_interval=3", *more])


@pytest.fixture(scope="module")
def person(tmp_path_factory, dyads, autoencoder_folder) -> Path:
    """An adapted autoencoder, its base beside it."""
    root = tmp_path_factory.mktemp("person")
    shutil.copytree(autoencoder_folder, root / "base_model")
    run = root / "run"
    assert train([*PERSON, f"start={root / 'base_model'}", f"data.root={dyads}"], run, "optimizer.lr=0.05") == 0
    return root


def copied(person: Path, to: Path) -> Path:
    shutil.copytree(person, to)
    return to / "run" / "export"


def edit(folder: Path, change) -> None:
    content = json.loads((folder / "model.json").read_text())
    change(content)
    (folder / "model.json").write_text(json.dumps(content))


def test_the_folder_is_small_and_reads_as_the_model_that_was_trained(person):
    export = person / "run" / "export"
    base, found = load_model(person / "base_model"), load_model(export)
    assert (export / "model.safetensors").stat().st_size < 0.5 * (
        person / "base_model" / "model.safetensors"
    ).stat().st_size
    saved = torch.load(next((person / "run" / "checkpoints").glob("best-*.ckpt")), weights_only=True)
    average = saved["callbacks"]["Ema"]["average"]
    held = load_file(export / "model.safetensors")
    assert {n for n in held if not n.endswith(".scale")} == average.keys()
    assert all(held[n].equal(value) for n, value in average.items())
    assert found.model.state_dict().keys() == base.model.state_dict().keys()
    moved = {n for n, v in found.model.state_dict().items() if not v.equal(base.model.state_dict()[n])}
    assert moved
    assert all(n.startswith("decoder.") for n in moved)


def test_motion_is_the_base_s_and_its_denoisers_go_with_it(person, denoiser_folder):
    avatar = Avatar.load(person / "run" / "export", denoiser_folder)
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(avatar.autoencoder.motion(images), load_model(person / "base_model").model.motion(images))


def test_an_adapted_encoder_is_another_motion(person, dyads, denoiser_folder, tmp_path):
    arguments = [*PERSON, f"start={person / 'base_model'}", f"data.root={dyads}"]
    assert train(arguments, tmp_path, "adapt.layers=[encoder.*,decoder.*]", "optimizer.lr=0.05") == 0
    with pytest.raises(UserError, match="latents from another autoencoder"):
        Avatar.load(tmp_path / "export", denoiser_folder)
    assert main(["export", str(tmp_path / "export"), "--out", str(tmp_path / "whole")]) == 0
    assert load_model(tmp_path / "whole").latents == load_model(tmp_path / "export").latents


def test_checkpoint_export_and_hub_folder_hold_the_same_model(person, denoiser_folder, tmp_path):
    export = person / "run" / "export"
    expected = load_model(export).model.state_dict()
    best = next((person / "run" / "checkpoints").glob("best-*.ckpt"))
    assert main(["export", str(export), "--out", str(tmp_path / "whole")]) == 0
    write_folder(tmp_path / "hub", export, denoiser_folder)
    for place in (best, tmp_path / "whole", tmp_path / "hub" / "autoencoder"):
        found = load_model(place).model.state_dict()
        assert all(value.equal(found[name]) for name, value in expected.items()), place
    assert "adapter" not in json.loads((tmp_path / "whole" / "model.json").read_text())
    Avatar.load(tmp_path / "whole", denoiser_folder)
    Avatar.from_pretrained(tmp_path / "hub")


def test_the_base_is_found_in_the_folder_too(person, tmp_path):
    export = copied(person, tmp_path / "moved")
    assert load_model(export)  # both were moved
    shutil.move(tmp_path / "moved" / "base_model", export / "base")
    assert load_model(export)
    shutil.rmtree(export / "base")
    with pytest.raises(UserError, match=r"its base is neither .*base_model nor .*base; put the model"):
        load_model(export)


def other_weights(export: Path) -> None:
    base = export.parents[1] / "base_model"
    state = load_file(base / "model.safetensors")
    state["direction_weight"] += 0.1
    save_file(state, base / "model.safetensors")
    edit(base, lambda info: info.update(sha256=sha256_of(base / "model.safetensors")))


def another_tensor(export: Path) -> None:
    state = load_file(export / "model.safetensors")
    state["decoder.more"] = torch.zeros(3)
    save_file(state, export / "model.safetensors")
    edit(export, lambda info: info.update(sha256=sha256_of(export / "model.safetensors")))


def one_byte(export: Path) -> None:
    data = (export / "model.safetensors").read_bytes()
    (export / "model.safetensors").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


FAULTS = {
    "another base": (other_weights, "is not the model that was adapted"),
    "another model": (lambda e: edit(e, lambda i: i["model"].update(directions=5)), "another model than its base"),
    "another rank": (lambda e: edit(e, lambda i: i["adapter"].update(rank=2)), "does not fit the weights beside it"),
    "no rank": (lambda e: edit(e, lambda i: i["adapter"].pop("rank")), "adapter cannot be read"),
    "a text": (lambda e: edit(e, lambda i: i.update(adapter="x")), "adapter is missing, or not an object"),
    "other layers": (lambda e: edit(e, lambda i: i["adapter"].update(layers=["x"])), "no parameter of"),
    "another tensor": (another_tensor, "unexpected: decoder.more"),
    "another byte": (one_byte, r"is not the file that model\.json describes"),
    "itself as its base": (lambda e: edit(e, lambda i: i["adapter"].update(base=".")), "is an adapted model itself"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_does_not_fit_is_one_error(person, tmp_path, fault):
    export, (damage, message) = copied(person, tmp_path / "copy"), FAULTS[fault]
    damage(export)
    with pytest.raises(UserError, match=message):
        load_model(export)


def test_a_hub_folder_with_an_adapted_model_is_refused(person, denoiser_folder, tmp_path):
    write_folder(tmp_path, person / "run" / "export", denoiser_folder)
    for name in ("model.json", "model.safetensors"):
        shutil.copyfile(person / "run" / "export" / name, tmp_path / "autoencoder" / name)
    listed = json.loads((tmp_path / "avatar.json").read_text())
    for name, entry in listed["files"].items():
        entry.update(bytes=(tmp_path / name).stat().st_size, sha256=sha256_of(tmp_path / name))
    (tmp_path / "avatar.json").write_text(json.dumps(listed))
    with pytest.raises(UserError, match="whole models, not changes"):
        Avatar.from_pretrained(tmp_path)


def test_an_adapted_model_is_not_adapted_again(person, dyads, tmp_path, capsys):
    assert train([*PERSON, f"start={person / 'run' / 'export'}", f"data.root={dyads}"], tmp_path) == 1
    assert "af export" in capsys.readouterr().err


def test_a_stopped_run_ends_with_the_same_weights(arguments, tmp_path, monkeypatch):
    assert train(arguments, tmp_path / "whole") == 0
    draws = Stage.next_draws

    def dies(self, *how):
        if self.batches_seen == 4:
            raise OSError("the machine went away")
        return draws(self, *how)

    monkeypatch.setattr(Stage, "next_draws", dies)
    with pytest.raises(OSError, match="went away"):
        train(arguments, tmp_path / "stopped")
    monkeypatch.undo()
    assert train(arguments, tmp_path / "stopped") == 0
    a, b = (load_file(tmp_path / run / "export" / "model.safetensors") for run in ("whole", "stopped"))
    assert a.keys() == b.keys()
    assert all(value.equal(b[name]) for name, value in a.items())
    assert any(value.any() for name, value in a.items() if name.endswith(".up"))


def test_only_what_changes_has_an_optimiser_s_state(arguments, tmp_path):
    assert train(arguments, tmp_path) == 0
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    states = saved["optimizer_states"][0]["state"]
    part = saved["model"]["part"]
    shapes = {tuple(v.shape) for n, v in saved["state_dict"].items() if n.startswith(f"{part}.")}
    learnt = load_file(tmp_path / "export" / "model.safetensors")
    assert len(states) == len([n for n in learnt if not n.endswith(".scale")])
    assert shapes >= {tuple(v.shape) for v in learnt.values()}


def test_training_stops_when_the_held_out_error_rises_and_the_best_is_exported(dyads, autoencoder_folder, tmp_path):
    from af.files import read_lines

    arguments = [*PERSON, f"start={autoencoder_folder}", f"data.root={dyads}", f"run={tmp_path}", "optimizer.lr=0.3"]
    more = ["trainer.max_steps=40", "trainer.val_check_interval=2", "callbacks.early_stopping.patience=2"]
    assert main(["train", *arguments, *more]) == 0
    curve = read_lines(tmp_path / "validation.jsonl")
    done = json.loads((tmp_path / "done.json").read_text())["steps"]
    assert done == curve[-1]["step"] < 40
    best = max(curve, key=lambda line: line["psnr"])
    told = json.loads((tmp_path / "export" / "model.json").read_text())
    assert told["best"] == {"step": best["step"], "psnr": pytest.approx(best["psnr"])}
    assert best["step"] < done == told["steps"]


@pytest.mark.slow
def test_two_ranks_use_all_that_is_trained(arguments, tmp_path):
    ddp = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.max_steps=3"]
    command = [sys.executable, "-m", "af.cli.main", "train", *arguments, *ddp, f"run={tmp_path}"]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=300)
    assert load_model(tmp_path / "export")
