"""A model is found wherever a training has left it, with the weights that an export has."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from safetensors.torch import load_file

from af.cli.main import main
from af.errors import UserError
from af.files import sha256_of
from af.forcing.anchor import Anchor
from af.forcing.guidance import Guidance
from af.models.artifact import find_model, load_as, load_model, read_description
from af.models.denoiser import MotionDenoiser
from af.pipeline.avatar import Avatar
from af.pipeline.sampling import ONE_PASS, inherited, plain_sampling, usual_sampling
from af.training import launch
from tests.training.test_resume import DENOISER, SHORT


@pytest.fixture(scope="module")
def trained(tmp_path_factory, latents) -> Path:
    """A finished run of 6 steps with checkpoints at 3 and 6 and the best one beside them."""
    run = tmp_path_factory.mktemp("runs") / "run"
    best = ["checkpoints.keep_best={monitor: val/loss, mode: min, count: 1}", "trainer.val_check_interval=2"]
    words = [*DENOISER, *SHORT, *best, "trainer.max_steps=6", "optimizer.lr=0.01", f"data.root={latents}"]
    assert main(["train", *words, f"run={run}"]) == 0
    return run


@pytest.fixture
def run(trained, tmp_path) -> Path:
    return shutil.copytree(trained, tmp_path / "run", symlinks=True)


def checkpoint(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"{step:08d}.ckpt"


def test_a_checkpoint_holds_what_an_export_writes(run, tmp_path):
    exported = sha256_of(run / "export" / "model.safetensors")
    last = load_model(checkpoint(run, 6))
    assert last.digest == exported
    assert last.info == load_model(run / "export").info
    raw = torch.load(checkpoint(run, 6), weights_only=True)["state_dict"]
    averaged = last.model.state_dict()
    assert not all(averaged[name].equal(raw[f"denoiser.{name}"]) for name in averaged)  # it is the average
    alone = shutil.copy(checkpoint(run, 6), tmp_path / "alone.ckpt")  # without its run
    assert load_model(alone).digest == exported


def test_the_best_by_what_nobody_logs_is_one_line_with_the_nearest(latents, tmp_path, capsys):
    best = ["checkpoints.keep_best={monitor: val/los, mode: min, count: 1}", "trainer.val_check_interval=2"]
    assert main(["train", *DENOISER, *SHORT, *best, f"data.root={latents}", f"run={tmp_path}"]) == 1
    error = capsys.readouterr().err
    assert "monitor val/los is not logged; did you mean val/loss?" in error
    assert "Traceback" not in error


@pytest.mark.parametrize("place", ["", "checkpoints"])
def test_no_model_is_written_into_a_run(run, place, capsys):
    assert main(["export", str(checkpoint(run, 3)), "--out", str(run / place), "--overwrite"]) == 1
    assert f"choose another one, {run / place / 'export'}" in capsys.readouterr().err
    assert not (run / place / "model.json").exists()


def test_a_pickle_is_not_read_and_nobody_is_told_to_trust_it(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "model.pt")
    with pytest.raises(UserError, match="more than tensors and plain values") as told:
        load_model(tmp_path / "model.pt")
    assert "trust" not in str(told.value)
    assert "\x1b" not in str(told.value)


@pytest.mark.parametrize("source", ["a checkpoint", "the best", "the last", "a stopped run"])
def test_export_makes_a_model_folder(run, tmp_path, source, capsys):
    places = {"a checkpoint": checkpoint(run, 3), "the last": run / "checkpoints" / "last.ckpt", "a stopped run": run}
    place = places.get(source) or next((run / "checkpoints").glob("best-*.ckpt"))
    shutil.rmtree(run / "export")
    assert main(["export", str(place), "--out", str(tmp_path / "out")]) == 0
    made = load_model(tmp_path / "out")
    assert made.digest == load_model(place).digest == sha256_of(tmp_path / "out" / "model.safetensors")
    assert f"step {made.info['steps']}" in capsys.readouterr().out
    assert main(["export", str(place), "--out", str(tmp_path / "out")]) == 0  # the same again
    if source == "a checkpoint":
        assert main(["export", str(run), "--out", str(tmp_path / "out")]) == 1
        assert "another model" in capsys.readouterr().err
        assert main(["export", str(run), "--out", str(tmp_path / "out"), "--overwrite"]) == 0
        assert load_model(tmp_path / "out").info["steps"] == 6


def test_a_run_means_its_export_unless_a_checkpoint_is_ahead(run, capsys):
    assert find_model(run) == run / "export" == find_model(run / "export" / "model.json")
    edited = json.loads((run / "export" / "model.json").read_text()) | {"steps": 3}
    (run / "export" / "model.json").write_text(json.dumps(edited))
    assert find_model(run) == checkpoint(run, 6)
    for place in (run / "checkpoints").glob("*.ckpt"):
        place.rename(place.with_suffix(".kept"))
    checkpoint(run, 7).write_bytes(b"cut")
    assert find_model(run) == run / "export"
    shutil.rmtree(run / "export")
    with pytest.raises(UserError, match="every checkpoint there is broken"):
        find_model(run)
    for place in (run / "checkpoints").glob("*.kept"):
        place.rename(place.with_suffix(".ckpt"))
    checkpoint(run, 6).write_bytes(b"cut")
    assert find_model(run) == checkpoint(run, 3)
    assert checkpoint(run, 6).is_file()  # who only reads moves nothing aside


def test_what_is_no_model_is_one_error(run, tmp_path):
    shutil.rmtree(run / "export")
    executed = tmp_path / "executed"

    class Bomb:
        def __reduce__(self):
            return Path.touch, (executed,)

    content = torch.load(checkpoint(run, 6), weights_only=True)
    for name, change in {
        "pickle": content | {"more": Bomb()},
        "older": {k: v for k, v in content.items() if k != "model"},
        "foreign": {"a": 1},
        "no average": content | {"callbacks": {}},
        "another class": content | {"model": {**content["model"], "config": {"_target_": "os.system"}}},
        "blown up": content
        | {
            "state_dict": {"denoiser.head.weight": torch.zeros(1).expand(10**12)},
            "callbacks": {},
            "model": {**content["model"], "averages": []},
        },
        "no tensors": content
        | {"state_dict": {"denoiser.head.weight": 1}, "model": {**content["model"], "averages": []}},
        "larger": content | {"model": {**content["model"], "config": {**content["model"]["config"], "depth": 10**9}}},
    }.items():
        torch.save(change, tmp_path / f"{name}.ckpt")
        with pytest.raises(UserError, match=rf"{name}\.ckpt"):
            load_model(tmp_path / f"{name}.ckpt")
    (tmp_path / "text.ckpt").write_text("text")
    for place in (tmp_path / "text.ckpt", tmp_path, tmp_path / "nothing"):
        with pytest.raises(UserError, match=str(place)):
            load_model(place)
    assert not executed.exists()


def test_an_avatar_and_a_stage_start_from_a_run_or_a_checkpoint(run, tmp_path, autoencoder_folder, latents, losers):
    best = next((run / "checkpoints").glob("best-*.ckpt"))
    for place in (run, best):
        denoiser = Avatar.load(autoencoder_folder, place).denoiser
        assert denoiser.state_dict()["head.weight"].equal(load_as(place, MotionDenoiser)[0].head.weight)
    options = ["trainer.max_steps=1", "data.batch_size=2", "data.workers=0", "module.online=null", "optimizer.lr=1e-12"]
    words = [f"start={best}", f"data.root={latents}", f"data.losers={losers}", f"run={tmp_path / 'more'}", *options]
    assert main(["train", "experiment=preference_demo", "scheme=forcing", *words]) == 0
    after = load_file(tmp_path / "more" / "export" / "model.safetensors")["head.weight"]
    torch.testing.assert_close(after, load_as(best, MotionDenoiser)[0].head.weight.detach(), rtol=0, atol=1e-9)


def test_what_starts_from_a_model_is_sampled_as_that_one(denoiser_folder, tmp_path, latents, losers, monkeypatch):
    """Its file says so, and so does the module, whose previews and measurements are its own. A student's steps are not passed on."""
    own = {**ONE_PASS, "steps": 5, "guidance": Guidance(0.5, 0, 1), "anchor": Anchor(), "dead_band": 0.1}
    start = tmp_path / "start"
    shutil.copytree(denoiser_folder, start)
    about = json.loads((start / "model.json").read_text())
    (start / "model.json").write_text(json.dumps({**about, "sampling": plain_sampling(own)}))
    seen = []

    class Watch(Callback):
        def on_train_start(self, trainer, module):
            seen.append(dict(module.sampling))

    options = ["trainer.max_steps=1", "data.batch_size=2", "data.workers=0", "module.online=null"]
    words = [f"start={start}", f"data.root={latents}", f"data.losers={losers}", f"run={tmp_path / 'more'}", *options]
    make = launch.make_trainer
    monkeypatch.setattr(
        launch, "make_trainer", lambda *a, callbacks, **k: make(*a, callbacks=[*callbacks, Watch()], **k)
    )
    assert main(["train", "experiment=preference_demo", "scheme=forcing", *words]) == 0
    assert usual_sampling(read_description(tmp_path / "more" / "export")) == own
    assert seen == [own]
    assert not inherited({"stage": "distill", "sampling": plain_sampling(own)})
    assert not inherited({"stage": "denoiser"})
