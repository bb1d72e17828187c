from __future__ import annotations

import json
import time

import pytest
import torch

from benchmarks import gpu, growth


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_every_kind_of_row_has_its_numbers(monkeypatch, capsys, tmp_path) -> None:
    monkeypatch.setattr(gpu, "PRECISIONS", {"fp32": torch.float32})
    monkeypatch.setattr(gpu, "variants", lambda sizes: [("fp32", "eager", None)])
    assert gpu.main(["--threads", "1", "--smoke", "--minutes", "30", "--markdown", str(tmp_path / "gpu.md")]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row for row in rows if "failure" in row] == []
    numbers = {
        "peak": "tflops",
        "block": "streams",
        "decode": "fps",
        "latency": "latency_ms",
        "training": "samples_per_s",
    }
    assert {row["part"] for row in rows} == set(numbers)
    assert all(row[numbers[row["part"]]] > 0 for row in rows)
    assert all(row["share_of_peak"] > 0 for row in rows if row["part"] in ("block", "decode", "training"))
    assert {row["how"] for row in rows if row["part"] == "block"} == {"graph", "eager"}
    assert (tmp_path / "gpu.md").read_text().count("\n| ") == 2 + len(rows)


@pytest.mark.slow
def test_the_smoke_run_compiles_in_bf16(monkeypatch, capsys) -> None:
    monkeypatch.setattr(gpu, "PRECISIONS", {"bf16": torch.bfloat16})
    assert gpu.main(["--threads", "1", "--smoke", "--minutes", "30"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row for row in rows if "failure" in row] == []
    assert {row["how"] for row in rows if row["part"] == "training"} == {"eager", "compiled"}


def test_a_row_that_fails_or_comes_too_late_is_a_row(capsys) -> None:
    def fails() -> gpu.Numbers:
        raise torch.OutOfMemoryError("out of memory\nwith details")

    rows = gpu.Rows(torch.device("cpu"), time.monotonic() + 60)
    about = {"part": "block", "what": "guided", "precision": "fp32", "how": "eager", "batch": 1}
    rows.row(fails, **about)
    rows.row(lambda: {"fps": 1.0}, **about)
    rows.end = 0
    rows.row(lambda: {"fps": 1.0}, **about)
    first, second, third = rows.rows
    assert first["failure"] == "OutOfMemoryError: out of memory"
    assert second["fps"] == 1.0
    assert "no time left" in third["failure"]
    assert "fps" not in third
    text = gpu.markdown({"card": {"name": "a card"}, "rows": rows.rows})
    assert text.startswith("**a card**")
    assert "OutOfMemoryError: out of memory |" in text


def test_growth_has_four_curves_and_flat_memory(capsys, tmp_path) -> None:
    assert growth.main(["--threads", "1", "--scale", "0.01", "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "growth.json").read_text())
    assert len(found["session_length"]) == 10
    assert [row["sessions"] for row in found["sessions"]] == [1, 2, 4]
    assert [row["samples"] for row in found["loader"]] == [10, 100, 1000]
    assert all(row["drawing_mib"] < 1 for row in found["loader"])
    assert all(row["seconds"] > 0 for row in found["evaluation"])
    assert (tmp_path / "growth.png").stat().st_size > 10_000
