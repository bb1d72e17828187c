"""The estimate for many GPUs by hand."""

from __future__ import annotations

import pytest

from af.cli.bench_scaling import ASSUMED, estimate, storage


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
    hour = storage(1.0, 512 + 9216)
    assert hour["video_gb"] == pytest.approx(2 * 3600 * 2e6 / 8 / 1e9)
    assert hour["motion_gb"] == pytest.approx(2 * 90_000 * 1024 / 1e9)
    assert hour["speech_features_gb"] == pytest.approx(2 * 90_000 * 9216 * 2 / 1e9)
    parts = sum(hour[name] for name in ("video_gb", "sound_gb", "motion_gb", "speech_features_gb"))
    assert hour["total_gb"] == pytest.approx(parts)
