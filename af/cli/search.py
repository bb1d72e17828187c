"""Optuna's search over a sweep's settings: trials are jobs, the study is kept in the sweep's folder and goes on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from af.cli.jobs import Job
from af.errors import UserError
from af.files import read_json, read_lines

if TYPE_CHECKING:
    import optuna

    from af.cli.sweeping import ProcessLauncher


def logged(file: Path, metric: str) -> list[tuple[int, float]]:
    """(step, value) of a metric in a file of `af`: every validation of a .jsonl, the one number of a .json."""
    if not file.is_file():
        return []
    entries = read_lines(file) if file.suffix == ".jsonl" else [read_json(file)]
    return [(int(e.get("step", 0)), float(e[metric])) for e in entries if e.get(metric) is not None]


def objective(config: Any, job: Job) -> float | None:
    """What a job is worth: the last value of `objective.metric` in `objective.file` of the job; None without one."""
    wanted = config.get("objective")
    values = [] if wanted is None else logged(job.folder / wanted.file, wanted.metric)
    return values[-1][1] if values else None


def search(launcher: ProcessLauncher, overrides: list[str]) -> optuna.Study:
    """Run the trials that the configuration's `search` asks for and that the study does not have yet.

    A trial that was stopped is finished first. With an objective in a .jsonl file (a value a validation), trials that
    fall behind are given up by the median rule. UserError without the extra, or when a trial fails.
    """
    try:
        import optuna
    except ImportError:
        raise UserError("search needs Optuna: pip install 'avatar-forcing[search]'") from None
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend
    from optuna.trial import TrialState

    config = launcher.config
    wanted = config.search
    if config.objective is None:
        raise UserError("search: objective is not set ({file: …, metric: …, direction: minimize or maximize})")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder = Path(config.run)
    folder.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        study_name=config.name,
        storage=JournalStorage(JournalFileBackend(str(folder / "optuna.journal"))),
        load_if_exists=True,
        direction=config.objective.direction,
        pruner=optuna.pruners.MedianPruner(n_startup_trials=wanted.startup_trials, n_warmup_steps=wanted.warmup_steps),
    )
    # what goes on must not draw again what was drawn for the first trials
    study.sampler = optuna.samplers.TPESampler(seed=wanted.seed + len(study.trials))
    stopped = [t for t in study.trials if t.state == TrialState.RUNNING]
    while True:
        over = [t for t in study.trials if t.state in (TrialState.COMPLETE, TrialState.PRUNED)]
        if len(over) >= wanted.trials:
            return study
        trial = optuna.trial.Trial(study, stopped.pop(0)._trial_id) if stopped else study.ask()
        chosen = {name: suggest(trial, name, dict(space)) for name, space in wanted.params.items()}
        job = launcher.job([*overrides, *(f"{name}={value}" for name, value in chosen.items())])
        tell(study, trial, job, launcher)


def suggest(trial: optuna.Trial, name: str, space: Mapping[str, Any]) -> Any:
    """A value of one setting: {choices: […]}, or {low, high} with `log` or `step`. UserError for anything else."""
    if set(space) == {"choices"}:
        return trial.suggest_categorical(name, list(space["choices"]))
    if {"low", "high"} <= set(space) <= {"low", "high", "log", "step"}:
        whole = isinstance(space["low"], int) and isinstance(space["high"], int)
        ask = trial.suggest_int if whole else trial.suggest_float
        return ask(name, space["low"], space["high"], **{k: v for k, v in space.items() if k in ("log", "step")})
    raise UserError(f"search.params.{name}: {dict(space)}; allowed: choices, or low and high with log or step")


def tell(study: optuna.Study, trial: optuna.Trial, job: Job, launcher: ProcessLauncher) -> None:
    """Run a trial's job to its end, or until it falls behind, and put the result into the study.

    UserError when it fails, or ends without a number for the objective.
    """
    from optuna.trial import TrialState

    wanted = launcher.config.objective
    file = job.folder / wanted.file
    seen = set(study.trials[trial.number].intermediate_values)

    def behind(job: Job) -> bool:
        for step, value in logged(file, wanted.metric) if file.suffix == ".jsonl" else ():
            if step not in seen:
                seen.add(step)
                trial.report(value, step)
                if trial.should_prune():
                    return True
        return False

    state = launcher.run([job], prune=behind)[job.name]
    if state == "failed":
        raise UserError(f"trial {trial.number} failed; the same command tries it again. See {job.folder / 'log.txt'}")
    value = objective(launcher.config, job)
    if state == "finished" and value is None:
        raise UserError(
            f"objective: {file} says nothing about {wanted.metric!r}; say which file and metric of a job is meant"
        )
    if state == "pruned" or value is None or not math.isfinite(value):
        study.tell(trial, state=TrialState.PRUNED)
    else:
        study.tell(trial, value)
