"""A signal ends a training after the step at hand, with a checkpoint of it; what is said of it is true."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from lightning.pytorch import Callback

from af.models.checkpoint import checkpoint_files
from af.training.sigterm import STOP, Stops
from tests.training.test_resume import DENOISER, SHORT, same, train

#: No checkpoint but what a signal or the end makes; nothing that takes time beside.
NEVER = ["checkpoints.every_n_steps=100000", "checkpoints.every_minutes=null", "checkpoints.grace_s=600"]
NEVER += ["callbacks.previews=null"]


class Signals(Callback):
    """Sends this process a signal in the middle of a step."""

    number = signal.SIGTERM
    at = 4

    def __init__(self) -> None:
        self.sent = False

    def on_before_backward(self, trainer, pl_module, loss) -> None:
        if trainer.global_step == self.at - 1 and not self.sent:
            self.sent = True
            os.kill(os.getpid(), self.number)


SIGNALS = "+callbacks.signals._target_=tests.training.test_stops.Signals"


def saved(run: Path) -> list[int]:
    return sorted(int(path.stem) for path in checkpoint_files(run / "checkpoints"))


@pytest.fixture(scope="module")
def arguments(latents) -> list[str]:
    return [*DENOISER, *SHORT, *NEVER, f"data.root={latents}"]


@pytest.fixture(scope="module")
def whole(arguments, tmp_path_factory) -> Path:
    """The run that no signal disturbs."""
    run = tmp_path_factory.mktemp("whole")
    assert train(arguments, run) == 0
    return run


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_step_at_hand_is_saved_and_the_run_goes_on_from_it(number, arguments, whole, tmp_path, monkeypatch, capsys):
    before = signal.getsignal(number)
    monkeypatch.setattr(Signals, "number", number)
    assert train(arguments, tmp_path / "stopped", SIGNALS) == 128 + number
    assert "stopped at step 4, which is saved: the same command continues from there" in capsys.readouterr().err
    assert saved(tmp_path / "stopped") == [4]
    assert not (tmp_path / "stopped" / "done.json").exists()
    assert signal.getsignal(number) == before
    assert train(arguments, tmp_path / "stopped") == 0
    assert same(whole, tmp_path / "stopped")


def test_a_smoke_run_stops_too_and_keeps_nothing(arguments, tmp_path, capsys):
    assert train(arguments, tmp_path, SIGNALS, "trainer.fast_dev_run=7") == 143
    assert "stopped at step 4, a smoke run (trainer.fast_dev_run): nothing is kept" in capsys.readouterr().err
    assert saved(tmp_path) == []


def test_a_step_of_several_batches_is_finished_first(arguments, tmp_path, monkeypatch):
    monkeypatch.setattr(Signals, "at", 2)
    words = [*arguments, "trainer.accumulate_grad_batches=2", "trainer.max_steps=3"]
    assert train(words, tmp_path / "whole") == 0
    assert train(words, tmp_path / "stopped", SIGNALS) == 143
    assert saved(tmp_path / "stopped") == [2]
    assert train(words, tmp_path / "stopped") == 0
    assert same(tmp_path / "whole", tmp_path / "stopped")


def test_a_signal_in_the_last_step_lets_the_run_end(arguments, tmp_path, monkeypatch):
    monkeypatch.setattr(Signals, "at", 7)
    assert train(arguments, tmp_path, SIGNALS) == 0
    assert json.loads((tmp_path / "done.json").read_text())["steps"] == 7
    assert saved(tmp_path) == [7]  # the last state is kept, whatever the interval


def test_the_interval_is_in_minutes_too(arguments, tmp_path):
    assert train(arguments, tmp_path, "checkpoints.every_minutes=1e-6") == 0
    assert saved(tmp_path) == [6, 7]


def test_a_minute_between_saves_is_counted_from_the_last_one(monkeypatch):
    times = iter([0.0, 60.0, 119.0, 121.0, 121.0, 130.0, 130.0])
    monkeypatch.setattr("af.training.sigterm.time.monotonic", lambda: next(times))
    stops = Stops(every_minutes=2)
    stops.saved(5)
    wishes = [stops.agreed() for _ in range(3)]
    stops.saved(9)
    assert [*wishes, stops.agreed()] == [0, 0, 1, 0]
    stops.asked = signal.SIGINT
    assert stops.agreed() == STOP


# --------------------------------------------------------------------------------------------- processes of their own


def started(arguments: list[str], run: Path, *more: str) -> subprocess.Popen:
    command = [
        sys.executable,
        "-m",
        "af.cli.main",
        "train",
        *arguments,
        f"run={run}",
        "trainer.max_steps=100000",
        *more,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 180
    while not (run / "validation.jsonl").is_file():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return process


def said(process: subprocess.Popen) -> tuple[int, str]:
    try:
        text = process.communicate(timeout=120)[1]
    finally:
        process.kill()
    return process.returncode, text


@pytest.mark.slow
def test_ctrl_c_in_a_terminal_reaches_the_workers_too_and_nothing_is_lost(arguments, tmp_path):
    process = started(arguments, tmp_path, "data.workers=1")
    os.killpg(process.pid, signal.SIGINT)
    code, text = said(process)
    assert code == 130
    step = int(re.search(r"stopped at step (\d+), which is saved", text)[1])
    assert "Traceback" not in text
    assert saved(tmp_path) == [step]


@pytest.mark.slow
@pytest.mark.parametrize("again", [True, False])
def test_a_second_signal_or_the_end_of_the_grace_ends_at_once_and_says_so(again, arguments, tmp_path):
    """The step never ends: it waits for data that do not come."""
    hangs = "+callbacks.hangs._target_=tests.training.test_stops.Hangs"
    process = started(arguments, tmp_path, hangs, f"checkpoints.grace_s={60 if again else 2}")
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    if again:
        time.sleep(1.5)  # so soon after the first it would be the launcher's copy of the same
        process.send_signal(signal.SIGTERM)
    code, text = said(process)
    assert code == 143
    assert "starts again, no step was saved" in text
    assert saved(tmp_path) == []


class Hangs(Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        while trainer.global_step >= 4:
            time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["one rank", "launcher"])
def test_all_ranks_save_after_the_same_step_whoever_hears_the_signal(how, arguments, tmp_path):
    ddp = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]
    process = started(arguments, tmp_path / "run", *ddp)
    ranks = [p for p in psutil.Process(process.pid).children() if "--resolved" in p.cmdline()]
    assert len(ranks) == 2
    (ranks[1] if how == "one rank" else process).send_signal(signal.SIGTERM)
    code, text = said(process)
    assert code != 0
    steps = set(re.findall(r"stopped at step (\d+), which is saved", text))
    assert len(steps) == 1
    assert saved(tmp_path / "run") == [int(*steps)]
    assert not any(rank.is_running() for rank in ranks)


WORKERS = """
import os, signal, time
import psutil
from torch.utils.data import DataLoader
from af.data.loader import _outlast_signals, worker_context

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: None)
    data = DataLoader(
        range(9), num_workers=1, multiprocessing_context=worker_context(), worker_init_fn=_outlast_signals
    )
    batches = iter(data)
    next(batches)
    before = psutil.Process().children(recursive=True)
    os.killpg(0, signal.SIGTERM)
    psutil.wait_procs(before, timeout=2)
    print(len(before), sum(p.is_running() and p.status() != "zombie" for p in before))
    print(*(p.pid for p in before), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_signal_to_all_processes_leaves_the_workers_and_their_server(tmp_path):
    (tmp_path / "script.py").write_text(WORKERS)
    command = [sys.executable, str(tmp_path / "script.py")]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, start_new_session=True, timeout=120)
    counts, pids = done.stdout.splitlines()
    before, after = map(int, counts.split())
    assert before >= 2, done.stderr
    assert after == before
    left = [psutil.Process(pid) for pid in map(int, pids.split()) if psutil.pid_exists(pid)]
    alive = psutil.wait_procs(left, timeout=30)[1]
    assert not [p for p in alive if p.status() != "zombie"]  # a killed training leaves nobody behind
