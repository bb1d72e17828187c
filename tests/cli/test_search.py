"""Optuna's search: trials are jobs of the sweep's ledger, a stopped study goes on, the hopeless are given up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from af.cli.jobs import record
from af.cli.main import main
from af.cli.search import logged
from af.cli.sweeping import ProcessLauncher, multirun
from af.errors import UserError
from af.files import append_line, write_json

CONFIG = """
# @package _global_
name: search
x: 0.0
kind: a
objective: {file: run/validation.jsonl, metric: val/loss, direction: minimize}
search:
  trials: 12
  seed: 0
  startup_trials: 3
  warmup_steps: 1
  params:
    x: {low: -2.0, high: 2.0}
    kind: {choices: [a, b]}
stages:
  only: [train, "x=${x}", "kind=${kind}", "run=${job}"]
hydra:
  sweeper:
    params: {x: 0.0, kind: a}
"""


@pytest.fixture
def configs(tmp_path) -> Path:
    (tmp_path / "conf" / "sweep").mkdir(parents=True)
    (tmp_path / "conf" / "sweep" / "parabola.yaml").write_text(CONFIG.lstrip())
    return tmp_path / "conf"


class Parabola(ProcessLauncher):
    """In place of trainings: two validations with the loss (x − 1)²; `asked` counts, `dies_at` stops the sweep."""

    asked = 0
    dies_at = -1

    def run(self, jobs, prune=None):
        (job,) = jobs
        type(self).asked += 1
        if self.asked == self.dies_at:
            raise KeyboardInterrupt
        loss = (float(job.stages["only"][1].removeprefix("x=")) - 1) ** 2
        for step in (1, 2):
            append_line(job.folder / "run" / "validation.jsonl", json.dumps({"step": step, "val/loss": loss}))
            if prune(job):
                record(job, "pruned")
                return {job.name: "pruned"}
        record(job, "finished")
        return {job.name: "finished"}


def test_values_of_both_kinds_of_files(tmp_path):
    append_line(tmp_path / "a.jsonl", '{"step": 5, "val/loss": 0.5}')
    append_line(tmp_path / "a.jsonl", '{"step": 9, "other": 1}')
    write_json(tmp_path / "b.json", {"react/smile": 0.2, "lip/corr": None})
    assert logged(tmp_path / "a.jsonl", "val/loss") == [(5, 0.5)]
    assert logged(tmp_path / "b.json", "react/smile") == [(0, 0.2)]
    assert logged(tmp_path / "b.json", "lip/corr") == logged(tmp_path / "c.json", "x") == []


def test_without_the_extra_it_is_named(configs, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    assert main(["sweep", "sweep=parabola", f"run={tmp_path / 'run'}", "--config-dir", str(configs)]) == 1
    assert "avatar-forcing[search]" in capsys.readouterr().err


def test_a_stopped_search_goes_on_and_finds_the_valley(configs, tmp_path):
    optuna = pytest.importorskip("optuna")
    words = ["sweep=parabola", f"run={tmp_path / 'run'}"]

    class Dies(Parabola):
        dies_at = 5

    with pytest.raises(KeyboardInterrupt):
        multirun(words, configs, Dies())

    class GoesOn(Parabola):
        pass

    study = multirun(words, configs, GoesOn())
    over = [t for t in study.trials if t.state.is_finished()]
    assert len(over) == len(study.trials) == 12  # the stopped trial was taken up again
    assert GoesOn.asked == 12 - 4
    assert abs(study.best_params["x"] - 1) < 0.5
    assert any(t.state == optuna.trial.TrialState.PRUNED for t in over)
    assert multirun(words, configs, GoesOn()) is not None
    assert GoesOn.asked == 12 - 4  # nothing left to do


def test_what_goes_on_does_not_begin_again(configs, tmp_path):
    """A search that is stopped twice before its sampler has learnt anything tries no value twice."""
    pytest.importorskip("optuna")
    words = ["sweep=parabola", f"run={tmp_path / 'run'}"]
    for trials in (2, 4, 6):
        study = multirun([*words, f"search.trials={trials}"], configs, Parabola())
    assert len({trial.params["x"] for trial in study.trials}) == 6


def test_an_objective_that_no_job_has_is_said(configs, tmp_path):
    pytest.importorskip("optuna")
    with pytest.raises(UserError, match="'val/lss'"):
        multirun(["sweep=parabola", f"run={tmp_path / 'run'}", "objective.metric=val/lss"], configs, Parabola())


def test_a_space_that_is_none_is_refused(configs, tmp_path):
    pytest.importorskip("optuna")
    with pytest.raises(UserError, match=r"search\.params\.x"):
        multirun(["sweep=parabola", f"run={tmp_path / 'run'}", "+search.params.x.hihg=3"], configs, Parabola())
