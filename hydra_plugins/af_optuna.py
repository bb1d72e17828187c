"""Hydra's `hydra/sweeper=optuna` on Optuna's ask-and-tell: the study is a file, and a stopped search goes on.

The public plugin (hydra-optuna-sweeper 1.3) asks for Optuna before 3. Spaces are written the same way: `a,b` and
`choice(a,b)`, `range(0,10)`, `interval(1e-5,1e-3)`, `tag(log,interval(1e-5,1e-3))`, `int(interval(1,8))`.
Hydra takes plugins from packages called hydra_plugins alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf


class OptunaSweeper(Sweeper):
    """`n_trials` trials, `n_jobs` of them given to the launcher at a time; the task returns what is minimised or maximised."""

    def __init__(
        self,
        n_trials: int,
        n_jobs: int,
        direction: str,
        seed: int,
        storage: str,
        params: Mapping[str, Any] | None = None,
    ) -> None:
        self.n_trials, self.n_jobs, self.direction, self.seed, self.storage = n_trials, n_jobs, direction, seed, storage
        self.params = params or {}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra."""
        self.config, self.context = config, hydra_context
        self.launcher = Plugins.instance().instantiate_launcher(hydra_context, task_function, config)

    def sweep(self, arguments: list[str]) -> Any:
        """Run the trials that the study does not have yet; returns the study. UserError without Optuna or an objective."""
        from af.errors import UserError
        from af.files import exclusive

        try:
            import optuna
        except ImportError:
            raise UserError("hydra/sweeper=optuna needs Optuna: pip install 'avatar-forcing[sweeps]'") from None
        if self.config.get("objective") is None:
            raise UserError(
                "objective is not set: name a number of the evaluation or validation, as objective=val/loss"
            )
        words = {word.get_key_element(): word for word in self._overrides(arguments)}
        folder = Path(self.config.hydra.sweep.dir)
        with exclusive(
            folder / "study.lock", waiting=lambda: print(f"{folder} is searched by another process; waiting")
        ):
            OmegaConf.save(self.config, folder / "multirun.yaml")
            study = optuna.create_study(
                study_name=str(folder), storage=self.storage, direction=self.direction, load_if_exists=True
            )
            # what goes on must not draw again what was drawn for the first trials
            study.sampler = optuna.samplers.TPESampler(seed=self.seed + len(study.trials))
            for stopped in study.get_trials(states=[optuna.trial.TrialState.RUNNING]):
                study.tell(stopped.number, state=optuna.trial.TrialState.FAIL)
                study.enqueue_trial(stopped.params)  # the same values find the same folder, and its checkpoint
            while left := self.n_trials - sum(
                trial.state.is_finished() and trial.value is not None for trial in study.trials
            ):
                trials = [study.ask() for _ in range(min(left, self.n_jobs))]
                batch = [[f"{key}={_value(trial, key, word)}" for key, word in words.items()] for trial in trials]
                results = self.launcher.launch(batch, initial_job_idx=trials[0].number)
                for trial, result in zip(trials, results, strict=True):
                    if not math.isfinite(value := result.return_value):
                        value = math.inf if self.direction == "minimize" else -math.inf
                    study.tell(trial, value)
        return study

    def _overrides(self, arguments: list[str]) -> Any:
        params = [f"{key}={value}" for key, value in self.params.items()]
        return OverridesParser.create(self.context.config_loader).parse_overrides([*params, *arguments])


def _value(trial: Any, key: str, word: Any) -> Any:
    """A trial's value of an override, in Hydra's words."""
    if not word.is_sweep_override():
        return word.get_value_element_as_str()
    if word.is_discrete_sweep():
        return trial.suggest_categorical(key, list(word.sweep_string_iterator()))
    space = word.value()
    suggest = trial.suggest_int if isinstance(space.start, int) and isinstance(space.end, int) else trial.suggest_float
    return suggest(key, space.start, space.end, log="log" in space.tags)
