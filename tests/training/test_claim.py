"""What a run folder claims, and what may change when its run goes on."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from af.models.checkpoint import read_checkpoint
from af.training.claim import changed, known, refused
from af.training.ema import Ema
from tests.training.test_resume import DENOISER, SHORT, VAE, same, train


@pytest.fixture
def arguments(latents) -> list[str]:
    # a constant learning rate: what a longer training has done so far is what a short one does
    short = [*SHORT, "callbacks.previews.clips=0"]
    return [*DENOISER, *short, f"data.root={latents}", "scheduler=constant", "scheduler.warmup_steps=0"]


def steps(run) -> int:
    return json.loads((run / "done.json").read_text())["steps"]


def test_a_finished_training_is_made_longer_and_is_the_one_that_was_long_from_the_start(arguments, tmp_path, capsys):
    assert train(arguments, tmp_path / "long", "trainer.max_steps=11") == 0
    assert train(arguments, tmp_path / "grown") == 0
    assert steps(tmp_path / "grown") == 7
    assert train(arguments, tmp_path / "grown", "trainer.max_steps=11") == 0
    assert steps(tmp_path / "grown") == 11
    printed = capsys.readouterr().out
    assert "continues from step 7 with trainer.max_steps 7 → 11" in printed
    assert "learning rate does not change" in printed
    assert same(tmp_path / "long", tmp_path / "grown")
    starts = [json.loads(line) for line in (tmp_path / "grown" / "history.jsonl").read_text().splitlines()]
    assert [(s["from_step"], s["changed"]) for s in starts] == [(0, {}), (7, {"trainer.max_steps": [7, 11]})]
    assert train(arguments, tmp_path / "grown") == 1  # shorter
    assert "not shorter" in capsys.readouterr().err
    assert steps(tmp_path / "grown") == 11


def test_a_schedule_follows_the_new_length(arguments, tmp_path, capsys):
    words = [word for word in arguments if word != "scheduler=constant"] + ["scheduler.final_ratio=0"]
    assert train(words, tmp_path) == 0
    assert train(words, tmp_path, "trainer.max_steps=11", "scheduler.total_steps=9") == 1
    assert "scheduler.total_steps" in capsys.readouterr().err
    assert train(words, tmp_path, "trainer.max_steps=11") == 0
    assert "follows its schedule over the new length" in capsys.readouterr().out
    factor = read_checkpoint(tmp_path / "checkpoints" / "00000011.ckpt")["lr_schedulers"][0]["_last_lr"][0]
    assert factor == pytest.approx(0, abs=1e-12)  # at 0 after step 7 already, and risen since


def test_a_folder_is_the_same_however_it_is_named(arguments, latents, tmp_path, monkeypatch, capsys):
    assert train(arguments, tmp_path, "trainer.max_steps=1") == 0
    monkeypatch.chdir(latents.parent)
    relative = [f"data.root={latents.name}" if word.startswith("data.root") else word for word in arguments]
    assert train(relative, tmp_path, "trainer.max_steps=1") == 0
    assert "is finished" in capsys.readouterr().out
    before = {"data": {"root": {"a": 1, "b": 2}}, "trainer": {"max_steps": 1}}
    now = {"data": {"root": {str(latents.parent / "a"): 1, "./b": 2}}, "trainer": {"max_steps": 1}}
    assert refused(before, now) == {}


class Slow(Ema):
    """Somebody's own average."""


def test_a_callback_that_is_a_kind_of_one_that_acts_acts():
    ours = {"callbacks": {"ema": {"_target_": f"{__name__}.Slow", "decay": 0.5}}}
    assert set(refused(ours, {"callbacks": {}})) == {"callbacks.ema"}


WATCHING = (
    "trainer.val_check_interval=2",
    "callbacks.previews=null",
    "callbacks.throughput=null",
    "+callbacks.rate._target_=lightning.pytorch.callbacks.LearningRateMonitor",
    "trainer.log_every_n_steps=1",
    "+trainer.limit_val_batches=1",
    "+trainer.profiler=simple",
    "checkpoints.every_n_steps=2",
    "tags=[later]",
)
TRAINING = (
    "optimizer.lr=1",
    "data.batch_size=2",
    "seed=1",
    "model.look_ahead=1",
    "trainer.precision=64-true",
    "trainer.accumulate_grad_batches=2",
    "trainer.gradient_clip_val=0.5",
    "callbacks.ema.decay=0.5",
    "callbacks.ema=null",
    "+callbacks.early={_target_: lightning.pytorch.callbacks.EarlyStopping, monitor: val/loss}",
    "+callbacks.swa={_target_: lightning.pytorch.callbacks.StochasticWeightAveraging, swa_lrs: 0.1}",
)


def test_what_only_watches_may_change_and_what_trains_is_refused_by_name(arguments, tmp_path, capsys):
    run = tmp_path / "run"
    assert train(arguments, run, "trainer.max_steps=1") == 0
    for override in TRAINING:
        assert train(arguments, run, "trainer.max_steps=2", override) == 1, override
        key = override.lstrip("+").partition("=")[0]
        assert key in capsys.readouterr().err, override
    assert steps(run) == 1
    assert train(arguments, run, "trainer.max_steps=3", *WATCHING) == 0
    assert steps(run) == 3
    last = json.loads((run / "history.jsonl").read_text().splitlines()[-1])
    assert {"callbacks.previews", "callbacks.rate", "trainer.val_check_interval"} <= set(last["changed"])


