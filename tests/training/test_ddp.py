"""Two ranks on one machine: started by `af train` itself, nothing unused, one folder written once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from .test_resume import DENOISER, SHORT, VAE, continued_from, train
from .test_switches import EXACT, end_together

DDP = ["trainer=ddp", "trainer.accelerator=cpu"]


def go(run: Path, *words: str) -> None:
    command = [sys.executable, "-m", "af.cli.main", "train", *words, f"run={run}"]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=300)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["vae", "preference"])
def test_two_ranks_train(stage, dyads, latents, losers, denoiser_folder, tmp_path):
    """The stages beside the denoiser's, of which there is more below."""
    preference = [
        "experiment=preference_demo",
        "scheme=forcing",
        f"start={denoiser_folder}",
        f"data.losers={losers}",
        "module.online=null",
    ]
    arguments, root = {"vae": (VAE, dyads), "preference": (preference, latents)}[stage]
    go(tmp_path, *arguments, *SHORT, f"data.root={root}", *DDP, "trainer.devices=2")
    assert json.loads((tmp_path / "done.json").read_text())["steps"] == 7
    assert json.loads((tmp_path / "config.json").read_text())["trainer"]["devices"] == 2
    assert (tmp_path / "export" / "model.safetensors").is_file()


def curve(run: Path) -> list[float]:
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    return [event.value for event in events.Scalars("train/loss")]


@pytest.mark.slow
def test_ranks_share_a_batch_without_a_trace(latents, tmp_path):
    """The same global batch on one rank and on two: losses and weights equal up to fp64's rounding. A run
    of one rank goes on with three, and ends there too."""
    words = [*DENOISER, *SHORT, f"data.root={latents}", "data.batch_size=6", "trainer.log_every_n_steps=1"]
    words += [*EXACT, "module.dropout.user=0.3", "trainer.max_steps=9"]
    one, two, more = (tmp_path / name for name in ("one", "two", "more"))
    assert train(words, one) == 0
    go(two, *words, *DDP, "trainer.devices=2", "data.workers=1")
    assert len(curve(one)) == 9
    assert curve(two) == pytest.approx(curve(one), rel=1e-6)
    end_together(one, two)
    validations = [json.loads((run / "validation.jsonl").read_text().splitlines()[-1]) for run in (one, two)]
    assert validations[1] == pytest.approx(validations[0], rel=1e-6)
    go(continued_from(one, more, 6), *words, *DDP, "trainer.devices=3")
    end_together(one, more)


def test_a_batch_that_ranks_cannot_share_is_refused(latents, monkeypatch):
    from af.errors import UserError
    from af.models.speech import LogMel
    from af.training.datamodule import WindowData

    features = LogMel(block_frames=5, window_frames=20)
    data = WindowData(latents, window_frames=20, block_frames=5, features=features, batch_size=3, workers=0)
    data.trainer = type("Trainer", (), {"global_rank": 1, "world_size": 2})()
    with pytest.raises(UserError, match=r"data\.batch_size=3"):
        data.train_dataloader()
