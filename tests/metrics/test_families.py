"""The table: every row with its truth and null, the intervals, what is left out and why."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from af.evaluation.table import flat_metrics
from af.metrics import evaluate_clips, families
from af.metrics.base import partners
from af.metrics.bootstrap import bootstrap, bootstrap_values, finish_mean, mean_sums
from af.metrics.diversity import Diversity
from af.metrics.reaction import ReactionGain
from af.metrics.records import ClipFeatures, EvaluationClip, Protocol
from af.types import FaceSpec

FACE = FaceSpec(("mouth_open", "smile", "pitch", "roll"), 2, "test/1")
QUICK = Protocol(clusters=((8, 4),), block=10, resamples=50)


def make_clips(count: int = 10, frames: int = 260) -> list[EvaluationClip]:
    rng = np.random.default_rng(0)

    def motion(dims: int = 4) -> np.ndarray:
        return np.stack([np.convolve(rng.normal(size=frames), np.ones(7) / 7, "same") for _ in range(dims)], 1)

    clips = []
    for i in range(count):
        user, true, noise = motion(), motion(), motion()
        true += 0.5 * np.roll(user, 11, axis=0)
        audio = [rng.normal(size=frames * 640) * np.repeat(np.abs(motion(1)[:, 0]), 640) * 0.1 for _ in range(2)]
        ends = tuple(range(20 + i, frames - 40, 70))
        clips.append(EvaluationClip(f"c{i}", f"id{i}", user, true, 0.5 * true + 0.5 * noise, FACE, *audio, ends))
    return clips


@pytest.fixture(scope="module")
def clips() -> list[EvaluationClip]:
    return make_clips()


@pytest.fixture(scope="module")
def report(clips):
    return evaluate_clips(clips, QUICK)


def test_every_coupling_row_has_a_truth_and_a_null_that_differ(report):
    for row in report.rows:
        assert row.ground_truth is not None, row.tag
        if row.tag.split("/")[0] in ("rpcc", "pfd", "reaction_gain", "react", "mouth", "lip") and "lag" not in row.tag:
            assert row.null is not None, row.tag
    rows = {row.tag: row for row in report.rows}
    assert rows["reaction_gain"].ground_truth > rows["reaction_gain"].value > rows["reaction_gain"].null
    assert rows["react/smile"].ground_truth > 0.3 > abs(rows["react/smile"].null)
    assert rows["mouth/corr"].ground_truth == pytest.approx(1)
    assert rows["border_ratio/exp"].value == pytest.approx(1, abs=0.2)


def test_intervals_contain_the_value(report):
    for row in report.rows:
        if row.interval is not None and not row.tag.endswith(("lag", "peak")) and "rpcc" not in row.tag:
            assert row.interval.low <= row.value <= row.interval.high, row.tag


def test_ground_truth_scored_as_generated_is_perfect(clips):
    rows = {r.tag: r for r in evaluate_clips([replace(c, generated=c.true) for c in clips], QUICK).rows}
    for tag, row in rows.items():
        assert row.value == pytest.approx(row.ground_truth, abs=1e-6), tag


def test_rows_without_input_are_left_out_and_without_a_value_say_why(clips):
    still = replace(clips[0], true=np.zeros_like(clips[0].true), generated=np.zeros_like(clips[0].true))
    bare = [replace(still, avatar_audio=None, phrase_ends=None)]
    rows = {row.tag: row for row in evaluate_clips(bare, QUICK).rows}
    assert "reaction_gain" not in rows
    assert "lip/corr" not in rows
    assert "react/smile" not in rows
    for tag in ("rpcc/exp", "tlcc/exp/peak", "sid/exp", "mouth/corr"):
        assert np.isnan(rows[tag].value)
        assert rows[tag].note
    assert flat_metrics(rows.values())["rpcc/exp"] is None  # JSON knows no NaN


def test_clips_without_sound_or_phrase_ends_do_not_count_and_cost_the_others_nothing(clips, report):
    """As if they were not there, in the rows that need what they lack."""
    bare = [replace(c, name=f"bare {c.name}", avatar_audio=None, user_audio=None, phrase_ends=None) for c in clips[:3]]
    rows = {row.tag: row for row in evaluate_clips([*clips, *bare], QUICK).rows}
    before = {row.tag: row for row in report.rows}
    for tag in ("lip/corr", "reaction_gain"):
        assert rows[tag].value == pytest.approx(before[tag].value), tag
        assert rows[tag].n == before[tag].n
    assert np.isfinite(rows["react/nod"].value)
    assert rows["react/nod"].n == 10
    assert rows["rpcc/exp"].n == 13


def test_what_was_fitted_on_the_truth_can_be_used_again(clips, report):
    gain = ReactionGain(gain_bands=(), resamples=50)
    metrics = [Diversity(((8, 4),), resamples=50), gain]
    first = evaluate_clips(clips, metrics=metrics)
    model, values = gain.model, {row.tag: row.value for row in report.rows}
    blind = evaluate_clips([replace(c, generated=c.user) for c in clips], metrics=metrics)
    assert gain.model is model
    assert {row.tag: row.value for row in first.rows}.items() <= values.items()
    assert [row.ground_truth for row in blind.rows] == [row.ground_truth for row in first.rows]
    evaluate_clips([replace(c, true=c.user) for c in clips], metrics=[gain])
    assert gain.model is not model


def test_the_order_of_the_clips_is_their_position_and_repeats_count_once(clips, report):
    placed = [replace(clip, position=i) for i, clip in enumerate(clips)]
    mixed = evaluate_clips([*placed[5:], *placed[:7]], QUICK)
    assert mixed.rows == report.rows
    assert list(mixed.per_clip) == list(report.per_clip)


def test_what_is_absent_says_what_it_needs(clips, report):
    assert not {"rpcc", "reaction_gain", "react", "border_ratio"} & set(report.absent)
    assert "weights" in report.absent["fid_inception"]
    nothing = evaluate_clips([])
    assert not nothing.rows
    assert nothing.absent["rpcc"] == "needs face parameters"
    assert "phrase_ends" in nothing.absent["react"]


def test_headlines_and_cards_name_rows_that_there_are(report):
    """A tag is typed once, beside the row it belongs to: none of a family's lists may name a row that it never makes."""
    tags = {row.tag for row in report.rows}
    assert {row.tag for row in report.rows if row.headline} == {tag for metric in families() for tag in metric.headline}
    on_cards = {tag for metric in families() if metric.of_faces for tag in metric.on_card}
    assert on_cards == set(report.on_card) <= tags
    assert {tag for metric in families() if metric.of_faces for tag in metric.needs} <= {t.split("/")[0] for t in tags}


