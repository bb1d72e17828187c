"""Two ranks on one machine: started by `af train` itself, nothing unused, one folder written once."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from .test_resume import DENOISER, SHORT, VAE


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["vae", "denoiser", "preference"])
def test_two_ranks_train_and_continue(stage, dyads, latents, losers, denoiser_folder, tmp_path):
    preference = ["experiment=preference_demo", f"start={denoiser_folder}", f"data.losers={losers}"]
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


def test_a_batch_that_ranks_cannot_share_is_refused(latents, monkeypatch):
    from af.errors import UserError
    from af.models.speech import LogMel
    from af.training.datamodule import WindowData

    features = LogMel(block_frames=5, window_frames=20)
    data = WindowData(latents, window_frames=20, block_frames=5, features=features, batch_size=3, workers=0)
    data.trainer = type("Trainer", (), {"global_rank": 1, "world_size": 2})()
    with pytest.raises(UserError, match=r"data\.batch_size=3"):
        data.train_dataloader()
