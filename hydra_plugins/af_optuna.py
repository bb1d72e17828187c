"""Hydra's `hydra/sweeper=optuna` on Optuna's ask-and-tell: the study is a file, and a stopped search goes on.

The public plugin (hydra-optuna-sweeper 1.3) asks for Optuna before 3. Spaces are written the same way: `a,b` and
`choice(a,b)`, `range(0,10)`, `interval(1e-5,1e-3)`, `tag(log,interval(1e-5,1e-3))`, `int(interval(1,8))`.
Hydra takes plugins from packages called hydra_plugins alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf


class OptunaSweeper(Sweeper):
    """`n_trials` trials, `n_jobs` of them given to the launcher at a time. `direction`: minimize or maximize what the task
    returns; `seed` is the sampler's, `storage` a URL as Optuna takes it, `params` are overrides before those of the command.
    """

    def __init__(self, params: Mapping[str, Any] | None, **settings: Any) -> None:
        self.params, self.settings = params or {}, SimpleNamespace(**settings)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra."""
        self.config: Any = config
        self.context = hydra_context
        self.launcher: Any = Plugins.instance().instantiate_launcher(hydra_context, task_function, config)

    def sweep(self, arguments: list[str]) -> Any:
        """Run the trials that the study does not have yet; returns the study. UserError without Optuna or an objective."""
        from af.errors import UserError
        from af.files import exclusive

        try:
            import optuna
            from optuna.trial import TrialState as State
        except ImportError:
            raise UserError("hydra/sweeper=optuna needs Optuna: pip install 'avatar-forcing[sweeps]'") from None
        if self.config.get("objective") is None:
            raise UserError("objective is not set: name a number of the evaluation or validation, as val/loss")
        asked, folder = self.settings, Path(self.config.hydra.sweep.dir)
        params = [f"{key}={value}" for key, value in self.params.items()]
        parsed = OverridesParser.create(self.context.config_loader).parse_overrides([*params, *arguments])
        words = {word.get_key_element(): word for word in parsed}
        with exclusive(folder / "study.lock", waiting=lambda: print(f"{folder}: another search is running; waiting")):
            OmegaConf.save(self.config, folder / "multirun.yaml")
            study = optuna.create_study(
                study_name=str(folder), storage=asked.storage, direction=asked.direction, load_if_exists=True
            )
            # what goes on must not draw again what was drawn for the first trials
            study.sampler = optuna.samplers.TPESampler(seed=asked.seed + len(study.trials))
            for stopped in study.get_trials(states=[State.RUNNING]):
                study.tell(stopped.number, state=State.FAIL)
                study.enqueue_trial(stopped.params)  # the same values find the same folder, and its checkpoint
            while (left := asked.n_trials - len(study.get_trials(states=[State.COMPLETE]))) > 0:
                trials = [study.ask() for _ in range(min(left, asked.n_jobs))]
                batch = [[f"{key}={_value(trial, key, word)}" for key, word in words.items()] for trial in trials]
                results = self.launcher.launch(batch, initial_job_idx=trials[0].number)
                for trial, result in zip(trials, results, strict=True):
                    worst = math.inf if asked.direction == "minimize" else -math.inf
                    study.tell(trial, result.return_value if math.isfinite(result.return_value) else worst)
        return study


def _value(trial: Any, key: str, word: Any) -> Any:
    """A trial's value of an override, in Hydra's words."""
    if not word.is_sweep_override():
        return word.get_value_element_as_str()
    if word.is_discrete_sweep():
        return trial.suggest_categorical(key, list(word.sweep_string_iterator()))
    space = word.value()
    suggest = trial.suggest_int if isinstance(space.start, int) and isinstance(space.end, int) else trial.suggest_float
    return suggest(key, space.start, space.end, log="log" in space.tags)
