"""The estimate for many GPUs by hand."""

from __future__ import annotations

import pytest

from af.cli.bench_scaling import ASSUMED, estimate, storage


def test_an_estimate_by_hand(monkeypatch):
    values = {"peak_tflops": 100.0, "utilization": 0.5, "gb_per_s_inside": 10.0, "gb_per_s_between": 1.0}
    monkeypatch.setattr("af.cli.bench_scaling.ASSUMED", {**ASSUMED, **values})
    counted = {"flops_per_window": 1e12, "gradient_bytes": 4e7, "bytes_per_window": 1e6}
    alone = estimate(1, 5, counted)  # 5e12 operations at 5e13 a second
    assert (alone["compute_ms"], alone["allreduce_ms"]) == (pytest.approx(100), 0)
    eight, many = estimate(8, 5, counted), estimate(64, 5, counted)
    assert eight["allreduce_ms"] == pytest.approx(1000 * 2 * 7 / 8 * 4e7 / 10e9)
    assert many["allreduce_ms"] == pytest.approx(1000 * 2 * 63 / 64 * 4e7 / 1e9)
    assert many["step_ms_hidden"] == pytest.approx(100)
    assert many["efficiency_in_turn"] == pytest.approx(100 / (100 + many["allreduce_ms"]))
    assert many["windows_per_s"] == pytest.approx(64 * 5 / 0.1)
    assert many["read_gb_per_s"] == pytest.approx(3.2)


def test_an_hour_by_hand():
    hour = storage(1.0, 512 + 9216)
    assert hour["video_gb"] == pytest.approx(2 * 3600 * 2e6 / 8 / 1e9)
    assert hour["motion_gb"] == pytest.approx(2 * 90_000 * 1024 / 1e9)
    assert hour["speech_features_gb"] == pytest.approx(2 * 90_000 * 9216 * 2 / 1e9)
    parts = sum(hour[name] for name in ("video_gb", "sound_gb", "motion_gb", "speech_features_gb"))
    assert hour["total_gb"] == pytest.approx(parts)