def test_the_precision_that_auto_stands_for_may_change_with_the_machine():
    def allowed(before, now):
        return not refused({"trainer": {"precision": before}}, {"trainer": {"precision": now}})

    assert allowed("bf16-mixed", "auto")  # a run of a recipe that named it
    assert allowed("auto", "32-true")
    assert not allowed("64-true", "auto")
    assert not allowed("bf16-mixed", "32-true")


def test_an_edited_or_deleted_configuration_changes_nothing(arguments, tmp_path, capsys):
    run = tmp_path / "run"
    assert train(arguments, run, "trainer.max_steps=1") == 0
    config = json.loads((run / "config.json").read_text())
    config["optimizer"]["lr"] = 1.0
    for file in (json.dumps(config), None):
        (run / "config.json").unlink()
        if file is not None:
            (run / "config.json").write_text(file)
        assert known(run)["optimizer"]["lr"] != 1.0
        assert train(arguments, run, "trainer.max_steps=2", "optimizer.lr=1") == 1
        assert "optimizer.lr" in capsys.readouterr().err
        assert train(arguments, run, "trainer.max_steps=1") == 0  # as it was
        (run / "config.json").touch()


def test_a_start_that_failed_claims_nothing(arguments, tmp_path, monkeypatch):
    from af.training.denoiser import DenoiserModule

    def fails(self, batch, batch_idx):
        raise OSError("no")

    with monkeypatch.context() as patch:
        patch.setattr(DenoiserModule, "training_step", fails)
        with pytest.raises(OSError, match="no"):
            train(arguments, tmp_path, "optimizer.lr=1")
    assert known(tmp_path) is None
    assert not (tmp_path / "done.json").exists()
    assert train(arguments, tmp_path, "trainer.max_steps=1") == 0


@pytest.mark.parametrize("steps", ["true", "3"])
def test_a_smoke_run_leaves_nothing(arguments, steps, tmp_path, capsys):
    assert train(arguments, tmp_path / "run", f"+trainer.fast_dev_run={steps}") == 0
    assert not (tmp_path / "run").exists()
    assert "nothing is kept" in capsys.readouterr().out


def test_a_run_that_was_ended_before_its_export_gets_it(arguments, tmp_path):
    assert train(arguments, tmp_path / "whole") == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "cut", symlinks=True)
    (tmp_path / "cut" / "done.json").unlink()
    shutil.rmtree(tmp_path / "cut" / "export")
    assert train(arguments, tmp_path / "cut") == 0
    assert same(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize("stage", ["vae", "denoiser"])
def test_every_stage_starts_from_a_model_under_the_same_word(stage, arguments, dyads, latents, tmp_path, capsys):
    words = {"vae": [*VAE, *SHORT, f"data.root={dyads}"], "denoiser": arguments}[stage]
    one = "trainer.max_steps=1"
    assert train(words, tmp_path / "first", one) == 0
    rate = ["optimizer.lr=1e-12", "callbacks.ema=null", "seed=5"]
    for word in ("start", "module.start"):
        begun = tmp_path / word
        assert train(words, begun, one, *rate, f"{word}={tmp_path / 'first' / 'export'}") == 0
        first, second = (_weights(tmp_path / "first"), _weights(begun))
        trained = [n for n in first if first[n].is_floating_point() and "running" not in n]
        assert all(torch.allclose(first[n], second[n], rtol=0, atol=1e-6) for n in trained)
    other = {"vae": "model.latent_dim=17", "denoiser": "model.hidden=32"}[stage]
    assert train(words, tmp_path / "other", one, other, f"start={tmp_path / 'first' / 'export'}") == 1
    assert "other layers" in capsys.readouterr().err


def _weights(run):
    from safetensors.torch import load_file

    return load_file(run / "export" / "model.safetensors")


def test_differences_are_told_by_key_with_both_values():
    before = {"optimizer": {"lr": 1, "x": None}, "trainer": {"max_steps": 5}, "callbacks": {"a": {"_target_": "x.Y"}}}
    now = {"optimizer": {"lr": 2}, "trainer": {"max_steps": 9}, "callbacks": {}}
    assert changed(before, now) == {
        "optimizer.lr": (1, 2),
        "trainer.max_steps": (5, 9),
        "callbacks.a": ({"_target_": "x.Y"}, None),
    }
    assert refused(before, now) == {"optimizer.lr": (1, 2)}


@pytest.mark.parametrize(
    ("stage", "override", "said"),
    [
        ("vae", "model.image_size=64", "frames of 32 px, the autoencoder is for 64"),
        ("denoiser", "model.motion_space.latent_dim=17", "latents with latent_dim 16, the model is for 17"),
        ("denoiser", "model.motion_space.directions=5", "latents with directions 6, the model is for 5"),
    ],
)
def test_data_of_another_shape_than_the_model_are_refused_by_name(
    stage, override, said, arguments, dyads, tmp_path, capsys
):
    words = [*VAE, *SHORT, f"data.root={dyads}"] if stage == "vae" else arguments
    assert train(words, tmp_path, override) == 1
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
    assert known(tmp_path) is None
