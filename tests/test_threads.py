from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import af


def test_waiting_threads_sleep_unless_the_user_says_otherwise() -> None:
    code = (
        "import json, os, af; print(json.dumps({k: os.environ.get(k) for k in ('OMP_WAIT_POLICY', 'GOMP_SPINCOUNT')}))"
    )
    path = {"PYTHONPATH": str(Path(af.__file__).parents[1])}
    bare = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")}

    def seen(**more: str) -> dict[str, str | None]:
        return json.loads(subprocess.check_output([sys.executable, "-c", code], env=bare | path | more, text=True))

    assert seen()["OMP_WAIT_POLICY"] == "PASSIVE"
    assert seen(OMP_WAIT_POLICY="ACTIVE")["OMP_WAIT_POLICY"] == "ACTIVE"
    assert seen(GOMP_SPINCOUNT="1000") == {"OMP_WAIT_POLICY": None, "GOMP_SPINCOUNT": "1000"}


def test_nothing_imports_torch_before_the_threads_are_told() -> None:
    """OpenMP reads its settings once, when torch comes: `import af` must not bring it."""
    code = "import sys, af, af.cli.main; print('torch' in sys.modules)"
    path = {"PYTHONPATH": str(Path(af.__file__).parents[1])}
    answer = subprocess.check_output([sys.executable, "-c", code], env=os.environ | path, text=True)
    assert answer.strip() == "False"
