"""What a busy machine does to a live block and to a training step, by how OpenMP's threads wait for each other.

Every way of waiting is a process of its own (OpenMP reads it once), and all of them take turns in one run, each alone on
the machine and then beside as many endless loops as there are cores.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, Final

import psutil

#: Environment and share of the threads. 300,000 turns are what OpenMP (GNU) spins when it is told nothing.
WAITING: Final = {
    "spinning": ({"GOMP_SPINCOUNT": "300000"}, None),
    "sleeping": ({"OMP_WAIT_POLICY": "PASSIVE"}, None),
    "one_thread": ({"OMP_WAIT_POLICY": "PASSIVE"}, 1),
}
WORKS: Final = ("live_block", "training_step")


def bench(threads: int, rounds: int = 3, seconds: float = 0.5) -> dict[str, Any]:
    """Median milliseconds and their ratios; about a minute. `others_busy_cores` is what else the machine was doing."""
    others = psutil.cpu_percent(0.5) / 100 * (psutil.cpu_count() or 1)
    measured: dict[tuple[str, str, str], list[float]] = {}
    with contextlib.ExitStack() as stack:
        workers = {name: stack.enter_context(_worker(env, few or threads)) for name, (env, few) in WAITING.items()}
        loops = stack.enter_context(_loops(os.cpu_count() or 1))
        for _ in range(rounds):
            for state, how in (("idle", signal.SIGSTOP), ("busy", signal.SIGCONT)):
                for loop in loops:
                    loop.send_signal(how)
                for work in WORKS:
                    for name, worker in workers.items():
                        worker.send((work, seconds))
                        measured.setdefault((work, state, name), []).append(1000 * worker.recv())
    result: dict[str, Any] = {"threads": threads, "others_busy_cores": round(others, 2)}
    for work in WORKS:
        ms = {
            state: {name: statistics.median(measured[work, state, name]) for name in WAITING}
            for state in ("idle", "busy")
        }
        result[work] = {
            **{f"{state}_ms": values for state, values in ms.items()},
            "busy_spinning_over_sleeping": ms["busy"]["spinning"] / ms["busy"]["sleeping"],
            "idle_sleeping_over_spinning": ms["idle"]["sleeping"] / ms["idle"]["spinning"],
            "busy_over_idle": {name: ms["busy"][name] / ms["idle"][name] for name in WAITING},
        }
    return result


@contextlib.contextmanager
def _worker(environment: dict[str, str], threads: int) -> Iterator[Connection]:
    """A process that waits as `environment` says: send (work, seconds), receive the median seconds of a call."""
    here, there = multiprocessing.Pipe()
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    os.environ.update(environment)
    try:
        process = multiprocessing.get_context("spawn").Process(target=_serve, args=(there, threads), daemon=True)
        process.start()
    finally:
        for name in environment:
            del os.environ[name]
        os.environ.update(kept)
    there.close()
    try:
        yield here
    finally:
        process.terminate()
        process.join()


@contextlib.contextmanager
def _loops(count: int) -> Iterator[list[subprocess.Popen]]:
    """Processes that do nothing and take a core each, standing still at first."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        for loop in loops:
            loop.send_signal(signal.SIGSTOP)
        yield loops
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def _serve(pipe: Connection, threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    work = {"live_block": _live_block(), "training_step": _training_step()}
    for call in work.values():
        call()
    with contextlib.suppress(EOFError):
        while True:
            name, seconds = pipe.recv()
            pipe.send(statistics.median(_times(work[name], seconds)))


def _times(call: Callable[[], object], seconds: float) -> list[float]:
    """Seconds of calls for `seconds`, one at least (a single one may take longer on a busy machine)."""
    measured: list[float] = []
    while sum(measured) < seconds:
        start = time.perf_counter()
        call()
        measured.append(time.perf_counter() - start)
    return measured


def _live_block() -> Callable[[], object]:
    """One block of the small denoiser with full caches, three branches, 8 steps."""
    import torch

    from af.cli.bench_rollout import SIZES, _block, _Inputs, _randomise, _ready
    from af.models.artifact import build

    with torch.no_grad():
        denoiser = build(SIZES["small"].config()).eval().requires_grad_(False)
        generator = torch.Generator().manual_seed(0)
        _randomise(denoiser, generator)
        inputs = _Inputs(denoiser, generator)
        block = partial(_block, _ready(denoiser, inputs, 8), *inputs.block(denoiser.layout.block_frames))
    return torch.no_grad()(block)


def _training_step() -> Callable[[], object]:
    """Forward and backward of the demo's denoiser, a batch of its size."""
    from af.cli.config import compose, instantiate, resolve
    from af.training.bench import denoiser_loss

    config = resolve(compose("train", ["experiment=denoiser_demo"]))
    denoiser = instantiate(config["model"])
    loss = denoiser_loss(denoiser, config["data"]["batch_size"], config["model"]["audio_feature_dim"])

    def step() -> None:
        denoiser.zero_grad(set_to_none=True)
        loss().backward()

    return step
