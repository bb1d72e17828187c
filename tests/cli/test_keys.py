"""A wrong key, choice or value is one line that names it, before any work."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

from af.cli.main import main
from af.cli.typed import require_types
from af.errors import UserError

NEAR = {
    "optimizer.lrr=1": "optimizer.lrr: there is no such key; did you mean optimizer.lr?",
    "module.lr=1": "did you mean optimizer.lr?",
    "modul.lr=1": "did you mean optimizer.lr?",
    "trainer.max_step=3": "did you mean trainer.max_steps?",
    "callbacks.emma.decay=0.9": "did you mean callbacks.ema.decay?",
    "+ckpt_path=x": "ckpt_path: there is no such key",
    "+sed=1": "did you mean seed?",
    "experiment=vae_dmo": "did you mean vae_demo?",
    "trainer=gpuu": "did you mean gpu?",
    "+module.schedular=1": "did you mean scheduler?",
    "+trainer.profilr=simple": "did you mean profiler?",
    "+checkpoints.keep_bst=1": "did you mean keep_best?",
    "nothing": "expected KEY=VALUE",
    "=5": "expected KEY=VALUE",
    "trainer=null": "trainer=null: give the name of a choice",
    "data=3": "data=3: give the name of a choice",
    "model=base": "model is no choice of its own",
    "+module/loss=foo": "module/loss: there is no such key",
    "checkpoints.grace_s={5": "checkpoints.grace_s={5: cannot be read",
}
TAKEN_OUT = {
    **{f"~{key}": f"{key} was taken out" for key in ("module", "checkpoints", "callbacks")},
    "~trainer.max_steps": "scheduler.total_steps is taken from trainer.max_steps, which is not there",
    "~seed": "data.seed is taken from seed, which is not there",
    "~checkpoints._target_": "checkpoints._target_ was taken out",
    "module=null": "module was taken out",
    "checkpoints=null": "checkpoints was taken out",
    "run=null": "run=null: give the folder of the run",
    "run=": "run=: give the folder of the run",
}
VALUES = {
    "optimizer.lr=abc": "optimizer.lr=abc: give a number",
    "optimizer.lr=nan": "optimizer.lr=nan",
    "optimizer.lr=-1": "module: Invalid learning rate: -1",
    "optimizer.betas=[0.9]": "optimizer.betas",
    "scheduler.warmup_steps=1.5": "scheduler.warmup_steps",
    "module.dropout.user=1.5": "user must be a number from 0 to 1",
    "model.hidden=0": "hidden must be",
    "model.depth=-1": "depth must be",
    "model.block_frames=7": "window_frames",
    "model.window_frames=17": "window_frames",
    "model.hidden=text": "model.hidden=text: give a whole number",
    "seed=-1": "seed must be",
    "data.batch_size=0": "batch_size must be",
    "data.workers=-1": "workers must be",
    "matmul_precision=best": "matmul_precision",
    "trainer.max_steps=0": "trainer.max_steps must be",
    "trainer.max_steps=-1": "trainer.max_steps must be",
    "trainer.val_check_interval=0": "trainer.val_check_interval must be",
    "trainer.gradient_clip_val=-1": "trainer.gradient_clip_val must be",
    "trainer.precision=fp8": "trainer.precision",
    "trainer.accelerator=abacus": "trainer.accelerator=abacus",
    "trainer.max_epochs=3": "trainer.max_steps",
    "trainer.fast_dev_run=maybe": "trainer.fast_dev_run=maybe",
    "callbacks=null": "callbacks=null: give the name of a choice",
    "+callbacks.mine=3": "callbacks.mine",
    "+callbacks.mine._target_=no.where.Mine": "cannot be imported",
    "callbacks.ema.decay=2": "decay must be",
    "callbacks.throughput.every_n_steps=0": "every_n_steps must be",
    "module.loss=l2": "module.loss=l2: give the _target_ of a callable",
    "module.flow_times=null": "module.flow_times=null: give the _target_",
    "module._target_=null": "module: Expected a callable target",
    "seed=99999999999999999999": "seed must be",
    "data.root=5": "data.root=5: give a text",
    "trainer.max_time=5": "trainer.max_time=5: give days",
    "trainer.logger=csv": "logger=[tensorboard,csv]",
    "trainer.limit_val_batches=abc": "trainer.limit_val_batches must be",
    "part=foo": "part=foo: DenoiserModule has no network of this name",
    "checkpoints.keep_best=3": "checkpoints.keep_best=3: give names and their values or null",
    "checkpoints.grace_s=0": "grace_s must be",
    "checkpoints.every_n_steps=0": "every_n_steps must be",
    "checkpoints.every_minutes=-1": "checkpoint_every_minutes must be",
}


@pytest.mark.parametrize(("override", "said"), [*NEAR.items(), *TAKEN_OUT.items(), *VALUES.items()])
def test_one_line_names_what_is_wrong(override, said, tmp_path, capsys):
    words = ["experiment=denoiser_demo", f"data.root={tmp_path / 'none'}", f"run={tmp_path / 'run'}", override]
    assert main(["train", *words]) == 1
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert "append" not in error
    assert not list((tmp_path / "run").rglob("*.json"))


def test_what_cannot_be_imported_is_one_line_where_nothing_handles_logs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(logging.root, "handlers", [])
    with pytest.raises(UserError, match="cannot be imported"):
        require_types({"_target_": "no.where.Mine"}, "callbacks.mine")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("flag", ["limit_val_batches=1", "fast_dev_run=true", "profiler=simple"])
def test_flags_of_lightning_pass_without_a_plus(flag, tmp_path, capsys):
    words = ["experiment=denoiser_demo", f"data.root={tmp_path / 'none'}", f"run={tmp_path / 'run'}"]
    assert main(["train", *words, f"trainer.{flag}"]) == 1
    assert "index.json" in capsys.readouterr().err  # the data are the first thing amiss


@pytest.mark.parametrize("more", [[], ["--print-config"]])
def test_a_model_to_start_from_that_is_missing_is_named(more, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "experiment=preference_demo", "data.root=none", *more]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "af train: runs/demo/denoiser/export: no such model folder, run folder or checkpoint"
    ]


def test_choices_and_keys_of_ones_own_may_be_added(tmp_path, capsys):
    (tmp_path / "debug").mkdir()
    (tmp_path / "debug" / "slow.yaml").write_text("# @package _global_\noptimizer:\n  lr: 0.25\n")
    words = ["experiment=denoiser_demo", "data.root=none", "run=none", "--print-config"]
    for more in (["--config-dir", str(tmp_path), "debug=slow"], ["+rate=0.25", "optimizer.lr=${rate}"]):
        assert main(["train", *words, *more]) == 0
        assert "\n  lr: 0.25\n" in capsys.readouterr().out


def test_a_wrong_key_is_answered_without_lightning():
    code = "import sys; from af.cli.main import main; main(['train', 'experiment=vae_demo', 'modul.lr=1'])"
    code += "; sys.exit('lightning' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
