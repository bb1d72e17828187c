"""The two-sample test finds a fault where there is one, and nothing in another sample of the same process."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from af.metrics import evaluate_clips, two_sample
from af.metrics.records import EvaluationClip, MetricRow
from af.metrics.two_sample import TwoSample, auc_from_sums, score_sums
from af.types import FaceSpec

FACE = FaceSpec(("smile", "roll"), 1, "test/1")
FRAMES, LAG, BLOCK = 200, 10, 10


def smooth(rng: np.random.Generator) -> np.ndarray:
    return np.stack([np.convolve(rng.normal(size=FRAMES), np.hanning(15), "same") for _ in range(2)], axis=1)


def rows(fault, count: int = 24, **settings) -> dict[str, MetricRow]:
    """The table of avatars that follow the user 0.4 s later, against others of whom `fault` makes something else."""
    rng = np.random.default_rng(3)
    clips = []
    for i in range(count):
        user, own, other = smooth(rng), smooth(rng), smooth(rng)
        reaction = np.roll(user, LAG, axis=0)
        generated = fault(reaction, other, rng)
        clips.append(EvaluationClip(str(i), str(i), user, reaction + 0.7 * own, generated, FACE))
    result = evaluate_clips(clips, metrics=[TwoSample(BLOCK, **{"resamples": 50, "alone": False} | settings)])
    return {row.tag: row for row in result.rows}


def test_another_sample_of_the_same_process_cannot_be_told_apart():
    found = rows(lambda reaction, other, _: reaction + 0.7 * other, alone=True)
    assert {"c2st/motion/smile", "c2st/motion/roll"} < set(found)
    for tag, row in found.items():
        assert row.value == pytest.approx(0.5, abs=0.09), tag
        assert row.ground_truth == pytest.approx(0.5, abs=0.09), tag
    assert found["c2st/pair"].null > 0.8


def test_an_expression_that_says_nothing_has_no_row_of_its_own():
    rng, face = np.random.default_rng(0), FaceSpec(("neutral", *FACE.names), 2, "test/1")
    sides = [[np.insert(smooth(rng), 0, 1e-6 * rng.normal(size=FRAMES), axis=1) for _ in range(6)] for _ in range(3)]
    clips = [EvaluationClip(str(i), str(i), *three, face) for i, three in enumerate(zip(*sides, strict=True))]
    found = {row.tag for row in evaluate_clips(clips, metrics=[TwoSample(resamples=2)]).rows}
    assert found == {"c2st/motion", "c2st/pair", "c2st/motion/smile", "c2st/motion/roll"}


def test_small_and_uncoupled_motion_are_found_each_in_its_row():
    small = rows(lambda reaction, other, _: 0.5 * (reaction + 0.7 * other))
    assert small["c2st/motion"].value > 0.8
    blind = rows(lambda reaction, other, _: np.roll(reaction, FRAMES // 2, axis=0) + 0.7 * other)
    assert blind["c2st/motion"].value == pytest.approx(0.5, abs=0.09)
    assert blind["c2st/pair"].value > 0.75


def test_windows_too_few_for_a_tree_to_split_score_alike():
    found = rows(lambda reaction, other, _: 0 * other, count=2)
    assert found["c2st/motion"].value == found["c2st/pair"].value == 0.5


def test_jumps_at_borders_are_found_by_their_place_alone():
    def jumping(reaction, other, rng):
        steps = rng.normal(size=(FRAMES // BLOCK, 2)).repeat(BLOCK, axis=0)
        return reaction + 0.7 * other + 0.8 * steps

    assert rows(jumping)["c2st/block"].value > 0.75
    assert rows(jumping)["c2st/block"].ground_truth == pytest.approx(0.5, abs=0.09)
    shaken = rows(lambda reaction, other, rng: reaction + 0.7 * other + 0.3 * rng.normal(size=other.shape))
    assert shaken["c2st/motion"].value > 0.9
    assert shaken["c2st/block"].value == pytest.approx(0.5, abs=0.09)


def test_what_is_kept_of_the_truth_serves_the_next_system_and_no_other_truth(monkeypatch):
    monkeypatch.setattr(two_sample, "FOLDS", 2)

    def clips(seed: int, size: float) -> list[EvaluationClip]:
        rng = np.random.default_rng(seed)
        sides = [[smooth(rng) for _ in range(3)] for _ in range(4)]
        return [EvaluationClip(str(i), str(i), u, t, size * g, FACE) for i, (u, t, g) in enumerate(sides)]

    reused = TwoSample(BLOCK, resamples=2, alone=False)
    evaluate_clips(clips(0, 1.0), metrics=[reused])
    for seed in (0, 1):
        fresh = TwoSample(BLOCK, resamples=2, alone=False)
        again, expected = (evaluate_clips(clips(seed, 0.5), metrics=[metric]).rows for metric in (reused, fresh))
        assert again == expected


def test_auc_from_counts_is_that_of_the_scores():
    rng = np.random.default_rng(0)
    first, second = ([rng.integers(0, 9, 20) / 9 + shift for _ in range(5)] for shift in (1 / 9, 0))
    labels = np.repeat([1, 0], 100)
    expected = roc_auc_score(labels, np.concatenate([*first, *second]))
    assert auc_from_sums(score_sums(first, second).sum(0)) == pytest.approx(expected)


def test_clips_of_one_person_or_shorter_than_a_window_have_no_row():
    still = np.zeros((10, 2))
    clips = [EvaluationClip(str(i), str(i), still, still, still, FACE) for i in range(3)]
    found = evaluate_clips(clips, metrics=[TwoSample()])
    assert all(np.isnan(row.value) and row.note for row in found.rows)
    alone = evaluate_clips(clips[:1], metrics=[TwoSample()])
    assert "two identities" in alone.absent["c2st"]
