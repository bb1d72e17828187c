"""Latency, speed and drift, measured on a small system that runs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from af.data.index import Index
from af.data.shards import ShardReader
from af.errors import UserError
from af.evaluation.running import drift_rows, long_drift, measure_running, running_rows
from af.forcing.anchor import Anchor
from af.forcing.stream import LiveSession
from af.models.speech import LogMel
from af.pipeline.avatar import Avatar
from af.pipeline.rolling import RolloutSettings

SETTINGS = RolloutSettings(steps=1)


@pytest.fixture(scope="module")
def avatar(autoencoder_folder, denoiser_folder) -> Avatar:
    return Avatar.load(autoencoder_folder, denoiser_folder)


def test_latency_is_waiting_and_computing_and_stages_add_up(avatar, latents):
    clip = ShardReader(Index.load(latents / "test")).read(0, {"video", "audio"})
    running = measure_running(avatar, clip, SETTINGS)
    assert running.blocks == 100 // 5 - 2  # 4 s in blocks of 5 frames, two of them to warm up
    assert running.latency.waiting_worst_ms == 5 * 40
    assert running.latency.worst_ms > running.latency.mean_ms > running.latency.waiting_mean_ms
    assert running.motion_only.mean_ms < running.latency.mean_ms
    stages = [running.rtf[f"speed/rtf/{name}"] for name in ("features", "user_motion", "motion", "decoding")]
    assert min(stages) > 0
    assert sum(stages) == pytest.approx(running.rtf["speed/rtf"])
    rows = {row.tag: row.value for row in running_rows(running)}
    assert rows["latency/worst_ms"] == running.latency.worst_ms
    assert rows["latency/motion_only/mean_ms"] == running.motion_only.mean_ms


def test_speed_is_that_of_the_sampling_asked_for(avatar, latents, monkeypatch):
    made = {}
    monkeypatch.setattr(
        "af.evaluation.running.LiveSession", lambda *_, **settings: made.update(settings) or LiveSession(*_, **settings)
    )
    clip = ShardReader(Index.load(latents / "test")).read(0, {"video", "audio"})
    settings = replace(SETTINGS, solver="midpoint", anchor=Anchor(pull=0.1), dead_band=0.2)
    measure_running(avatar, clip, settings)
    assert {name: made[name] for name in settings.sampling} == settings.sampling
    assert settings.sampling["solver"] == "midpoint"


def test_features_of_whole_utterances_have_no_latency(avatar, latents):
    clip = ShardReader(Index.load(latents / "test")).read(0, {"video", "audio"})
    with pytest.raises(UserError, match="whole recording"):
        measure_running(replace(avatar, features=LogMel(mode="utterance")), clip, SETTINGS)


@pytest.mark.filterwarnings("ignore:drift")
def test_drift_of_a_roll_out_over_conversations_one_after_the_other(avatar, latents):
    index = Index.load(latents / "test")
    found, true = long_drift(avatar.denoiser, index, index, SETTINGS, avatar=avatar, seconds=40, every=20)
    assert found.distance.shape == true.distance.shape == (2,)
    assert found.sharpness[0] == 1
    assert (found.distance > true.distance).all()  # an untrained denoiser
    assert np.isfinite([row.value for row in drift_rows(found, true, "test")]).all()
