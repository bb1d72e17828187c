"""A stopped run continued is the undisturbed run, bit for bit (CPU)."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from af.cli.config import compose, instantiate, resolve
from af.cli.main import main
from af.errors import UserError
from af.files import exclusive, read_json, write_json
from af.training.checkpoints import SafeCheckpointIO

VAE = [
    "experiment=vae_demo",
    "model.image_size=32",
    "model.latent_dim=16",
    "model.directions=14",
    "model.channel_base=128",
    "model.max_channels=16",
]
DENOISER = [
    "experiment=denoiser_demo",
    "model.motion_space.latent_dim=16",
    "model.motion_space.directions=6",
    "model.hidden=16",
    "model.depth=2",
    "model.heads=2",
    "model.condition_dim=16",
    "model.condition_heads=2",
    "model.block_frames=5",
    "model.window_frames=20",
    "features.block_frames=5",
    "features.window_frames=20",
]
SHORT = [
    "data.batch_size=4",
    "data.workers=0",
    "trainer.max_steps=7",
    "trainer.val_check_interval=4",
    "checkpoints.every_n_steps=3",
]


@pytest.fixture(params=["vae", "denoiser", "preference"])
def arguments(request, dyads, latents, losers, denoiser_folder) -> list[str]:
    preference = [
        "experiment=preference_demo",
        "scheme=forcing",
        f"start={denoiser_folder}",
        f"data.losers={losers}",
        "module.online=null",
    ]
    stages = {"vae": (VAE, dyads), "denoiser": (DENOISER, latents), "preference": (preference, latents)}
    stage, root = stages[request.param]
    return [*stage, *SHORT, f"data.root={root}"]


def weights(run: Path) -> dict:
    return load_file(run / "export" / "model.safetensors")


def started(run: Path) -> dict[str, torch.Tensor]:
    """The trained weights of a run as they were before its first step."""
    config = json.loads((run / "config.json").read_text())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config["seed"])
        part = getattr(instantiate(config["module"]), config["part"])
    return {name: p.detach() for name, p in part.named_parameters() if p.requires_grad}


def same(first: Path, second: Path) -> bool:
    """Whether two runs end with the same weights, to the last bit. They must have learnt something."""
    a, b = weights(first), weights(second)
    assert not all(value.equal(a[name]) for name, value in started(first).items())
    return a.keys() == b.keys() and all(a[k].equal(b[k]) for k in a)


def train(arguments: list[str], run: Path, *more: str) -> int:
    return main(["train", *arguments, f"run={run}", *more])


def test_a_run_stopped_between_checkpoints_ends_with_the_same_weights(arguments, tmp_path, monkeypatch):
    assert train(arguments, tmp_path / "whole") == 0
    module = resolve(compose("train", [*arguments, f"run={tmp_path}"]))["module"]
    cls = type(instantiate(module))
    original = cls.training_step

    def dies(self, batch, batch_idx):
        if self.batches_seen == 5:
            raise OSError("the machine went away")
        return original(self, batch, batch_idx)

    monkeypatch.setattr(cls, "training_step", dies)
    with pytest.raises(OSError, match="went away"):
        train(arguments, tmp_path / "stopped")
    monkeypatch.undo()
    assert not (tmp_path / "stopped" / "export").exists()
    assert train(arguments, tmp_path / "stopped") == 0
    assert same(tmp_path / "whole", tmp_path / "stopped")


def test_a_finished_run_says_how_it_was_made_and_is_left_alone(arguments, tmp_path, capsys):
    run = tmp_path / "run"
    assert train(arguments, run, "trainer.max_steps=1") == 0
    assert read_json(run / "environment.json")["packages"]["lightning"]
    assert read_json(run / "config.json")["trainer"]["max_steps"] == 1
    assert list((run / "tensorboard").glob("events*"))
    written = (run / "export" / "model.safetensors").stat().st_mtime_ns
    assert train(arguments, run, "trainer.max_steps=1") == 0
    printed = capsys.readouterr().out
    assert "finished" in printed
    assert train(arguments, run, "trainer.max_steps=1", "optimizer.lr=0.5") == 1
    assert "optimizer.lr" in capsys.readouterr().err
    start = next(word for word in printed.split() if word.startswith("start="))
    assert train([a for a in arguments if not a.startswith("start=")], tmp_path / "more", start) == 0
    assert (run / "export" / "model.safetensors").stat().st_mtime_ns == written


def test_the_first_rank_of_a_launcher_holds_the_folder(latents, tmp_path, monkeypatch, capsys):
    """Another process has the folder and ends the run; a rank that waited for it must end its fellows."""
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    for name in ("SLURM_PROCID", "SLURM_NODEID", "SLURM_LOCALID"):
        monkeypatch.setenv(name, "0")
    folder, words = tmp_path / "run", [*DENOISER, f"data.root={latents}", "trainer=ddp", "trainer.devices=2"]
    config = resolve(compose("train", [*words, f"run={folder}"]))
    with ThreadPoolExecutor(1) as pool:
        with exclusive(folder / "lock"):
            rank = pool.submit(train, words, folder)
            while not (printed := capsys.readouterr().out):
                assert not rank.done()
                time.sleep(0.02)
            assert "another process; waiting" in printed
            write_json(folder / "config.json", config)
            write_json(folder / "done.json", {"steps": 1})
        assert rank.result() == 1
    assert "finished by another process" in capsys.readouterr().err


def continued_from(whole: Path, run: Path, step: int) -> Path:
    """A copy of a finished run as it was when it had written the checkpoint of `step`."""
    shutil.copytree(whole, run, symlinks=True)
    for name in ("done.json", "export/model.safetensors", "checkpoints/last.ckpt"):
        (run / name).unlink()
    for path in (run / "checkpoints").glob("*.ckpt"):
        if int(path.stem) > step:
            path.unlink()
    return run


@pytest.fixture(scope="module")
def whole(latents, tmp_path_factory) -> tuple[list[str], Path]:
    """The arguments of a denoiser's training, and its run undisturbed."""
    arguments, run = [*DENOISER, *SHORT, f"data.root={latents}"], tmp_path_factory.mktemp("whole")
    assert train(arguments, run) == 0
    return arguments, run


