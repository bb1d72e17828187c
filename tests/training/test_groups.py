"""The standard groups: what is chosen by name runs, in every experiment, and nothing else does."""

from __future__ import annotations

import csv
import json
import sys

import pytest
import torch
from lightning.pytorch import Callback

from af.cli.config import choices, compose, instantiate_each, resolve
from af.cli.main import main
from af.models.checkpoint import read_checkpoint
from tests.test_configs import EXPERIMENTS, start
from tests.training.test_resume import DENOISER, SHORT, train


@pytest.fixture
def arguments(latents) -> list[str]:
    return [*DENOISER, *SHORT, f"data.root={latents}", "callbacks=[ema,gradients]", "trainer.max_steps=4"]


def test_several_loggers_write_the_same_numbers(arguments, tmp_path):
    assert train(arguments, tmp_path, "logger=[tensorboard,csv]") == 0
    assert list((tmp_path / "tensorboard").glob("events.*"))
    with (tmp_path / "csv" / "version_0" / "metrics.csv").open() as file:
        losses = [float(row["val/loss"]) for row in csv.DictReader(file) if row["val/loss"]]
    lines = [json.loads(line) for line in (tmp_path / "validation.jsonl").read_text().splitlines()]
    assert losses == pytest.approx([line["val/loss"] for line in lines])


def test_no_callbacks_and_no_loggers_leave_weights_and_a_line_a_validation(arguments, tmp_path):
    assert train(arguments, tmp_path, "callbacks=none", "logger=none") == 0
    assert {file.name for file in tmp_path.iterdir() if file.is_dir()} == {"checkpoints", "export"}
    assert (tmp_path / "validation.jsonl").is_file()
    assert read_checkpoint(tmp_path / "checkpoints" / "00000004.ckpt")["model"]["averages"] == []


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_goes_without_callbacks_and_with_every_debug_choice(
    experiment, denoiser_folder, autoencoder_folder
):
    words = [f"experiment={experiment}", "data.root=x", *start(experiment, denoiser_folder, autoencoder_folder)]
    words += ["data.teacher=x"] * experiment.startswith("distill")
    plain = resolve(compose("train", [*words, "callbacks=none", "logger=none"]))
    assert instantiate_each(plain["callbacks"], "callbacks", "on_fit_start") == []
    for debug in choices("debug"):
        assert resolve(compose("train", [*words, f"debug={debug}"]))["trainer"] != plain["trainer"], debug


def test_another_optimizer_and_a_schedule_of_torchs_are_what_runs(arguments, tmp_path):
    own = tmp_path / "own" / "scheduler"
    own.mkdir(parents=True)
    (own / "halving.yaml").write_text("_target_: torch.optim.lr_scheduler.ExponentialLR\n_partial_: true\ngamma: 0.5\n")
    words = [
        "optimizer=adam",
        "optimizer.lr=0.01",
        "scheduler=halving",
        "~scheduler.warmup_steps",
        "--config-dir",
        str(own.parent),
    ]
    assert train(arguments, tmp_path / "run", *words) == 0
    state = read_checkpoint(tmp_path / "run" / "checkpoints" / "00000004.ckpt")
    assert state["optimizer_states"][0]["param_groups"][0]["lr"] == pytest.approx(0.01 * 0.5**4)


class Seen(Callback):
    """The first numbers of every batch."""

    batches: list[torch.Tensor] = []  # noqa: RUF012

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        Seen.batches.append(batch.avatar_motion[:, 0].clone())


@pytest.mark.parametrize("workers", [0, 1])
def test_one_batch_is_overfitted_again_and_again_after_a_stop_too(arguments, workers, tmp_path):
    Seen.batches = []
    words = [*arguments, f"+callbacks.seen._target_={__name__}.Seen", "debug=overfit", f"data.workers={workers}"]
    words += ["trainer.val_check_interval=2", "trainer.overfit_batches=1"]
    assert train(words, tmp_path, "trainer.max_steps=3") == 0
    assert train(words, tmp_path, "trainer.max_steps=5") == 0
    assert len(Seen.batches) == 5
    assert all(batch.equal(Seen.batches[0]) for batch in Seen.batches)


def test_help_lists_experiments_with_their_line_and_ones_own_first(tmp_path, capsys):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\n# Something of my own.\nname: mine\n")
    with pytest.raises(SystemExit) as left:
        main(["train", "--config-dir", str(tmp_path), "--help"])
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.partition("experiment=\n")[2].splitlines()]
    assert left.value.code == 0
    assert lines[0] == ["mine", "Something of my own."]
    assert [name for name, _ in lines[1:]] == EXPERIMENTS


def test_a_logger_that_is_not_installed_is_one_line(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    assert train(arguments, tmp_path, "logger=mlflow") == 1
    error = capsys.readouterr().err
    assert "logger.mlflow" in error
    assert error.count("\n") == 1
