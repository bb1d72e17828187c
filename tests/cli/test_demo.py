"""What the demo says at its end, and the table of several runs in the README."""

from __future__ import annotations

import importlib.util
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from af.cli.config import compose, resolve
from af.cli.demo import report
from af.evaluation.table import worse_than_null
from af.files import write_json, write_text

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def demo_table():
    spec = importlib.util.spec_from_file_location("demo_table", ROOT / "docs" / "demo_table.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


METRICS = {
    "better": {"rpcc/exp": "lower", "psnr": "higher", "react/smile": "true", "react/nod": "true", "jerk/exp": "true"},
    "rpcc/exp": 0.09, "rpcc/exp/true": 0.0, "rpcc/exp/null": 0.03,
    "psnr": 28.0, "psnr/null": 21.0,
    "react/smile": 0.3, "react/smile/se": 0.02, "react/smile/true": 0.25, "react/smile/null": 0.02,
    "react/nod": -0.02, "react/nod/true": 0.01, "react/nod/null": 0.002,
    "jerk/exp": 3.0, "jerk/exp/true": 1.0,
    "people": "held out",
}  # fmt: skip


def test_what_is_worse_than_its_null_by_hand():
    assert worse_than_null(METRICS) == ["rpcc/exp", "react/nod"]
    assert worse_than_null({**METRICS, "psnr": 20.0, "rpcc/exp": 0.03}) == ["psnr", "react/nod"]
    assert worse_than_null({**METRICS, "rpcc/exp/se": 0.07}) == ["react/nod"], "no more than its error"


def test_the_summary_names_what_is_worse_than_a_strangers_user(tmp_path, capsys):
    config = {**resolve(compose("demo", [])), "run": str(tmp_path)}
    assert {"rpcc/exp", "rpcc/pose"} <= set(config["summary"])
    write_json(tmp_path / "evaluation" / "metrics.json", METRICS)
    write_text(tmp_path / "evaluation" / "metrics.md", "# x\n\n| the table |\n\n## More\n")
    report(config, {"vae": {"seconds": 60.0, "peak_memory_gb": 1.0}}, Console(width=200))
    said = capsys.readouterr().out
    assert "rpcc/exp !" in said
    assert "react/smile !" not in said
    assert "! worse than the null: rpcc/exp, react/nod" in said
    text, kept = (tmp_path / "report.md").read_text(), json.loads((tmp_path / "metrics.json").read_text())
    assert "Worse than the null: `rpcc/exp`, `react/nod`" in text
    assert "held out" in text
    assert kept["machine"]["processor"]
    assert kept["machine"]["cores"] >= 1


def test_a_run_becomes_a_column_and_several_say_how_far_they_lie_apart(demo_table, tmp_path):
    added = {**METRICS, "seconds/total": 900.0, "machine": {"processor": "A", "cores": 2}}
    demo_table.add("first", added, tmp_path)
    assert "largest difference" not in demo_table.table(demo_table.runs(tmp_path))
    demo_table.add("second", {**added, "react/smile": 0.21, "seconds/total": 1170.0}, tmp_path)
    text = demo_table.table(demo_table.runs(tmp_path))
    header, _, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines())
    assert header == ["tag", "what", "first", "second", "largest difference", "ground truth", "null"]
    smile = next(row for row in rows if row[0] == "`react/smile`")
    assert smile[2:] == ["0.300 ± 0.020", "0.210 ± 0.020", "0.090", "0.250", "0.020"]
    assert next(row for row in rows if "minutes" in row[1])[2:5] == ["15.0", "19.5", "4.5"]
    assert all(len(row) == len(header) for row in rows)


def test_the_readme_has_the_table_of_the_runs_that_are_kept(demo_table):
    text = (ROOT / "README.md").read_text("utf-8")
    assert text == demo_table.inserted(text, demo_table.table(demo_table.runs(demo_table.RUNS))), "run make docs"


def test_sigterm_ends_the_stage_at_hand_too(tmp_path):
    """What `kill` sends to the demo alone, as service managers do: no stage is left behind."""
    places = [f"{key}={tmp_path / key}" for key in ("run", "data_folder", "latents_folder")]
    command = [sys.executable, "-m", "af.cli.main", "demo", "demo=tiny", *places]
    demo = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while not (stages := psutil.Process(demo.pid).children()):
        assert demo.poll() is None
        time.sleep(0.05)
    demo.send_signal(signal.SIGTERM)
    said = demo.communicate(timeout=60)[1]
    assert demo.returncode == 128 + signal.SIGTERM
    assert "stopped in stage" in said
    assert "the same command continues with it" in said
    assert not any(stage.is_running() for stage in stages)