def test_pictures_and_numbers_of_clips_have_rows_without_faces():
    rng = np.random.default_rng(0)
    clips = []
    for i in range(6):
        true, own = rng.normal(size=(2, 60, 3)).cumsum(1)
        features = (ClipFeatures("net-1", "image", true, own), ClipFeatures("i3d-1", "video", true, true, "fvd_i3d"))
        values = {"psnr": 20.0 + i, "csim/generated": 0.5, "csim/true": 1.0, "lse_d/generated": 8.0, "lse_d/null": 9.0}
        clips.append(EvaluationClip(str(i), str(i), features=features, values=values if i else {"psnr": 20.0}))
    result = evaluate_clips(clips, Protocol(block=10, embedder="arc-1"))
    rows = {row.tag: row for row in result.rows}
    assert set(rows) == {
        *("fd_img/net-1", "kd_img/net-1", "border_ratio/net-1", "fvd_i3d/n360", "kd_vid/i3d-1", "psnr"),
        *("csim/arc-1/vs_source", "lse_d"),
    }
    assert rows["psnr"].value == 22.5
    assert (rows["psnr"].n, rows["lse_d"].n) == (6, 5)
    assert (rows["lse_d"].null, rows["csim/arc-1/vs_source"].ground_truth) == (9.0, 1.0)
    assert rows["fvd_i3d/n360"].value == pytest.approx(0, abs=1e-6)
    assert rows["fd_img/net-1"].interval.low <= rows["fd_img/net-1"].value
    assert {"lse_c", "rpcc", "fid_inception"} <= set(result.absent)
    assert "fvd_i3d" not in result.absent
    assert result.per_clip["3"]["csim/generated"] == 0.5


def test_a_bad_layout_or_another_tracker_is_refused_by_name(clips):
    with pytest.raises(ValueError, match="c1: tracker 'other/1'"):
        evaluate_clips([clips[0], replace(clips[1], face=replace(FACE, tracker="other/1"))])
    with pytest.raises(ValueError, match="c1: shapes"):
        evaluate_clips([clips[0], replace(clips[1], generated=clips[1].generated[:-1])])


def test_nulls_come_from_another_session_and_identity():
    clips = [(f"s{i // 2}", f"id{i % 3}") for i in range(10)]
    for (session, identity), j in zip(clips, partners(clips), strict=True):
        assert clips[j][0] != session
        assert clips[j][1] != identity
    assert partners(clips[:1]) is None


def test_bootstrap_interval_covers_the_true_mean_as_often_as_it_says():
    rng, hits, trials = np.random.default_rng(0), 0, 300
    for seed in range(trials):
        values = rng.exponential(size=60)
        interval = bootstrap(mean_sums(values), finish_mean, resamples=300, seed=seed)
        hits += interval.low <= 1.0 <= interval.high
    assert 0.88 < hits / trials < 0.98


def test_bootstrap_over_identities_is_wider_when_clips_of_one_person_are_alike():
    rng = np.random.default_rng(0)
    values = np.repeat(rng.normal(size=10), 8)
    groups = [f"p{i // 8}" for i in range(80)]
    clip, person = (bootstrap(mean_sums(values), finish_mean, g).standard_error for g in (None, groups))
    assert person > 2 * clip
    assert person == pytest.approx(values[::8].std() / np.sqrt(10), rel=0.15)
    first, second = (bootstrap_values(mean_sums(values), finish_mean, groups, seed=3) for _ in range(2))
    assert np.array_equal(first, second)


def test_a_clip_without_a_value_does_not_count():
    assert finish_mean(mean_sums(np.array([1.0, np.nan, 3.0])).sum(0)) == 2.0
