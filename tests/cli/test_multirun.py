"""A multirun trains every job once to its end, whatever is killed on the way, through any of Hydra's launchers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch

from af.cli import multirun
from af.cli.config import config_folder
from af.cli.main import main
from af.errors import UserError
from af.files import read_json, read_lines, write_json
from tests.training.test_ranks import SRUN, TORCHRUN
from tests.training.test_resume import DENOISER, same

TINY = [*DENOISER, "data.batch_size=2", "data.workers=0", "trainer.val_check_interval=1000", "scheduler.warmup_steps=0"]
RATES = ("0.001", "0.002")


@pytest.fixture
def words(latents, tmp_path) -> list[str]:
    return [*TINY, f"data.root={latents}", f"hydra.sweep.dir={tmp_path / 'runs'}"]


@pytest.fixture
def asked(monkeypatch) -> list[dict]:
    """The configurations of jobs, in place of their trainings: the loss is a parabola of the learning rate."""
    configs = []

    def train(file: Path, folder: Path) -> None:
        config = read_json(file)["config"]
        configs.append(config)
        if config["seed"] == 13:
            raise UserError("unlucky")
        write_json(folder / "config.json", config)
        write_json(folder / "done.json", {})
        loss = (config["optimizer"]["lr"] - 0.4) ** 2
        (folder / "validation.jsonl").write_text(json.dumps({"step": 1, "val/loss": loss}) + "\n")

    monkeypatch.setattr(multirun, "_train", train)
    return configs


def test_a_job_has_a_folder_named_after_what_is_swept(words, asked, tmp_path):
    assert main(["train", *words, "-m", "seed=0,1", "optimizer.lr=0.1,0.2"]) == 0
    assert main(["train", "-m", "optimizer.lr=0.1,0.2", *words, "seed=1,0"]) == 0  # the same ones, which are finished
    assert [Path(config["run"]).name for config in asked] == [
        f"optimizer.lr={rate},seed={seed}" for seed in (0, 1) for rate in (0.1, 0.2)
    ]
    assert [config["seed"] for config in asked] == [0, 0, 1, 1]
    command = read_json(tmp_path / "runs" / "optimizer.lr=0.1,seed=1" / "job.json")["command"]
    assert {"seed=1", "optimizer.lr=0.1", f"run={tmp_path / 'runs' / 'optimizer.lr=0.1,seed=1'}"} < set(command)


def test_a_run_of_its_own_may_be_named_by_its_values(words, asked, tmp_path):
    folder = f"hydra.sweep.dir={tmp_path}/base/${{module.loss.kind}}-${{seed}}"
    assert main(["train", *words, folder, "hydra.sweep.subdir=.", "-m", "module.loss.kind=l1,l2"]) == 0
    assert [Path(config["run"]) for config in asked] == [tmp_path / "base" / "l1-0", tmp_path / "base" / "l2-0"]


def test_flags_of_lightnings_trainer_pass(words, asked):
    assert main(["train", *words, "-m", "trainer.gradient_clip_algorithm=norm,value"]) == 0
    assert [config["trainer"]["gradient_clip_algorithm"] for config in asked] == ["norm", "value"]


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("optimizer.lrr=1,2", "optimizer.lrr: there is no such key; did you mean optimizer.lr?"),
        ("experiment=denoiser_dmo,vae_demo", "did you mean denoiser_demo?"),
        ("hydra/launcher=jblib", "did you mean joblib?"),
        ("nonsense", "expected KEY=VALUE"),
        ("optimizer.lr=interval(0,1)", "does not support sweep type"),
        ("hydra/launcher=slurm", "slurm cluster?"),
    ],
)
def test_what_does_not_compose_is_said_before_any_job(word, said, words, asked, capsys):
    assert main(["train", *words, "-m", "seed=0,1", word]) == 1
    assert said in capsys.readouterr().err
    assert not asked


def test_several_values_without_m_are_refused(words, capsys):
    assert main(["train", *words, "seed=0,1"]) == 1
    assert "af train -m" in capsys.readouterr().err


@pytest.mark.parametrize("name", sorted(p.stem for p in (config_folder() / "sweep").glob("*.yaml")))
def test_every_sweep_of_ours_has_jobs_that_compose(name, denoiser_folder, asked, tmp_path, monkeypatch):
    """The first values of what is swept; folders tell all jobs apart."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("af.cli.multirun.objective", lambda *_: 0.0)
    short = ["trainer.max_steps=1", "hydra.sweeper.n_trials=2"] if "search" in name else ["trainer.max_steps=1"]
    start = [f"start={denoiser_folder}"] if name in ("losers", "preference", "reactions_preference") else []
    assert main(["train", f"sweep={name}", *start, *short, "-m", "seed=0"]) == 0
    folders = {config["run"] for config in asked}
    assert len(folders) == len(asked) >= 1
    assert all(Path(folder).parts[:2] == ("runs", asked[0]["name"]) for folder in folders)


