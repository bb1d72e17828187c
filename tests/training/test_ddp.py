"""Two ranks on one machine: started by `af train` itself, nothing unused, one folder written once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from .test_resume import DENOISER, SHORT, VAE, continued_from
from .test_switches import EXACT, end_together


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["vae", "denoiser", "preference"])
def test_two_ranks_train_and_continue(stage, dyads, latents, losers, denoiser_folder, tmp_path):
    preference = [
        "experiment=preference_demo",
        f"start={denoiser_folder}",
        f"data.losers={losers}",
        "module.online=null",
    ]
    stages = {"vae": (VAE, dyads), "denoiser": (DENOISER, latents), "preference": (preference, latents)}
    arguments, root = stages[stage]
    ddp = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]
    command = [sys.executable, "-m", "af.cli.main", "train", *arguments, *SHORT, f"data.root={root}", *ddp]
    command.append(f"run={tmp_path}")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, env=environment, timeout=300)
    assert json.loads((tmp_path / "done.json").read_text())["steps"] == 7
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["trainer"]["devices"] == 2
    (tmp_path / "done.json").unlink()
    subprocess.run(command, check=True, env=environment, timeout=300)  # at its last step already
    assert (tmp_path / "export" / "model.safetensors").is_file()


def curve(run: Path) -> list[float]:
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    return [event.value for event in events.Scalars("train/loss")]


@pytest.mark.slow
def test_ranks_share_a_batch_without_a_trace(latents, tmp_path):
    """The same global batch on one rank and on two: losses and weights equal up to fp64's rounding. A run
    of one rank goes on with two and with three, and ends there too."""
    words = [*DENOISER, *SHORT, f"data.root={latents}", "data.batch_size=6", "trainer.log_every_n_steps=1"]
    words += [*EXACT, "module.dropout.user=0.3", "trainer.max_steps=9"]
    ddp = ["trainer=ddp", "trainer.accelerator=cpu"]
    command = [sys.executable, "-m", "af.cli.main", "train"]

    def go(run: Path, *more: str) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run([*command, *words, f"run={run}", *more], check=True, env=environment, timeout=300)

    one, two = tmp_path / "one", tmp_path / "two"
    go(one, *ddp, "trainer.devices=1")
    go(two, *ddp, "trainer.devices=2", "data.workers=2")
    assert len(curve(one)) == 9
    assert curve(two) == pytest.approx(curve(one), rel=1e-6)
    end_together(one, two)
    validations = [json.loads((run / "validation.jsonl").read_text().splitlines()[-1]) for run in (one, two)]
    assert validations[1] == pytest.approx(validations[0], rel=1e-6)
    for devices in (2, 3):
        run = continued_from(one, tmp_path / f"on_{devices}", 6)
        go(run, *ddp, f"trainer.devices={devices}")
        end_together(one, run)


def test_a_batch_that_ranks_cannot_share_is_refused(latents, monkeypatch):
    from af.errors import UserError
    from af.models.speech import LogMel
    from af.training.datamodule import WindowData

    features = LogMel(block_frames=5, window_frames=20)
    data = WindowData(latents, window_frames=20, block_frames=5, features=features, batch_size=3, workers=0)
    data.trainer = type("Trainer", (), {"global_rank": 1, "world_size": 2})()
    with pytest.raises(UserError, match=r"data\.batch_size=3"):
        data.train_dataloader()
