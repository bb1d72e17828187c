"""What is started hears of what stops the one that waits. The processes are real."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from af.cli import child
from af.training.ranks import find_ranks
from tests.training.test_ranks import TORCHRUN

#: In place of `af`: says its environment and waits; a signal has it save, which takes a while.
CHILD = """
import json, os, signal, sys, time
def stop(number, frame):
    time.sleep(0.3)
    open(f"saved_{signal.Signals(number).name}", "w")
    sys.exit(128 + number)
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, stop)
json.dump([dict(os.environ), os.getpid()], open("begun.partial", "w"))
os.rename("begun.partial", "begun")
while True:
    time.sleep(0.02)
"""
PARENT = """
import subprocess, sys
from af.cli import child
popen = subprocess.Popen
child.subprocess.Popen = lambda words, **more: popen([sys.executable, "child.py"], **more)
with child.started([]) as process:
    process.wait()
"""


@pytest.mark.parametrize(
    ("sent", "heard", "code"),
    [("SIGTERM", "SIGTERM", 143), ("SIGINT", "SIGINT", -2), ("SIGKILL", "SIGTERM", -9), ("SIGUSR2", None, -12)],
)
def test_what_stops_the_one_stops_the_other_in_time_to_save(sent, heard, code, tmp_path, monkeypatch):
    for name, value in {**TORCHRUN, "TORCHELASTIC_RUN_ID": "x"}.items():
        monkeypatch.setenv(name, value)
    for name, text in (("child.py", CHILD), ("parent.py", PARENT)):
        (tmp_path / name).write_text(text)
    parent = subprocess.Popen(
        [sys.executable, "parent.py"],
        cwd=tmp_path,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    until(lambda: (tmp_path / "begun").is_file())
    environment, pid = child_told(tmp_path)
    started = psutil.Process(pid)
    if sent == "SIGUSR2":  # SLURM sends it to all processes of a job
        started.send_signal(signal.SIGUSR2)
    parent.send_signal(getattr(signal, sent))
    assert parent.wait(30) == code
    until(lambda: not started.is_running() or started.status() == psutil.STATUS_ZOMBIE)
    assert (tmp_path / f"saved_{heard or 'SIGTERM'}").is_file()
    assert find_ranks(environment).launcher is None
    assert not {*TORCHRUN, "TORCHELASTIC_RUN_ID"} & set(environment)


def child_told(folder: Path) -> tuple[dict[str, str], int]:
    import json

    return json.loads((folder / "begun").read_text())


def until(condition, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_ranks_of_a_machine_meet_where_its_name_does_not_resolve(tmp_path, monkeypatch):
    """As in containers and on laptops away from their network: with the hostname as address, they wait for minutes and fail."""
    from torch.distributed.run import parse_args

    words: list[str] = []
    monkeypatch.setattr(child.os, "execv", lambda program, given: words.extend(given))
    child.become_ranks(2, tmp_path / "launch.json", {}, "evaluate", "--started")
    assert words[1:3] == ["-m", "torch.distributed.run"]
    assert parse_args(words[3:]).local_addr == "127.0.0.1"