@pytest.mark.parametrize("environment", [TORCHRUN, SRUN])
def test_a_multirun_is_not_started_by_every_rank(environment, words, monkeypatch, capsys):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert main(["train", *words, "-m", "seed=0,1"]) == 1
    assert "every rank" in capsys.readouterr().err


def test_a_failed_job_keeps_no_other_from_running_and_is_tried_again(words, asked, capsys):
    for _ in range(2):
        assert main(["train", *words, "-m", "seed=13,14"]) == 1
        assert "unlucky" in capsys.readouterr().err
    assert [config["seed"] for config in asked] == [13, 14, 13]


def test_the_last_words_of_a_job_are_told(tmp_path):
    write_json(tmp_path / "job.json", {"command": [], "config": {"run": "x"}})
    with pytest.raises(UserError, match=r"seed .*log\.txt has everything.*continues with the others"):
        multirun._train(tmp_path / "job.json", tmp_path)


def test_an_objective_that_no_job_has_is_said(words, asked, capsys):
    assert main(["train", *words, "objective=val/lss", "-m", "seed=0"]) == 1
    assert "objective=val/lss" in (said := capsys.readouterr().err)
    assert "did you mean val/loss?" in said


def test_the_evaluation_comes_before_the_validations_of_which_the_last_counts(tmp_path):
    lines = [{"step": 1, "val/loss": 3.0}, {"step": 2, "val/loss": 2.0, "react/smile": 0.1}]
    (tmp_path / "validation.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert multirun.objective(tmp_path, "val/loss") == 2.0
    assert multirun.objective(tmp_path, "react/smile") == 0.1
    write_json(tmp_path / "evaluation" / "metrics.json", {"react/smile": 0.4, "better": {}})
    assert multirun.objective(tmp_path, "react/smile") == 0.4


def test_a_job_whose_evaluation_is_older_than_its_training_is_not_finished(words, asked, tmp_path):
    command = ["train", *words, "evaluation=linear_probe", "-m", "seed=0,1"]
    assert main(command) == 0
    metrics = tmp_path / "runs" / "seed=1" / "evaluation" / "metrics.json"
    write_json(metrics, {})
    assert main(command) == 0
    os.utime(metrics, (0, 0))
    assert main(command) == 0
    assert [config["seed"] for config in asked] == [0, 1, 0, 0, 1]


def test_a_stopped_search_goes_on_and_finds_the_valley(words, asked, tmp_path, monkeypatch):
    optuna = pytest.importorskip("optuna")
    search = ["train", *words, "objective=val/loss", "-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=12"]
    search += ["optimizer.lr=interval(0.01,1.0)", "module.loss.kind=l1,l2"]
    train = multirun._train

    def dies(file: Path, folder: Path) -> None:
        if len(asked) == 5:
            raise KeyboardInterrupt
        train(file, folder)

    monkeypatch.setattr(multirun, "_train", dies)
    assert main(search) == 130
    monkeypatch.setattr(multirun, "_train", train)
    assert main(search) == 0
    study = optuna.load_study(study_name=None, storage=f"sqlite:///{tmp_path / 'runs' / 'study.db'}")
    over = [trial for trial in study.trials if trial.state == optuna.trial.TrialState.COMPLETE]
    assert len(over) == 12
    assert len({trial.params["optimizer.lr"] for trial in over}) == len(asked) == 12  # nothing was tried twice
    stopped = next(trial for trial in study.trials if trial.state == optuna.trial.TrialState.FAIL)
    assert stopped.params in [trial.params for trial in over]
    assert abs(study.best_params["optimizer.lr"] - 0.4) < 0.15
    assert main(search) == 0
    assert len(asked) == 12  # nothing left to do


def test_a_search_without_an_objective_is_refused(words, asked, capsys):
    pytest.importorskip("optuna")
    assert main(["train", *words, "-m", "hydra/sweeper=optuna", "optimizer.lr=interval(0.01,1.0)"]) == 1
    assert "objective is not set" in capsys.readouterr().err


def until(condition: Callable[[], object], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def trainings(process: subprocess.Popen) -> dict[Path, psutil.Process]:
    """Trainings on their way that have a checkpoint, and their processes."""
    found = {}
    for one in psutil.Process(process.pid).children(recursive=True):
        try:
            words = one.cmdline()
        except psutil.Error:
            continue
        if "--resolved" in words:
            folder = Path(words[-1]).parent
            if list((folder / "checkpoints").glob("[0-9]*.ckpt")) and not (folder / "done.json").is_file():
                found[folder] = one
    return found


def start(words: list[str]) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-m", "af.cli.main", "train", *words], env=environment)


def undisturbed(words: list[str], folder: Path, *values: str) -> Path:
    """The same training, in this process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert main(["train", *(w for w in words if not w.startswith("hydra.")), *values, f"run={folder}"]) == 0
    finally:
        torch.set_num_threads(threads)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("launcher", "seeds", "told"),
    [("submitit_local", 6, ["preempted", "killed", "killed", "killed"]), ("joblib", 2, ["killed"])],
    ids=["submitit_local", "joblib"],
)
def test_jobs_with_kills_and_a_preemption_end_as_undisturbed_ones(launcher, seeds, told, words, tmp_path):
    """Twelve jobs, three kills and a preemption by the launcher that knows preemptions; four jobs and a kill by the other."""
    words = [*words, "trainer.max_steps=60", "checkpoints.every_n_steps=5"]
    several = ["-m", f"seed={','.join(map(str, range(seeds)))}", f"optimizer.lr={','.join(RATES)}"]
    command = [*words, *several, f"hydra/launcher={launcher}"]
    command += ["hydra.launcher.n_jobs=2"] if launcher == "joblib" else ["hydra.sweeper.max_batch_size=3"]
    disturbed: dict[Path, str] = {}

    def disturb(process: subprocess.Popen) -> None:
        while len(disturbed) < len(told) and process.poll() is None:
            for folder, training in trainings(process).items():
                if folder in disturbed or len(disturbed) == len(told):
                    continue
                disturbed[folder] = told[len(disturbed)]
                if disturbed[folder] == "preempted":
                    training.parent().send_signal(signal.SIGUSR2)  # as SLURM does before it takes a machine away
                else:
                    training.kill()
            time.sleep(0.01)

    for _ in range(5):  # a batch with a job that failed is the last one that is begun
        process = start(command)
        disturb(process)
        if process.wait() == 0:
            break
    assert process.returncode == 0
    assert list(disturbed.values()) == told

    def starts() -> dict[Path, list[int]]:
        done = sorted((tmp_path / "runs").glob("*/done.json"))
        return {file.parent: [line["from_step"] for line in read_lines(file.parent / "history.jsonl")] for file in done}

    found = starts()
    assert len(found) == seeds * len(RATES)
    for folder, steps in found.items():
        if folder in disturbed:
            assert steps[0] == 0
            assert 0 < steps[-1] < 60, "it goes on from its checkpoint"
        else:
            assert steps == [0], "it was trained once"
    whole = tmp_path / "whole"
    for seed in range(seeds):
        for rate in RATES:
            alone = undisturbed(words, whole / f"{seed}-{rate}", f"seed={seed}", f"optimizer.lr={rate}")
            assert same(alone, tmp_path / "runs" / f"optimizer.lr={rate},seed={seed}")
    assert not same(whole / "0-0.001", whole / "0-0.002")
    assert main(["train", *words, *several]) == 0  # nothing left to do, by whatever launcher
    assert starts() == found


@pytest.mark.slow
def test_a_killed_search_goes_on_with_the_training_it_was_at(words, tmp_path):
    optuna = pytest.importorskip("optuna")
    words = [*words, "trainer.max_steps=60", "trainer.val_check_interval=30", "checkpoints.every_n_steps=5"]
    command = [*words, "objective=val/loss", "-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=2"]
    command += ["optimizer.lr=interval(0.0005,0.002)"]
    process = start(command)
    until(lambda: len(list((tmp_path / "runs").glob("*/done.json"))) == 1)
    until(lambda: trainings(process))
    ((folder, training),) = trainings(process).items()
    process.kill()
    process.wait()
    assert start(command).wait() == 0
    assert not training.is_running()
    study = optuna.load_study(study_name=None, storage=f"sqlite:///{tmp_path / 'runs' / 'study.db'}")
    over = [trial for trial in study.trials if trial.state == optuna.trial.TrialState.COMPLETE]
    assert len(over) == len(list((tmp_path / "runs").glob("*/done.json"))) == 2
    starts = [line["from_step"] for line in read_lines(folder / "history.jsonl")]
    assert len(starts) == 2
    assert 0 < starts[1] < 60
    rate = read_json(folder / "config.json")["optimizer"]["lr"]
    assert same(undisturbed(words, tmp_path / "whole", f"optimizer.lr={rate}"), folder)
