"""Processes that a command starts and waits for: what stops the one stops the other, in time to save."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import IO, Final, NoReturn

from af.training.ranks import without_ranks

_LIBC: Final = ctypes.CDLL(None) if sys.platform == "linux" else None
_STOPS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
_TELL_WHEN_PARENT_DIES: Final = 1  # PR_SET_PDEATHSIG


@contextlib.contextmanager
def started(arguments: Sequence[str], log: IO[bytes] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """`af` with these arguments as a process for the time of the block; what it says goes to `log` instead of the terminal.

    It gets the signals that end the block (Ctrl-C, SIGTERM, submitit's requeueing) and is waited for.
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
                env=without_ranks(os.environ),  # it must not take itself for a rank of what started it
                start_new_session=True,  # a terminal's Ctrl-C comes from here, once
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
    """SIGTERM ends the block by SystemExit, which nothing takes for a failure: blocks around it are left in order."""
    before = signal.signal(signal.SIGTERM, _leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


def _begin() -> None:
    """In the new process: submitit's signal is not for it, and it hears of it when the one that waits is killed."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPS)
    if _LIBC is not None:
        _LIBC.prctl(_TELL_WHEN_PARENT_DIES, signal.SIGTERM)
