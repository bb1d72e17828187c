"""Speed of the definitions on one core: a benchmark's worth of clips, each function timed on its own."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np


def bench(clips: int = 200, frames: int = 750, parameters: int = 56, repeats: int = 3) -> dict[str, Any]:
    """Best seconds of each metric over `repeats`, and of rPCC + Var + FD + TLCC together (`required`)."""
    from threadpoolctl import threadpool_limits

    from af.metrics import functional as F

    rng = np.random.default_rng(0)
    user, true, generated = ([rng.standard_normal((frames, parameters)) for _ in range(clips)] for _ in range(3))
    required: dict[str, Callable[[], Any]] = {
        "rpcc": lambda: F.rpcc(user, true, generated),
        "variance": lambda: F.variance(generated),
        "fd": lambda: F.fd(true, generated),
        "tlcc": lambda: F.tlcc(user, generated),
    }
    others: dict[str, Callable[[], Any]] = {
        "rpcc_clip": lambda: F.rpcc(user, true, generated, "clip"),
        "rpcc_dim": lambda: F.rpcc(user, true, generated, "dim"),
        "pfd": lambda: F.pfd(user, true, generated),
        "jerk": lambda: F.jerk(generated),
        "border_ratio": lambda: F.border_ratio(generated, 10),
    }
    seconds: dict[str, float] = {}
    with threadpool_limits(1):
        for name, work in {**required, **others}.items():
            times = []
            for _ in range(repeats):
                start = time.perf_counter()
                work()
                times.append(time.perf_counter() - start)
            seconds[name] = round(min(times), 4)
    total = round(sum(seconds[name] for name in required), 4)
    return {
        "clips": clips, "frames": frames, "parameters": parameters, "cores": 1, "seconds": seconds,
        "required": {"metrics": list(required), "seconds": total, "allowed_seconds": 10.0},
    }  # fmt: skip
