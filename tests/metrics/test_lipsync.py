"""Mouth against sound, on sound whose envelope is known."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

from af.metrics.lipsync import lip_curve, mouth_curve, shifted
from af.voice import speech_envelope, voiced_frames

FRAMES = 250


@pytest.fixture(scope="module")
def speech():
    """16 kHz noise under a slow random envelope with silences; the envelope at the middle of each frame."""
    rng = np.random.default_rng(0)
    seconds = np.arange(FRAMES * 640) / 16_000
    bumps = np.convolve(rng.normal(size=FRAMES), np.hanning(9), "same")
    envelope = np.maximum(np.interp(seconds, (np.arange(FRAMES) + 0.5) / 25, bumps), 0)
    audio = 0.1 * envelope * rng.normal(size=seconds.size)
    return audio, envelope[320::640]


def test_envelope_follows_the_speech(speech):
    audio, envelope = speech
    measured = speech_envelope(audio, FRAMES)
    assert measured.shape == (FRAMES,)
    assert np.corrcoef(measured, envelope)[0, 1] > 0.97
    assert np.array_equal(voiced_frames(measured), measured >= 0.1 * np.percentile(measured, 95))
    assert not voiced_frames(np.zeros(50)).any()


@pytest.mark.parametrize("delay", [0, 3, -4, 10])
def test_lag_is_positive_when_the_mouth_is_late(speech, delay):
    audio, envelope = speech
    mouth = np.roll(envelope, delay)
    curve = lip_curve(mouth, audio)
    assert curve.argmax() - 10 == delay
    assert curve.max() > 0.9
    assert lip_curve(mouth, shifted(audio)).max() < 0.4


def test_only_voiced_frames_count(speech):
    audio, envelope = speech
    mouth = envelope.copy()
    silent = ~voiced_frames(speech_envelope(audio, FRAMES))
    mouth[silent] = np.random.default_rng(1).normal(size=silent.sum()) * 5
    assert_allclose(lip_curve(mouth, audio)[10], lip_curve(envelope, audio)[10], atol=1e-9)


def test_silence_and_a_still_mouth_have_no_value(speech):
    audio, envelope = speech
    for mouth, sound in ((envelope, np.zeros_like(audio)), (np.full(FRAMES, 0.1), audio), (envelope[:5], audio)):
        assert np.isnan(lip_curve(mouth, sound)).all()


def test_mouth_against_the_true_mouth(speech):
    _, envelope = speech
    curve = mouth_curve(envelope, np.roll(envelope, 2) * 0.3 + 1)
    assert curve.argmax() - 5 == 2
    assert curve.max() > 0.98
    assert np.isnan(mouth_curve(envelope, np.ones(FRAMES))).all()
