from __future__ import annotations

import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import grimp  # what lint-imports reads imports with
import pytest

ROOT = Path(__file__).parent.parent


def test_import_rules_hold():
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stdout


def test_no_circle_of_imports():
    """Of lazy imports neither: only what type checkers alone import does not count."""
    graph = grimp.build_graph("af", exclude_type_checking_imports=True)
    TopologicalSorter({name: graph.find_modules_directly_imported_by(name) for name in graph.modules}).prepare()


@pytest.mark.parametrize("spelled", ["16000", "16_000"])
def test_only_the_clock_spells_the_sample_rate(spelled):
    files = [f for f in (ROOT / "af").rglob("*.py") if f.name != "clock.py"]
    assert not [f for f in files if spelled in f.read_text()]


def test_help_does_not_load_torch():
    code = "import sys; from af.cli.main import main\ntry: main(['--help'])\nexcept SystemExit: pass\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.slow  # imports torch anew
def test_the_package_alone_is_light_and_its_names_are_there():
    code = (
        "import af, sys; assert not {'torch', 'cv2', 'numpy'} & set(sys.modules); from af import Avatar; "
        "assert all(getattr(af, name).__name__ == name for name in af.__all__); assert set(af.__all__) <= set(dir(af)); "
        "assert not hasattr(af, 'Avatars'); assert Avatar.load"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
