"""A sweep's jobs on a SLURM cluster, through submitit: the same ledger, locks and folders as on one machine.

submitit owns requeueing (and nobody else: Lightning's own is off). Before the cluster takes a job's machine away it
signals the job, which is put into the queue again, ends its stages and, started anew, goes on from their last
checkpoints. Hydra's submitit plugin is not used: it runs Hydra's task function in the job's process, all jobs again at
every start, where a sweep here has stages as processes, a ledger of what has ended, and resumes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from af.cli.jobs import ENDED, Job, ledger_states, start, stop
from af.cli.sweeping import ProcessLauncher
from af.errors import UserError
from af.files import write_json


class SubmittedJob:
    """What runs on the cluster: a job of a sweep, in processes of its own that end with this one."""

    def __init__(self, folder: str, threads: int) -> None:
        self.folder, self.threads = folder, threads

    def __call__(self) -> str:
        """Run the job to its end; returns its state."""
        job = Job.read(Path(self.folder))
        process = start(job, self.threads)
        try:
            process.wait()
        finally:  # submitit leaves by SystemExit when the job is preempted
            stop(process)
        found = ledger_states(job.ledger).get(job.name)
        return str(found) if found in ENDED else "failed"

    def checkpoint(self) -> Any:
        """Called by submitit before it requeues: the same again, which goes on where it was."""
        import submitit

        return submitit.helpers.DelayedSubmission(SubmittedJob(self.folder, self.threads))


class SubmitLauncher(ProcessLauncher):
    """Jobs as a SLURM array (`cluster` "slurm"), or by submitit's local executor. `parameters` are its own; those that
    are None are the cluster's. Stopping this command leaves the cluster's jobs alone; the same command finds them.
    """

    def __init__(self, cluster: str, parameters: Mapping[str, Any], poll_s: float = 30.0) -> None:
        super().__init__()
        if cluster not in ("slurm", "local"):
            raise UserError(f"launcher.cluster={cluster}: allowed: slurm, local")
        self.cluster, self.poll_s = cluster, poll_s
        self.parameters = {k: v for k, v in parameters.items() if v is not None}

    def run_jobs(
        self, jobs: Sequence[Job], on_end: Callable[[Job, str], None], prune: Callable[[Job], bool] | None
    ) -> dict[str, str]:
        """Submit what has not ended and wait for it. UserError for a search, and for what the cluster refuses."""
        if prune is not None:
            raise UserError("a search needs launcher=local: its trials depend on each other")
        states: dict[str, str] = {}
        waiting, running = [], {}
        for job in jobs:
            if (state := ledger_states(job.ledger).get(job.name)) in ENDED:
                states[job.name] = str(state)
                on_end(job, str(state))
            elif (submitted := self._submitted(job)) is not None:
                running[job.name] = job, submitted
            else:
                waiting.append(job)
        executor = self._executor()
        while waiting or running:
            # a cluster has a queue, which holds the array to its limit; the local executor starts all it is given
            room = len(waiting) if self.cluster == "slurm" else int(self.config.at_once) - len(running)
            if waiting and room > 0:
                chunk, waiting = waiting[:room], waiting[room:]
                running |= self._submit(executor, chunk)
            for name, (job, submitted) in list(running.items()):
                if submitted.done():
                    del running[name]
                    found = ledger_states(job.ledger).get(name)
                    states[name] = str(found) if found in ENDED else "failed"
                    on_end(job, states[name])
            if waiting or running:
                time.sleep(self.poll_s)
        return states

    def _executor(self) -> Any:
        submitit = _submitit()
        folder = Path(self.config.run) / "submitit" / "%j"
        try:
            executor = submitit.AutoExecutor(folder=str(folder), cluster=self.cluster)
            # the local executor knows some of the parameters only
            mine = {k: v for k, v in self.parameters.items() if self.cluster == "slurm" or not k.startswith("slurm_")}
            limit = {"slurm_array_parallelism": int(self.config.at_once)} if self.cluster == "slurm" else {}
            executor.update_parameters(name=str(self.config.name), **limit, **mine)
        except (RuntimeError, NameError, ValueError, TypeError, AssertionError) as error:
            raise UserError(f"launcher: {error}") from error
        return executor

    def _submit(self, executor: Any, jobs: Sequence[Job]) -> dict[str, tuple[Job, Any]]:
        threads = int(self.parameters.get("cpus_per_task", 1))
        with executor.batch():
            submitted = [executor.submit(SubmittedJob(str(job.folder.resolve()), threads)) for job in jobs]
        for job, found in zip(jobs, submitted, strict=True):
            write_json(job.folder / "submitted.json", {"cluster": self.cluster, "id": found.job_id})
        return {job.name: (job, found) for job, found in zip(jobs, submitted, strict=True)}

    def _submitted(self, job: Job) -> Any:
        """The cluster's job that an earlier command submitted, if it still waits or runs there."""
        file = job.folder / "submitted.json"
        if self.cluster != "slurm" or not file.is_file():
            return None
        found = _submitit().SlurmJob(Path(self.config.run) / "submitit" / "%j", json.loads(file.read_text())["id"])
        return None if found.done(force_check=True) else found


def _submitit() -> Any:
    try:
        import submitit
    except ImportError:
        raise UserError("launcher=submitit needs submitit: pip install 'avatar-forcing[cluster]'") from None
    return submitit
