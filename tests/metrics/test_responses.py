"""Average answers to events: found at their lag and size, by size of the event, and none from strangers."""

from __future__ import annotations

import numpy as np
import pytest

from af.metrics import evaluate_clips
from af.metrics.records import EvaluationClip
from af.metrics.responses import BEFORE, Events, Responses, onsets, responses, unprompted
from af.metrics.smoothness import Smoothness, median_speed
from af.types import FaceSpec

FACE = FaceSpec(("mouthSmileLeft", "mouthSmileRight", "roll"), 2, "test/1")


def bump(frames: int, at: int, height: float) -> np.ndarray:
    """A smile of one second whose half height is passed in frame `at`."""
    t = np.arange(frames) - at + 12 / 3
    return height * np.where((t > 0) & (t < 24), np.sin(np.pi * t / 24) ** 2, 0.0)


def test_onsets_are_where_a_smile_passes_half_its_height():
    found = onsets(bump(200, 50, 0.4) + bump(200, 120, 0.8))
    assert found.at.tolist() == pytest.approx([52, 122], abs=1)
    assert found.size.tolist() == pytest.approx([0.4, 0.8])
    tilts = onsets(bump(200, 50, 0.4) - bump(200, 120, 0.8), both_ways=True)
    assert tilts.size.tolist() == pytest.approx([0.4, -0.8])
    assert len(onsets(np.full(100, 0.3)).at) == 0


def test_a_response_has_the_sign_of_its_event_and_none_at_the_edges():
    step = np.where(np.arange(200) >= 60, -0.5, 0.1)
    found = responses(step, Events(np.array([50, 190]), np.array([-1.0, -1.0])))
    assert np.isnan(found[1]).all()
    assert found[0, : BEFORE + 10].tolist() == pytest.approx([0.0] * (BEFORE + 10))
    assert found[0, BEFORE + 10 :] == pytest.approx(0.6)


def test_smiles_answered_by_half_are_seen_by_half_and_strangers_are_not_answered():
    rng, clips = np.random.default_rng(0), []
    for i in range(10):
        at = 60 + 160 * (i % 2) + i
        user = bump(300, at, 0.3 + 0.5 * (i % 2))
        avatar = bump(300, at + 10, 0.3 + 0.5 * (i % 2))
        sides = [np.stack([s, s, rng.normal(size=300) * 1e-3], 1) for s in (user, avatar, 0.5 * avatar)]
        clips.append(EvaluationClip(str(i), str(i), *sides, FACE))
    result = evaluate_clips(clips, metrics=[Responses(resamples=50)])
    row = next(row for row in result.rows if row.tag == "response/smile")
    assert row.value == pytest.approx(0.5 * row.ground_truth)
    assert row.ground_truth == pytest.approx(0.55 * 12 / 50, rel=0.01)  # the bump's mean over two seconds
    assert row.null < 0.5 * row.value
    curves = result.curves["response/smile"].series
    assert curves["true, large"].max() == pytest.approx(0.8, abs=0.05)
    assert curves["true, small"].max() == pytest.approx(0.3, abs=0.05)
    assert "response/nod" not in {row.tag for row in result.rows}  # no phrase ends, no nods


def test_a_user_who_smiles_back_is_no_cause():
    user, avatar = bump(300, 40, 0.4) + bump(300, 150, 0.4), bump(300, 50, 0.4) + bump(300, 140, 0.4)
    mine, yours = onsets(user), onsets(avatar)
    assert unprompted(mine, yours).at.tolist() == [mine.at[0]]
    assert unprompted(yours, mine).at.tolist() == [yours.at[1]]
    assert len(unprompted(mine, Events(np.array([], int), np.array([]))).at) == 2


def test_choosing_events_by_the_avatars_own_is_no_answer():
    """Two people who smile at random: leaving out events after the avatar's own makes its smile rise after all others."""
    rng = np.random.default_rng(0)

    def smiles() -> np.ndarray:
        return sum(bump(400, at, 0.5) for at in np.cumsum(rng.integers(30, 70, 8)))

    clips = []
    for i in range(40):
        sides = [np.stack([s, s, np.zeros(400)], 1) for s in (smiles(), smiles(), smiles())]
        clips.append(EvaluationClip(str(i), str(i), *sides, FACE))
    result = evaluate_clips(clips, metrics=[Responses(resamples=50)])
    row = next(row for row in result.rows if row.tag == "response/smile")
    assert max(map(abs, (row.value, row.ground_truth, row.null))) < 0.02
    chance = [responses(c.true[:, 0], unprompted(onsets(c.user[:, 0]), onsets(c.true[:, 0]))) for c in clips]
    assert np.nanmean(np.concatenate(chance)[:, BEFORE + 1 :]) > 0.05  # what is subtracted


def test_a_face_that_never_rests_is_too_fast_though_its_moves_are_smaller():
    rest = np.zeros((100, 1))
    rest[50:55, 0] = np.arange(5)
    assert median_speed(rest).tolist() == [0.0]
    assert median_speed(np.arange(10.0)[:, None] * 2).tolist() == [2.0]
    face = FaceSpec(("roll",), 0, "test/1")
    true = np.cumsum(np.full((60, 1), 0.1), axis=0)
    clips = [EvaluationClip(str(i), str(i), true, true, 2 * true, face) for i in range(3)]
    rows = {row.tag: row for row in evaluate_clips(clips, metrics=[Smoothness(resamples=20)]).rows}
    assert rows["speed_ratio/roll"].value == pytest.approx(2.0)
