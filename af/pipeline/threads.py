"""How many threads a live session gets: no more than there are cores that nothing else uses."""

from __future__ import annotations

import os

import psutil
import torch


def free_cores(seconds: float = 0.1) -> int:
    """Cores that this process may use and that were idle for the last `seconds`, rounded; at least one."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    busy = psutil.cpu_percent(seconds, percpu=True)
    return max(1, round(sum(1 - busy[core] / 100 for core in allowed if core < len(busy))))


def use_free_cores() -> int:
    """Let torch have no more threads than there are free cores (never more than it has), unless OMP_NUM_THREADS or
    MKL_NUM_THREADS says how many; returns the number. A thread that waits for a core holds up all the others.
    """
    if not os.environ.keys() & {"OMP_NUM_THREADS", "MKL_NUM_THREADS"}:
        torch.set_num_threads(min(torch.get_num_threads(), free_cores()))
    return torch.get_num_threads()
