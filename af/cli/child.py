"""Processes of a command: children, which get the signals that stop it in time to save, and ranks in its place."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import IO, Any, Final, NoReturn

from af.files import write_json
from af.training.ranks import without_ranks

_LIBC: Final = ctypes.CDLL(None) if sys.platform == "linux" else None
_STOPS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
_TELL_WHEN_PARENT_DIES: Final = 1  # PR_SET_PDEATHSIG


@contextlib.contextmanager
def started(arguments: Sequence[str], log: IO[bytes] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """Run `af` with these arguments as a process during the block, with its output in `log`.

    The signals that end the block (Ctrl-C, SIGTERM, submitit's requeueing) are forwarded, and the process is
    awaited.
    """
    with sigterm_ends():
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)  # until there is something to end
        told = signal.SIGTERM
        process = None
        try:
            process = subprocess.Popen(
                [sys.executable, "-m", "af.cli.main", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=without_ranks(os.environ),  # it must not count as a rank of its parent's launcher
                start_new_session=True,  # Ctrl-C is forwarded from here, once
                preexec_fn=_begin,
            )
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            yield process
        except KeyboardInterrupt:
            told = signal.SIGINT
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            if process is not None and process.poll() is None:
                process.send_signal(told)
                process.wait()


@contextlib.contextmanager
def sigterm_ends() -> Iterator[None]:
    """End the block by SystemExit on SIGTERM: it does not count as a failure, and enclosing blocks exit in order."""
    before = signal.signal(signal.SIGTERM, _leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


def _begin() -> None:
    """In the new process: ignore submitit's signal, and get a signal when the parent is killed."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPS)
    if _LIBC is not None:
        _LIBC.prctl(_TELL_WHEN_PARENT_DIES, signal.SIGTERM)


def become_ranks(devices: int, file: Path, job: dict[str, Any], *words: str) -> NoReturn:
    """Replace this process by torchrun's `af WORDS FILE`: what is in `file` is composed once, by one process."""
    write_json(file, job)
    sys.stdout.flush()
    here = ["--standalone", "--local-addr=127.0.0.1"]  # else ranks wait for a hostname that need not resolve
    torchrun = [sys.executable, "-m", "torch.distributed.run", *here, f"--nproc-per-node={devices}"]
    os.execv(sys.executable, [*torchrun, "-m", "af.cli.main", *words, str(file)])
