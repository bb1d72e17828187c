"""The estimate for many GPUs by hand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from af.cli.bench_scaling import ASSUMED, LOGMEL, estimate, storage, stored_bytes, window_bytes
from af.data.index import Index


def test_an_estimate_by_hand(monkeypatch):
    values = {"peak_tflops": 100.0, "utilization": 0.5, "gb_per_s_inside": 10.0, "gb_per_s_between": 0.5}
    more = {"memory_gb_per_s": 28.0, "launch_ms": 20.0, "read_gb_per_s": 1.0}
    monkeypatch.setattr("af.cli.bench_scaling.ASSUMED", {**ASSUMED, **values, **more})
    counted = {"flops_per_window": 1e12, "parameters": 1e7, "gradient_bytes": 4e7, "bytes_per_window": 1e6}
    alone = estimate(1, 5, counted)  # 5e12 operations at 5e13 a second, and 0.28 GB at 28 GB/s
    assert alone["gpu"] == pytest.approx(110)
    assert (alone["allreduce"], alone["read"], alone["bound_by"]) == (0, pytest.approx(5), "gpu")
    eight, many = estimate(8, 5, counted), estimate(64, 5, counted)
    assert eight["allreduce"] == pytest.approx(1000 * 2 * 7 / 8 * 4e7 / 10e9)
    assert eight["read"] == many["read"] == pytest.approx(40)
    assert many["bound_by"] == "allreduce"
    assert many["step_ms"] == many["allreduce"] == pytest.approx(1000 * 2 * 63 / 64 * 4e7 / 0.5e9)
    assert many["windows_per_s"] == pytest.approx(64 * 5 / (2 * 63 / 64 * 0.08))


def test_an_hour_by_hand():
    hour = storage(1.0, 9216)
    assert hour["video_gb"] == pytest.approx(2 * 3600 * 2e6 / 8 / 1e9)
    assert hour["motion_gb"] == pytest.approx(2 * 90_000 * 512 * 4 / 1e9)
    assert hour["speech_features_gb"] == pytest.approx(2 * 90_000 * 9216 * 2 / 1e9)
    parts = sum(hour[name] for name in ("video_gb", "sound_gb", "motion_gb", "speech_features_gb"))
    assert hour["total_gb"] == pytest.approx(parts)


def test_bytes_are_those_that_shards_hold(latents):
    """Files of `af encode` and no guess: what is left beside the numbers is a header."""
    for sample in Index.load(latents / "train").samples:
        for role in "ab":
            for part, numbers in (("motion", 16), ("audio", LOGMEL)):
                size = sample.members[f"{role}.{part}.npy"][1]
                assert 0 < size - sample.frames * stored_bytes(part, numbers) < 256


def test_the_tables_of_the_documentation_are_these():
    text = (Path(__file__).parents[2] / "docs" / "cluster.md").read_text("utf-8")
    found = dict(re.findall(r"^\| ([^|]+) \| (\d+)(?: \(\d+ USD a month\))? \|$", text, re.M))
    sizes = storage(1000.0, 9216)
    for words, name in (
        ("face videos", "video_gb"),
        ("sound", "sound_gb"),
        ("motion latents", "motion_gb"),
        ("speech features of wav2vec", "speech_features_gb"),
        ("all of it", "total_gb"),
        ("speech features as log-mel", "speech_features_logmel_gb"),
    ):
        (written,) = (int(value) for key, value in found.items() if key.startswith(words))
        assert written == round(sizes[name]), words
    assert f"({round(sizes['usd_per_month'])} USD a month)" in text
    assert f"{window_bytes(50, 9216) / 1e6:.2f} MB read a window" in text
    flops, parameters, gradients = re.search(
        r"\(([\d,]+) parameters\).*?([\d.]+) GFLOP a window.*?(\d+) MB of", text, re.S
    ).group(2, 1, 3)
    counted = {
        "flops_per_window": float(flops) * 1e9,
        "parameters": int(parameters.replace(",", "")),
        "gradient_bytes": float(gradients) * 1e6,
    }
    rows = re.findall(r"^\| (\d+) \| (\d+) \| (wav2vec 2.0|log-mel) \| (.*) \|$", text, re.M)
    assert len(rows) >= 7
    for gpus, batch, features, cells in rows:
        bytes_read = window_bytes(50, 9216 if features == "wav2vec 2.0" else LOGMEL)
        expected = estimate(int(gpus), int(batch), {**counted, "bytes_per_window": bytes_read})
        gpu, launch, reduced, read, step, windows = cells.split(" | ")
        for written, value in ((gpu, "gpu"), (launch, "launch"), (reduced, "allreduce"), (read, "read")):
            assert float(written) == pytest.approx(expected[value], rel=0.01, abs=0.06), (gpus, batch, features, value)
        assert step.split(" ")[1] == f"({expected['bound_by']})".replace("allreduce", "all-reduce")
        assert float(windows.replace(",", "")) == pytest.approx(expected["windows_per_s"], rel=0.002)
