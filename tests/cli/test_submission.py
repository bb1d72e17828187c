"""Sweeps through submitit's local executor: every job once to its end; a preempted one goes on where it was."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from af.cli.main import main
from tests.cli.test_sweep import TINY, events
from tests.training.test_resume import DENOISER, same

pytest.importorskip("submitit")
PARTS = """
# @package _global_
name: parts
root: ???
part: 0
stages:
  look: [shards, stats, "${root}/${part}"]
hydra:
  sweeper:
    params:
      part: range(0,12)
"""
LOCAL = ["launcher=submitit", "launcher.cluster=local", "launcher.poll_s=0.2"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture
def configs(tmp_path) -> Path:
    folder = tmp_path / "conf" / "sweep"
    folder.mkdir(parents=True)
    (folder / "parts.yaml").write_text(PARTS.lstrip())
    denoiser = ", ".join(json.dumps(argument) for argument in DENOISER)
    (folder / "tiny.yaml").write_text(TINY.format(denoiser=denoiser).lstrip())
    return folder.parent


@pytest.mark.slow
def test_twelve_jobs_three_of_which_fail_at_first_all_end_once(configs, dyads, tmp_path, capsys):
    root, run = tmp_path / "root", tmp_path / "sweep"
    root.mkdir()
    late = {2, 5, 11}
    for part in set(range(12)) - late:
        (root / str(part)).symlink_to(dyads / "train")
    words = ["sweep", "sweep=parts", f"root={root}", f"run={run}", "at_once=3", "--config-dir", str(configs), *LOCAL]
    assert main(words) == 1
    assert "3 of 12 jobs failed; the same command tries them again" in capsys.readouterr().err
    assert Counter(event for _, event in events(run)) == {"started": 12, "finished": 9, "failed": 3}
    for part in late:
        (root / str(part)).symlink_to(dyads / "train")
    assert main(words) == 0
    assert Counter(event for _, event in events(run)) == {"started": 15, "finished": 12, "failed": 3}
    ended = Counter(job for job, event in events(run) if event == "finished")
    assert set(ended.values()) == {1}
    assert main(words) == 0  # nothing left to do
    assert len(events(run)) == 30
    capsys.readouterr()
    assert main(["report", str(run), "--out", str(tmp_path / "report")]) == 0
    states = json.loads((tmp_path / "report" / "table.json").read_text())["runs"]
    assert [entry["state"] for entry in states] == ["finished"] * 12


@pytest.mark.slow
def test_a_preempted_job_ends_with_the_same_weights(configs, latents, tmp_path):
    """The signal that SLURM sends before it takes a machine away; submitit puts the job into its queue again."""
    words = [sys.executable, "-m", "af.cli.main", "sweep", "sweep=tiny", f"root={latents}", "steps=60", "user=0.0"]
    words += ["seed=0", "--config-dir", str(configs)]
    run = tmp_path / "preempted"
    sweep = subprocess.Popen([*words, f"run={run}", *LOCAL], env=ENVIRONMENT)
    try:
        wait_for(lambda: list(run.glob("*/denoiser/checkpoints/last.ckpt")), sweep)
        (task,) = [p for p in psutil.Process(sweep.pid).children(recursive=True) if "_submit" in " ".join(p.cmdline())]
        task.send_signal(signal.SIGUSR2)
        assert sweep.wait(300) == 0
    finally:
        sweep.kill()
    assert Counter(event for _, event in events(run)) == {"started": 2, "finished": 1}
    whole = tmp_path / "whole"
    subprocess.run([*words, f"run={whole}"], check=True, env=ENVIRONMENT, timeout=300)
    (first,), (second,) = (list(folder.glob("*/denoiser")) for folder in (whole, run))
    assert json.loads((second / "done.json").read_text())["steps"] == 60
    assert same(first, second)


def wait_for(condition, process, seconds=300.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        assert process.poll() is None, "ended before it could be preempted"
        time.sleep(0.02)


def test_a_wrong_cluster_and_a_search_are_refused(configs, tmp_path, capsys):
    words = ["sweep", "sweep=parts", f"root={tmp_path}", f"run={tmp_path / 'run'}", "--config-dir", str(configs)]
    assert main([*words, "launcher=submitit", "launcher.cluster=moon"]) == 1
    assert "launcher.cluster=moon" in capsys.readouterr().err
    assert main([*words, "launcher=submitit"]) == 1  # no SLURM here
    assert "launcher:" in capsys.readouterr().err
