"""Limiting a live session's threads to free cores."""

from __future__ import annotations

import os
import time

import psutil
import torch

_had = _gave = 0  # torch's number of threads before and after the limit


def free_cores(seconds: float = 0.1) -> int:
    """Cores of this process that nothing else used for `seconds`, rounded; at least one."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    before = time.process_time()
    busy = psutil.cpu_percent(seconds, percpu=True)
    own = (time.process_time() - before) / seconds
    idle = sum(1 - busy[core] / 100 for core in allowed if core < len(busy))
    return max(1, min(len(allowed), round(idle + own)))


def use_free_cores() -> int:
    """Limit torch's threads to the free cores, unless OMP_NUM_THREADS or MKL_NUM_THREADS sets their number, which is
    returned. A thread that waits for a core holds up all the others.
    """
    global _had, _gave
    if not os.environ.keys() & {"OMP_NUM_THREADS", "MKL_NUM_THREADS"}:
        if torch.get_num_threads() != _gave:  # set by the user
            _had = torch.get_num_threads()
        torch.set_num_threads(_gave := min(_had, free_cores()))
    return torch.get_num_threads()
