"""Evaluation by Lightning: at the end of a training, while it goes on, and the same numbers on any number of ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from af.cli.main import main
from af.data.index import Index
from af.evaluation.settings import CheckpointSettings
from af.training.evaluation import EvaluationCallback
from tests.training.test_resume import DENOISER, SHORT

#: Rows that a clock measures, or that name the run.
CLOCKED = ("latency", "speed", "seconds", "notes", "better", "protocol", "not_computed")


def numbers(file: Path) -> dict:
    return {k: v for k, v in json.loads(file.read_text()).items() if not k.startswith(CLOCKED)}


def scalars(run: Path) -> dict[str, dict[int, float]]:
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    return {tag: {e.step: e.value for e in events.Scalars(tag)} for tag in events.Tags()["scalars"]}


@pytest.fixture(scope="module")
def words(latents) -> list[str]:
    probe = f"callbacks.evaluation.evaluation.linear_probe={latents}/train"
    few = [f"callbacks.evaluation.evaluation.{few}" for few in ("steps=1", "protocol.resamples=2", "batch=1")]
    exact = ["trainer.precision=32-true", "data.validation=test"]
    return ["train", *DENOISER, *SHORT, *exact, f"data.root={latents}", probe, *few]


@pytest.fixture(scope="module")
def trained(words, tmp_path_factory, one_thread) -> Path:
    """A few steps of training, watched by the callback and evaluated at the end."""
    run = tmp_path_factory.mktemp("run")
    evaluation = ["evaluation=linear_probe", "evaluation.steps=1", "evaluation.protocol.resamples=2"]
    assert main([*words, *evaluation, f"run={run}"]) == 0
    (run / "words.json").write_text(json.dumps([*words, *evaluation, f"run={run}"]))
    return run


def test_rows_and_their_truth_are_in_the_logger_while_it_trains(trained):
    curves = scalars(trained)
    for tag in ("fd/exp", "fd/pose", "rpcc/exp", "pcc/pose", "mouth/corr", "mouth/lag", "react/smile"):
        assert set(curves[tag]) == set(curves[f"{tag}/true"]) >= {0, 4}, tag
    assert all(value == 0 for value in curves["fd/exp/true"].values())
    assert len(set(curves["pcc/exp/true"].values())) == 1  # the truth does not train
    assert len(set(curves["fd/exp"].values())) > 1
    assert "sid/exp" not in curves  # not among the configured tags


def test_a_finished_training_is_evaluated_once(trained, capsys):
    """Again: nothing is done. Other settings: anew, without a training."""
    file = trained / "evaluation" / "metrics.json"
    words = json.loads((trained / "words.json").read_text())
    first, written = numbers(file), file.stat().st_mtime_ns
    assert first["clips"] == 2
    assert np.isfinite(first["fd/exp"])
    assert main(words) == 0
    assert file.stat().st_mtime_ns == written
    assert main([*words, "evaluation.limit=1"]) == 0
    assert numbers(file)["clips"] == 1
    assert "replaced" in capsys.readouterr().out


def test_an_evaluation_that_cannot_be_is_told_before_the_training(words, tmp_path, capsys):
    places = [f"evaluation.linear_probe={tmp_path}", f"evaluation.data={tmp_path}/nowhere"]
    for more, told in (
        (["evaluation=decoded"], "give evaluation.autoencoder, which decodes"),
        (["evaluation=linear_probe", places[0]], "index.json"),
        (["evaluation=linear_probe", places[1]], "nowhere"),
        (["evaluation=linear_probe", "evaluation.steps=0"], "steps"),
        (["evaluation=compare"], "af compare"),
    ):
        assert main([*words, *more, f"run={tmp_path}/run"]) == 1
        assert told in capsys.readouterr().err
    assert not (tmp_path / "run" / "checkpoints").exists()


def run_processes(words: list[str]) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-m", "af.cli.main", *words], check=True, env=environment, timeout=600)


@pytest.mark.slow
def test_three_ranks_evaluate_two_clips_to_the_numbers_of_one(
    autoencoder_folder, denoiser_folder, latents, tmp_path, one_thread
):
    """Every clip once: rows, intervals and single clips' numbers are the same bits. A rank without clips does no harm."""
    words = ["evaluate", "--autoencoder", autoencoder_folder, "--denoiser", denoiser_folder, "--data", latents / "test"]
    words += ["evaluation.steps=1", "evaluation.videos=1", "evaluation/networks=[thumbnail]", "evaluation.batch=1"]
    words = [*map(str, words), "--device", "cpu"]
    assert main([*words, "--out", str(tmp_path / "1")]) == 0
    run_processes([*words, "--devices", "3", "--out", str(tmp_path / "3")])
    one, three = (numbers(tmp_path / n / "metrics.json") for n in ("1", "3"))
    assert "fd_img/thumbnail8-1" in one
    assert one["clips"] == 2
    assert one == three
    assert len({(tmp_path / n / "clips.json").read_text() for n in ("1", "3")}) == 1


@pytest.mark.slow
def test_two_ranks_log_the_numbers_of_one(words, trained, tmp_path):
    """What the callback measures before the first step, when the weights are still the same."""
    run_processes([*words, "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", f"run={tmp_path}"])
    first = [{tag: v[0] for tag, v in scalars(run).items() if 0 in v} for run in (trained, tmp_path)]
    assert {"fd/exp", "rpcc/exp", "mouth/corr"} <= set(first[0])
    assert first[0] == first[1]


def test_faces_that_are_not_drawn_are_not_read_by_the_tracker_of_drawn_ones(
    filmed, latents, autoencoder_folder, denoiser_folder, monkeypatch
):
    """The run hears of it once, and nothing is generated."""
    from af.evaluation.checkpoint import Subject
    from af.models.artifact import load_model
    from af.models.speech import LogMel

    def measure(self, group, out):
        raise AssertionError("measured")

    monkeypatch.setattr(Subject, "measure", measure)
    module = SimpleNamespace(denoiser=load_model(denoiser_folder).model, sampling={}, device="cpu")

    def watch(folder: Path) -> None:
        data = SimpleNamespace(validation_index=Index.load(folder / "test"), features=LogMel())
        trainer = SimpleNamespace(
            datamodule=data, sanity_checking=False, global_step=1, loggers=["one"], global_rank=0, world_size=1
        )
        watched = EvaluationCallback(CheckpointSettings(autoencoder=str(autoencoder_folder)))
        for _ in range(2):
            watched.on_validation_epoch_end(trainer, module)

    with pytest.warns(UserWarning, match="not synthetic") as said:
        watch(filmed)
    assert len([w for w in said if "not synthetic" in str(w.message)]) == 1
    with pytest.raises(AssertionError, match="measured"):
        watch(latents)