def test_a_run_goes_on_with_other_workers_and_ends_with_the_same_weights(whole, tmp_path):
    arguments, undisturbed = whole
    run = continued_from(undisturbed, tmp_path / "more", 6)
    assert train(arguments, run, "data.workers=1", "callbacks.heartbeat.every_s=5") == 0
    assert same(undisturbed, run)
    assert json.loads((run / "config.json").read_text())["data"]["workers"] == 1
    assert train(arguments, run, "optimizer.lr=1") == 1  # what changes the result stays refused


def test_a_full_disk_ends_a_run_and_loses_no_checkpoint(whole, tmp_path, capsys):
    """The checkpoint of step 6 does not fit any more; with room again the run ends as if nothing had happened."""
    arguments, undisturbed = whole
    original = SafeCheckpointIO.save_checkpoint

    def full(self, checkpoint, path, storage_options=None):
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        limit = 20_000 if checkpoint["global_step"] == 6 else soft
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            original(self, checkpoint, path, storage_options)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SafeCheckpointIO, "save_checkpoint", full)
        assert train(arguments, tmp_path / "full") == 1
    error = capsys.readouterr().err
    assert "00000006.ckpt: the checkpoint could not be written" in error
    assert "Make room" in error
    kept = sorted(p.name for p in (tmp_path / "full" / "checkpoints").iterdir() if not p.is_symlink())
    assert kept == ["00000003.ckpt"]
    assert train(arguments, tmp_path / "full") == 0
    assert same(undisturbed, tmp_path / "full")


def test_another_data_seed_does_not_continue_a_run(dyads, tmp_path):
    run = [*VAE, *SHORT, f"data.root={dyads}", f"run={tmp_path}"]
    data = instantiate(resolve(compose("train", run))["data"])
    with pytest.raises(UserError, match=r"data\.seed"):
        data.load_state_dict({"samples": 8, "seed": 99, "root": str(dyads)})


@pytest.mark.slow
def test_a_killed_process_continued_ends_with_the_same_weights(latents, tmp_path, one_thread):
    arguments = [*DENOISER, *SHORT, f"data.root={latents}", "data.workers=1", "trainer.max_steps=150"]
    arguments += ["trainer.val_check_interval=50", "checkpoints.every_n_steps=10"]
    command = [sys.executable, "-m", "af.cli.main", "train", *arguments, f"run={tmp_path / 'killed'}"]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    checkpoint = tmp_path / "killed" / "checkpoints" / "last.ckpt"
    deadline = time.monotonic() + 120
    while not checkpoint.is_file() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    assert process.wait(120) == -signal.SIGKILL
    assert not (tmp_path / "killed" / "done.json").exists(), "ended before it could be killed"
    for run in ("killed", "whole"):
        assert train(arguments, tmp_path / run) == 0
    assert same(tmp_path / "whole", tmp_path / "killed")
