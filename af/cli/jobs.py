"""One job of a sweep: a folder with `job.json`, run once to its end whatever is killed on the way.

A job is a list of stages (`af` commands). The sweep's `ledger.jsonl` has a line for everything that happens to a job:
started, finished, failed, pruned. The process that runs a job holds a lock on its folder, and so do the stages it starts:
a second sweep waits for them instead of doing the same again.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from af.cli.processes import end_sessions
from af.cli.stages import Stage, run_stages
from af.errors import Stopped, UserError
from af.files import append_line, exclusive, read_json, read_lines, write_json
from af.training.ranks import without_ranks

LEDGER: Final = "ledger.jsonl"
ENDED: Final = ("finished", "pruned")


@dataclass(frozen=True)
class Job:
    """A job of a sweep: its folder (named after its settings), what is special about it, and its commands."""

    folder: Path
    settings: Mapping[str, Any]
    stages: Mapping[str, Sequence[str]]

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.name

    @property
    def ledger(self) -> Path:
        """The sweep's ledger."""
        return self.folder.parent / LEDGER

    def write(self) -> None:
        """Put `job.json` into the folder (the same one again changes nothing)."""
        write_json(
            self.folder / "job.json",
            {"settings": dict(self.settings), "stages": {k: list(v) for k, v in self.stages.items()}},
        )

    @classmethod
    def read(cls, folder: Path) -> Job:
        """The job in a folder. UserError when there is none."""
        file = Path(folder) / "job.json"
        if not file.is_file():
            raise UserError(f"{file} is missing: {folder} is not the folder of a sweep's job")
        content = read_json(file)
        return cls(Path(folder), content["settings"], content["stages"])


def ledger_states(ledger: Path) -> dict[str, str]:
    """The last event of every job; a half-written line (a machine that went down) counts as nothing."""
    return {entry["job"]: entry["event"] for entry in read_lines(ledger)}


def record(job: Job, event: str, **more: Any) -> None:
    """Add a line to the ledger."""
    entry = {"job": job.name, "event": event, "time": round(time.time(), 3), "process": os.getpid(), **more}
    append_line(job.ledger, json.dumps(entry))


def run_job(folder: Path) -> int:
    """Run a job in this process to its end; returns its exit code. Ended jobs are left alone."""
    from rich.console import Console

    job = Job.read(folder)
    _end_with_parent()
    with exclusive(
        job.folder / "lock", waiting=lambda: print(f"{job.folder} is run by another process; waiting"), children=True
    ):
        if ledger_states(job.ledger).get(job.name) in ENDED:
            return 0
        record(job, "started")
        stages = [Stage(name, "", tuple(arguments)) for name, arguments in job.stages.items()]
        try:
            run_stages(stages, job.folder / "stages.json", Console())
        except Stopped as stopped:  # neither failed nor done: it goes on when it is started again
            print(stopped, file=sys.stderr)
            return 128 + stopped.signal
        except UserError as error:
            record(job, "failed", error=str(error))
            print(error, file=sys.stderr)
            return 1
        record(job, "finished")
    return 0


def _end_with_parent() -> None:
    """When the sweep is killed outright, its jobs and all they have started end with it."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        # from outside: this process must not live to take a stage that was ended for one that failed or is done
        subprocess.Popen([sys.executable, "-m", "af.cli.processes", str(os.getpid())], start_new_session=True)

    if os.getsid(0) == os.getpid():  # started by `start`: a session of its own
        threading.Thread(target=watch, daemon=True).start()


def start(job: Job, threads: int) -> subprocess.Popen:
    """Start a job as a process (and session) of its own; what it says goes to `log.txt` in its folder."""
    environment = without_ranks(os.environ)  # a job must not take itself for a rank of its sweep
    environment.setdefault("OMP_NUM_THREADS", str(threads))
    command = [sys.executable, "-m", "af.cli.main", "sweep", "--job", str(job.folder)]
    with open(job.folder / "log.txt", "ab") as log:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
        )


def stop(*processes: subprocess.Popen, patience_s: float = 30.0) -> None:
    """End jobs and all that they have started, politely first: stages have their time to write checkpoints."""
    end_sessions([process.pid for process in processes], patience_s)
    for process in processes:
        process.poll()


def run_jobs(
    jobs: Sequence[Job],
    at_once: int = 1,
    *,
    on_end: Callable[[Job, str], None] = lambda job, state: None,
    prune: Callable[[Job], bool] | None = None,
) -> dict[str, str]:
    """Run what has not ended, `at_once` at a time; returns the state of every job (finished, pruned, failed).

    A failed job does not keep the others from running; the same call tries it again. `on_end` hears of each job when it
    ends (or that it had); `prune` is asked about running jobs now and then and may give one up.
    """
    threads = max(1, (os.cpu_count() or 1) // max(1, at_once))
    states: dict[str, str] = {}
    waiting = list(jobs)
    running: dict[str, tuple[Job, subprocess.Popen]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                job = waiting.pop(0)
                if (state := ledger_states(job.ledger).get(job.name)) in ENDED:
                    states[job.name] = str(state)
                    on_end(job, str(state))
                    continue
                running[job.name] = job, start(job, threads)
            for name, (job, process) in list(running.items()):
                if prune is not None and process.poll() is None and prune(job):
                    stop(process)
                    if ledger_states(job.ledger).get(name) not in ENDED:  # it may have come to its end meanwhile
                        record(job, "pruned")
                if process.poll() is not None:
                    del running[name]
                    found = ledger_states(job.ledger).get(name)
                    states[name] = str(found) if found in ENDED else "failed"
                    on_end(job, states[name])
            time.sleep(0.1)
    finally:
        stop(*(process for _, process in running.values()))
    return states
