"""Ends processes together with all that they have started, in whatever sessions those are: politely first.

`python -m af.cli.processes SESSION` does so from outside.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Collection

import psutil

#: How long what was killed may take to be gone (a disk that does not answer).
_GONE_S = 10.0


def end_sessions(sessions: Collection[int], patience_s: float = 30.0) -> None:
    """End all processes of some sessions and their descendants: SIGTERM, and SIGKILL for those that outlast patience.

    A process hears SIGTERM when the one that started it is gone: until then it is that one's to end (torchrun its
    ranks, a training the workers of its loader, which it needs for its checkpoint). Returns when all are gone.
    """
    deadline = time.monotonic() + patience_s
    known: set[psutil.Process] = set()
    told: set[psutil.Process] = set()
    while (known := _alive(sessions, known)) and time.monotonic() < deadline + _GONE_S:
        late = time.monotonic() > deadline
        pids = {process.pid for process in known}
        for process in known:
            with contextlib.suppress(psutil.Error):
                if late:
                    process.kill()
                elif process not in told and process.ppid() not in pids:
                    told.add(process)
                    process.terminate()
        time.sleep(0.05)


def _alive(sessions: Collection[int], known: Collection[psutil.Process]) -> set[psutil.Process]:
    """What lives of `known` and of the sessions, and everything that these processes have started."""
    everyone = {
        process.pid: process
        for process in psutil.process_iter(["ppid", "status"])
        if process.info["status"] != psutil.STATUS_ZOMBIE and process.pid != os.getpid()
    }
    found = {
        pid
        for pid, process in everyone.items()
        if _session(pid) in sessions or (process in known and process.is_running())  # another one may have its number
    }
    while more := {pid for pid, process in everyone.items() if process.info["ppid"] in found} - found:
        found |= more
    return {everyone[pid] for pid in found}


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except (ProcessLookupError, PermissionError):
        return None


if __name__ == "__main__":
    end_sessions([int(sys.argv[1])])
