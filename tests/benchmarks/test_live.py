"""What `benchmarks.live` reads from recordings, with known answers; and that the whole of it runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from jaxtyping import Float

from af.clock import FRAME_MS, SAMPLE_RATE, samples_to_seconds
from benchmarks import live
from benchmarks.probe import answer, beginning, heard_at, offset
from benchmarks.soak import growth
from tests.browser import needs_browser

SHOWN_MS = 1234.0  # when frame 0 is seen


def curves(frames: int, rng: np.random.Generator) -> Float[np.ndarray, "T 4"]:
    """Four readings that wander as faces do."""
    steps = rng.standard_normal((frames + 12, 4))
    return 0.3 * np.stack([np.convolve(column, np.ones(13) / 13, "valid") for column in steps.T], 1)


@pytest.mark.parametrize("lost", [0.0, 0.3])
def test_frames_are_found_on_the_clock_of_the_page(lost: float) -> None:
    """To a few ms, though some are lost, shown unevenly and read with noise; nothing is found where nothing moves."""
    rng = np.random.default_rng(0)
    made = curves(140, rng)
    kept = np.flatnonzero(rng.uniform(size=140) >= lost)
    times = SHOWN_MS + kept * FRAME_MS + rng.uniform(-8, 8, len(kept))
    seen = 0.1 + made[kept] + 0.02 * rng.standard_normal((len(kept), 4))
    assert offset(times, seen, made) == pytest.approx(SHOWN_MS, abs=5)
    assert offset(times, 0.02 * rng.standard_normal((len(kept), 4)), 0 * made) is None
    assert offset(times, curves(200, np.random.default_rng(9))[: len(kept)], made) is None
    assert offset(times[:5], seen[:5], made) is None


def test_the_voice_is_found_from_how_loud_it_was() -> None:
    """From recorded loudness and from reports of what was unsaid at the end of each block."""
    voice, block, first, begun = live.phrase(), 10, 500, 507
    total = samples_to_seconds(len(voice))
    reports = [
        {"start": start, "user": {"smile": [0.0] * block}, "unsaid_s": round(total - (start + block - begun) / 25, 2)}
        for start in range(first, first + 150, block)
        if 0 < (start + block - begun) / 25 < total
    ]
    times = np.arange(0, 6000, 5.8)  # pieces of 256 samples at 44.1 kHz
    place = (times - SHOWN_MS - (begun - first) * FRAME_MS) / 1000 * SAMPLE_RATE
    levels = [
        0.0 if p < 93 or p > len(voice) else float(np.sqrt(np.square(voice[int(p) - 93 : int(p)]).mean()))
        for p in place
    ]
    assert heard_at(np.stack([times, levels], 1), voice, reports, first) == pytest.approx(SHOWN_MS, abs=12)
    assert heard_at(np.stack([times, 0 * times], 1), voice, reports, first) is None


def test_a_smile_begins_where_it_rises_and_is_answered_above_the_noise() -> None:
    rng = np.random.default_rng(0)
    rise = np.interp(np.arange(100), [60, 67], [0, 0.9])
    assert beginning(rise) == 61
    assert beginning(0.01 * rng.standard_normal(100)) is None
    times = (np.arange(100) - 50) * FRAME_MS
    noise = 0.03 * rng.standard_normal(100)
    assert answer(times, rise + noise) == pytest.approx(11 * FRAME_MS, abs=3 * FRAME_MS)
    assert answer(times, noise) is None


def test_growth_is_the_lines_rise() -> None:
    rows = [{"minute": float(m), "x": None if m == 3 else 5 + 2.0 * m} for m in range(11)]
    assert growth(rows, "x") == pytest.approx(20)
    assert growth(rows[:2], "x") == 0


@pytest.mark.slow
@needs_browser
def test_a_short_run_over_a_bad_line_prints_all_it_measures(
    autoencoder_folder, denoiser_folder, tmp_path: Path, capsys
) -> None:
    words = ["--autoencoder", str(autoencoder_folder), "--denoiser", str(denoiser_folder), "--tries", "1"]
    words += [
        "--loss",
        "2",
        "--jitter",
        "10",
        "--minutes",
        "0.05",
        "--programs",
        "1",
        "--out",
        str(tmp_path),
        "--reconnects",
        "1",
    ]
    assert live.main([*words, "--", "--steps", "1"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["block_frames"] == 5
    assert found["budget_ms"]["waiting"] == 200
    assert {"user_to_pixel_ms", "answer_ms", "echo_ms", "transport_ms", "voice_late_ms"} <= set(found)
    assert found["memory"]["rss_mb"] > 50
    assert found["line"]["packets"] > 50
    assert found["reconnects"]["reconnects"] == 1
    assert not found["errors_in_pages"]
    rows = [json.loads(line) for line in (tmp_path / "minutes.jsonl").read_text().splitlines()]
    assert rows
    assert rows[-1]["sessions"][0]["closed"] is None
    assert found["soak"]["programs"][0]["frames"] > 10
    assert found["soak"]["programs"][0]["closed"] is None
    assert (tmp_path / "soak.png").stat().st_size > 1000
