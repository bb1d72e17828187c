"""Hydra's side of sweeps: a launcher that runs every job as processes of its own, and the multirun around it.

Any Hydra sweeper can drive the launcher: it is given lists of overrides and returns each job's objective.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra._internal.callbacks import Callbacks
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from af.cli.config import config_folder, instantiate, register_resolvers, resolve
from af.cli.jobs import Job, ledger_states, run_jobs
from af.cli.keys import explained, refuse_unread, require_form
from af.cli.search import objective, search
from af.errors import UserError


class ProcessLauncher(Launcher):
    """Every job in processes of its own; jobs that have ended are skipped, so that a stopped sweep goes on."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra. UserError for a wrong `at_once`."""
        if not isinstance(config.at_once, int) or config.at_once < 1:
            raise UserError(f"at_once={config.at_once}: give a number of jobs, 1 or more")
        self.hydra_context, self.config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs; UserError that names those that failed."""
        jobs = [self.job(overrides) for overrides in job_overrides]
        states = self.run(jobs)
        failed = [job for job in jobs if states[job.name] == "failed"]
        if failed:
            logs = "\n  ".join(str(job.folder / "log.txt") for job in failed)
            raise UserError(
                f"{len(failed)} of {len(jobs)} jobs failed; the same command tries them again. See\n  {logs}"
            )
        return [
            JobReturn(overrides=overrides, status=JobStatus.COMPLETED, _return_value=objective(self.config, job))
            for job, overrides in zip(jobs, job_overrides, strict=True)
        ]

    def job(self, overrides: Sequence[str]) -> Job:
        """The job of a list of overrides: its folder is named after the sweep's settings and a hash of its commands."""
        composed = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
        named = [str(key).lstrip("+") for key in self.config.hydra.sweeper.params or {}]
        with open_dict(composed):
            del composed["hydra"]
            composed.job = "JOB"
            plain = resolve(composed)
            values = OmegaConf.create(plain)
            settings = {key: OmegaConf.select(values, key) for key in dict.fromkeys([*named, *self._swept()])}
            digest = hashlib.sha256(json.dumps(plain["stages"]).encode()).hexdigest()[:8]
            # what else the command line sweeps over is no part of the name: one value of it alone finds the job again
            words = [f"{key.rpartition('.')[2]}-{settings[key]}" for key in named]
            folder = Path(plain["run"]) / re.sub(r"[^\w.-]", "_", "_".join([*words, digest]))
            composed.job = str(folder)
        stages = {name: _words(s) for name, s in resolve(composed)["stages"].items() if s is not None}
        return Job(folder, resolve(OmegaConf.create(settings)), stages)

    def _swept(self) -> list[str]:
        """Keys that the command line gives several values."""
        task = OverridesParser.create().parse_overrides(list(self.config.hydra.overrides.task))
        return [override.key_or_group for override in task if override.is_sweep_override()]

    def run(self, jobs: Sequence[Job], prune: Callable[[Job], bool] | None = None) -> dict[str, str]:
        """Run jobs that have not ended, with a progress bar; returns their states. `prune` as in `run_jobs`."""
        from af.console import progress_bar

        for job in jobs:  # all of them: a report on half a sweep knows what is missing
            job.write()
        with progress_bar() as progress:
            task = progress.add_task(f"sweep {self.config.name}", total=len(jobs))

            def ended(job: Job, state: str) -> None:
                progress.console.print(f"{state}: {job.name}", highlight=False, markup=False, soft_wrap=True)
                progress.advance(task)

            return self.run_jobs(jobs, ended, prune)

    def run_jobs(
        self, jobs: Sequence[Job], on_end: Callable[[Job, str], None], prune: Callable[[Job], bool] | None
    ) -> dict[str, str]:
        """As `af.cli.jobs.run_jobs`, here."""
        return run_jobs(jobs, int(self.config.at_once), on_end=on_end, prune=prune)


def _words(arguments: Any) -> list[str]:
    """Arguments as flat text: lists in lists are how stages share what they have in common."""
    if isinstance(arguments, list):
        return [word for argument in arguments for word in _words(argument)]
    return [str(arguments)]


class DryRun(ProcessLauncher):
    """Says what the jobs are and how far they got, and runs none."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Print folders, states and commands."""
        for overrides in job_overrides:
            job = self.job(overrides)
            print(f"{job.folder}: {ledger_states(job.ledger).get(job.name, 'to do')}")
            for arguments in job.stages.values():
                print(f"  af {shlex.join(arguments)}")
        return []


def multirun(overrides: Sequence[str], config_dir: Path | None, launcher: ProcessLauncher | None = None) -> Any:
    """Hydra's multirun of conf/sweep.yaml with our launcher. UserError for what does not compose and for failed jobs."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.plugins import Plugins
    from hydra.errors import HydraException
    from hydra.types import RunMode
    from omegaconf.errors import OmegaConfBaseException

    if config_dir is not None and not config_dir.is_dir():
        raise UserError(f"--config-dir {config_dir} is not a folder")
    places = [f"hydra.searchpath=[file://{config_dir.resolve()}]"] if config_dir else []
    register_resolvers()
    GlobalHydra.instance().clear()

    def composed(words: list[str]) -> Any:
        GlobalHydra.instance().clear()
        with hydra.initialize_config_dir(str(config_folder().resolve()), version_base="1.3"):
            runner = GlobalHydra.instance().hydra
            assert runner is not None
            words = [*places, *words]
            return runner.compose_config("sweep", words, run_mode=RunMode.MULTIRUN, with_log_configuration=False)

    require_form(overrides)
    if not any(word.startswith("sweep=") for word in overrides):
        names = sorted(path.stem for path in (config_folder() / "sweep").glob("*.yaml"))
        raise UserError(f"say which one: sweep=NAME; there are {', '.join(names)}, and those of --config-dir")

    def task(config: DictConfig) -> None:
        raise AssertionError("jobs run in processes of their own")

    try:
        refuse_unread(overrides, composed)
        GlobalHydra.instance().clear()
        with hydra.initialize_config_dir(str(config_folder().resolve()), version_base="1.3"):
            runner = GlobalHydra.instance().hydra
            assert runner is not None
            config = runner.compose_config(
                "sweep", [*places, *overrides], run_mode=RunMode.MULTIRUN, with_log_configuration=False
            )
            context = HydraContext(config_loader=runner.config_loader, callbacks=Callbacks(config))
            sweeper = Plugins.instance().instantiate_sweeper(config=config, hydra_context=context, task_function=task)
            # Hydra takes launchers from packages called hydra_plugins alone: ours is put in by hand
            sweeper.launcher = launcher or instantiate(resolve(config.launcher))
            sweeper.launcher.setup(hydra_context=context, task_function=task, config=config)
            if config.search is not None and not isinstance(sweeper.launcher, DryRun):
                return search(sweeper.launcher, OmegaConf.to_container(config.hydra.overrides.task))  # type: ignore[arg-type]
            return sweeper.sweep(OmegaConf.to_container(config.hydra.overrides.task, resolve=False))  # type: ignore[arg-type]
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(f"the sweep does not compose: {explained(error, overrides, composed)}") from error
