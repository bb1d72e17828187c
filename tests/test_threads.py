from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

import af
from af.pipeline.live import free_cores, use_free_cores


def test_waiting_threads_soon_sleep_unless_the_user_says_otherwise() -> None:
    code = (
        "import json, os, af; print(json.dumps({k: os.environ.get(k) for k in ('OMP_WAIT_POLICY', 'GOMP_SPINCOUNT')}))"
    )
    path = {"PYTHONPATH": str(Path(af.__file__).parents[1])}
    bare = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")}

    def seen(**more: str) -> dict[str, str | None]:
        return json.loads(subprocess.check_output([sys.executable, "-c", code], env=bare | path | more, text=True))

    assert seen() == {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}
    assert seen(OMP_WAIT_POLICY="ACTIVE") == {"OMP_WAIT_POLICY": "ACTIVE", "GOMP_SPINCOUNT": None}
    assert seen(GOMP_SPINCOUNT="1000") == {"OMP_WAIT_POLICY": None, "GOMP_SPINCOUNT": "1000"}


def test_nothing_imports_torch_before_the_threads_are_told() -> None:
    """OpenMP reads its settings once, when torch comes: `import af` must not bring it."""
    code = "import sys, af, af.cli.main; print('torch' in sys.modules)"
    path = {"PYTHONPATH": str(Path(af.__file__).parents[1])}
    answer = subprocess.check_output([sys.executable, "-c", code], env=os.environ | path, text=True)
    assert answer.strip() == "False"


@pytest.fixture
def four_cores(monkeypatch):
    """Of eight cores this process may use four; all but two of those are busy."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)
    busy = [97.0, 3.0, 88.0, 10.0, 0.0, 0.0, 0.0, 0.0]
    monkeypatch.setattr(psutil, "cpu_percent", lambda seconds, percpu: busy)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield busy
    torch.set_num_threads(before)


def test_a_live_session_takes_the_cores_that_are_free(four_cores, monkeypatch) -> None:
    assert free_cores() == use_free_cores() == torch.get_num_threads() == 2
    four_cores[:4] = [100.0] * 4
    assert free_cores() == use_free_cores() == 1
    four_cores[:4] = [0.0] * 4
    assert use_free_cores() == 4  # as many as torch had, when the others have gone
    torch.set_num_threads(3)
    assert use_free_cores() == 3  # never more: somebody has said so
    torch.set_num_threads(4)
    four_cores[:4] = [100.0] * 4
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert use_free_cores() == 4  # what the user says


def test_a_session_that_runs_already_leaves_its_cores_to_the_next(four_cores, monkeypatch) -> None:
    four_cores[:4] = [100.0] * 4
    monkeypatch.setattr(time, "process_time", iter([5.0, 5.2]).__next__)  # two of the four are this process's own
    assert free_cores() == 2
