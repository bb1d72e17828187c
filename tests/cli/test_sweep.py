"""A sweep runs every job once to its end, whatever is killed on the way."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from af.cli.config import compose, config_folder
from af.cli.jobs import Job, ledger_states, record, run_jobs
from af.cli.main import main
from af.cli.sweeping import ProcessLauncher, multirun
from af.evaluation.runs import Run, grouped
from af.training.ranks import Ranks, find_ranks
from tests.training.test_ranks import SRUN, TORCHRUN
from tests.training.test_resume import DENOISER

TINY = """
# @package _global_
name: tiny
seed: 0
user: 0.1
steps: 2
root: ???
stages:
  train: [train, {denoiser}, "run=${{job}}/denoiser", "data.root=${{root}}", "seed=${{seed}}", "trainer.max_steps=${{steps}}",
    trainer.val_check_interval=1000, data.batch_size=2, data.workers=0, "module.dropout.user=${{user}}",
    launch.checkpoint_every_n_steps=5]
hydra:
  sweeper:
    params:
      seed: 0,1
      user: 0.0,0.5
"""


@pytest.fixture
def configs(tmp_path) -> Path:
    folder = tmp_path / "conf"
    (folder / "sweep").mkdir(parents=True)
    denoiser = ", ".join(json.dumps(argument) for argument in DENOISER)
    (folder / "sweep" / "tiny.yaml").write_text(TINY.format(denoiser=denoiser).lstrip())
    return folder


def events(run: Path) -> list[tuple[str, str]]:
    lines = map(json.loads, (run / "ledger.jsonl").read_text().splitlines())
    return [(line["job"], line["event"]) for line in lines]


def command(configs: Path, root: Path, run: Path, *more: str) -> list[str]:
    return ["sweep", "sweep=tiny", f"root={root}", f"run={run}", "--config-dir", str(configs), *more]


def test_a_dry_run_names_jobs_and_commands(configs, latents, tmp_path, capsys):
    assert main([*command(configs, latents, tmp_path / "sweep"), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert printed.count(": to do") == 4
    assert "seed-1_user-0.5_" in printed
    assert "module.dropout.user=0.5" in printed
    assert not (tmp_path / "sweep" / "ledger.jsonl").exists()


def test_a_job_is_named_after_its_commands_not_the_order_of_its_settings(configs, latents, tmp_path, capsys):
    names = []
    for more in ([], ["user=0.0,0.5", "seed=0,1"], ["steps=3"]):
        main([*command(configs, latents, tmp_path / "sweep", *more), "--dry-run"])
        printed = capsys.readouterr().out.splitlines()
        names.append({line.removesuffix(": to do") for line in printed if line.endswith(": to do")})
    assert names[0] == names[1]
    assert not names[0] & names[2]


def test_values_swept_over_on_the_command_line_are_settings_too(configs, tmp_path):
    """Two folders are two settings, not two seeds of one: their values are paths, which tell nothing else."""
    ran: list[Job] = []

    class Gathered(ProcessLauncher):
        def run(self, jobs, prune=None):
            ran.extend(jobs)
            for job in jobs:
                job.write()
            return {job.name: "finished" for job in jobs}

    multirun(["sweep=tiny", f"run={tmp_path}", "user=0.0", "steps=2,3", "root=a/data,b/data"], configs, Gathered())
    assert [list(job.settings) for job in ran] == [["seed", "user", "steps", "root"]] * 8
    jobs = [Run(job.folder, Job.read(job.folder).settings, {}, (), "finished") for job in ran]
    assert [len(group.runs) for group in grouped(jobs)] == [2] * 4


def test_what_does_not_compose_is_said(configs, latents, tmp_path, capsys):
    assert main(command(configs, latents, tmp_path, "sweep=nothing")) == 1
    assert main(command(configs, latents, tmp_path, "usr=0.3")) == 1
    assert "usr" in capsys.readouterr().err


@pytest.mark.parametrize("environment", [TORCHRUN, SRUN])
def test_a_sweep_is_not_started_by_every_rank(environment, configs, latents, tmp_path, monkeypatch, capsys):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert main(command(configs, latents, tmp_path)) == 1
    assert "every rank" in capsys.readouterr().err


def test_a_failed_job_keeps_no_other_from_running_and_is_tried_again(tmp_path):
    def job(name: str, *arguments: str) -> Job:
        return Job(tmp_path / name, {"name": name}, {"only": arguments})

    good, bad = job("good", "shards", "--help"), job("bad", "shards", "stats", str(tmp_path / "nothing"))
    good.write()
    bad.write()
    assert run_jobs([bad, good], at_once=2) == {"good": "finished", "bad": "failed"}
    assert "no such folder" in (bad.folder / "log.txt").read_text()
    assert run_jobs([bad, good]) == {"good": "finished", "bad": "failed"}
    assert Counter(events(tmp_path))[("good", "started")] == 1
    assert Counter(events(tmp_path))[("bad", "failed")] == 2


def test_a_job_that_ends_while_it_is_given_up_has_ended(tmp_path):
    job = Job(tmp_path / "late", {}, {"only": ["shards", "--help"]})
    job.write()

    def late(job: Job) -> bool:
        while ledger_states(job.ledger).get(job.name) != "finished":
            time.sleep(0.05)
        return True

    assert run_jobs([job], prune=late) == {"late": "finished"}
    assert [event for _, event in events(tmp_path)] == ["started", "finished"]


def test_ranks_of_the_sweep_are_not_the_jobs(tmp_path, monkeypatch):
    from af.cli import jobs

    seen = {}
    for name, value in {**TORCHRUN, "TORCHELASTIC_RUN_ID": "x"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(jobs.subprocess, "Popen", lambda *a, **k: seen.update(k["env"]))
    tmp_path.joinpath("job").mkdir()
    jobs.start(Job(tmp_path / "job", {}, {}), threads=1)
    assert find_ranks(seen) == Ranks()
    assert not {*TORCHRUN, "TORCHELASTIC_RUN_ID"} & set(seen)
    assert seen["OMP_NUM_THREADS"]


def test_half_a_line_in_the_ledger_is_nothing(tmp_path):
    job = Job(tmp_path / "a", {}, {})
    record(job, "started")
    record(job, "finished")
    with open(job.ledger, "a") as ledger:
        ledger.write('{"job": "b", "ev')
    assert ledger_states(job.ledger) == {"a": "finished"}
    record(Job(tmp_path / "c", {}, {}), "finished")  # begins a line of its own
    assert ledger_states(job.ledger) == {"a": "finished", "c": "finished"}


@pytest.mark.parametrize("at_once", [0, -1])
def test_no_job_at_once_is_refused(at_once, configs, latents, tmp_path, capsys):
    for launcher in ("local", "submitit"):
        assert main(command(configs, latents, tmp_path, f"at_once={at_once}", f"launcher={launcher}")) == 1
        assert f"at_once={at_once}" in capsys.readouterr().err


@pytest.mark.slow
def test_a_killed_sweep_ends_every_job_exactly_once(configs, latents, tmp_path):
    """SIGKILL of the sweep in the middle of its first job; then the same command."""
    run = tmp_path / "sweep"
    words = [sys.executable, "-m", "af.cli.main", *command(configs, latents, run, "steps=24", "user=0.0")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(words, env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not list(run.glob("*/denoiser/checkpoints/last.ckpt")) and time.monotonic() < deadline:
        assert process.poll() is None, "ended before it could be killed"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    before = Counter(events(run))
    assert sum(n for (_, event), n in before.items() if event == "finished") < 2
    subprocess.run(words, env=environment, check=True, timeout=500, stderr=subprocess.DEVNULL)
    jobs = [folder.parent for folder in run.glob("*/job.json")]
    assert len(jobs) == 2
    counted = Counter(events(run))
    for job in jobs:
        assert counted[(job.name, "finished")] == 1
        assert json.loads((job / "denoiser" / "done.json").read_text())["steps"] == 24
        assert (job / "denoiser" / "export" / "model.json").is_file()
    subprocess.run(words, env=environment, check=True, timeout=500, stderr=subprocess.DEVNULL)
    assert Counter(events(run)) == counted  # nothing left to do


@pytest.mark.parametrize("name", sorted(p.stem for p in (config_folder() / "sweep").glob("*.yaml")))
def test_every_sweep_has_jobs_whose_commands_are_taken(name, denoiser_folder, tmp_path, capsys):
    assert main(["sweep", f"sweep={name}", f"run={tmp_path}", "seed=0", "--dry-run"]) == 0
    commands = [shlex.split(line)[1:] for line in capsys.readouterr().out.splitlines() if line.startswith("  af ")]
    assert len(commands) >= 2
    for verb, *arguments in {tuple(c): c for c in commands}.values():
        if verb == "train":
            started = [f"start={denoiser_folder}" if a.startswith("start=") else a for a in arguments]
            compose("train", started)
        module, parser = importlib.import_module(f"af.cli.{verb}"), argparse.ArgumentParser()
        module.configure(parser)
        parser.parse_intermixed_args(arguments)


def test_ranks_by_spawning_are_refused(latents, tmp_path, capsys):
    arguments = [*DENOISER, f"data.root={latents}", f"run={tmp_path}", "trainer=ddp", "trainer.devices=1"]
    assert main(["train", *arguments, "trainer.strategy=ddp_spawn"]) == 1
    assert "torchrun" in capsys.readouterr().err
