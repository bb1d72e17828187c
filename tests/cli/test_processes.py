"""Jobs end with all that they have started, and have their time for it. The processes are real."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from af.cli.jobs import stop

LEADER = """
import subprocess, sys
from af.cli.jobs import _end_with_parent
_end_with_parent()
subprocess.run([sys.executable, *sys.argv[1:]])
"""
#: A stage; with more names, these are started like torchrun's ranks: in sessions of their own, and nobody tells them.
STAGE = """
import os, signal, subprocess, sys, time
from pathlib import Path
folder, name, *ranks = sys.argv[1:]
def save(*_):
    time.sleep(1)
    Path(folder, name + ".saved").touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, signal.SIG_IGN if name == "deaf" else save)
for rank in ranks:
    subprocess.Popen([sys.executable, __file__, folder, rank], start_new_session=True)
partial = Path(folder, name + ".partial")
partial.write_text(str(os.getpid()))
partial.rename(Path(folder, name + ".pid"))
while True:
    time.sleep(0.02)
"""
SWEEP = """
import subprocess, sys
subprocess.Popen([sys.executable, *sys.argv[1:]], start_new_session=True).wait()
"""


@pytest.fixture
def leader(tmp_path) -> list[str]:
    for name, text in {"leader": LEADER, "stage": STAGE, "sweep": SWEEP}.items():
        (tmp_path / f"{name}.py").write_text(text)
    return [str(tmp_path / "leader.py"), str(tmp_path / "stage.py"), str(tmp_path), "stage"]


def running(folder: Path, *names: str) -> list[psutil.Process]:
    until(lambda: all((folder / f"{name}.pid").is_file() for name in names))
    return [psutil.Process(int((folder / f"{name}.pid").read_text())) for name in names]


def until(condition, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def saved(folder: Path) -> set[str]:
    return {file.stem for file in folder.glob("*.saved")}


def test_a_stopped_job_saves_what_it_has_and_leaves_nothing_running(leader, tmp_path):
    job = subprocess.Popen([sys.executable, *leader, "rank", "deaf"], start_new_session=True)
    processes = running(tmp_path, "stage", "rank", "deaf")
    try:
        stop(job, patience_s=4)
        assert job.returncode is not None
        assert all(map(gone, processes))
        assert saved(tmp_path) == {"stage", "rank"}
    finally:
        for process in filter(lambda p: not gone(p), processes):
            process.kill()


def test_a_job_whose_sweep_is_killed_does_the_same(leader, tmp_path):
    sweep = subprocess.Popen([sys.executable, str(tmp_path / "sweep.py"), *leader, "rank"])
    processes = running(tmp_path, "stage", "rank")
    try:
        sweep.kill()
        sweep.wait()
        until(lambda: all(map(gone, processes)))
        assert saved(tmp_path) == {"stage", "rank"}
    finally:
        for process in filter(lambda p: not gone(p), processes):
            process.kill()
