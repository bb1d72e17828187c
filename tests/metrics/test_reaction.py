"""Reaction gain and the known reactions: they must see reactions, and see nothing where there are none."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

from af.metrics import evaluate_clips
from af.metrics.known_reactions import correlation_at_lag, mean_and_error, nod_response
from af.metrics.reaction import ReactionGain, ReactionModel, log_mel
from af.metrics.records import EvaluationClip
from af.metrics.ridge import LaggedGram, fold_of_groups, lagged_filter, solve_ridge
from af.types import FaceSpec


def smooth(values: np.ndarray, width: int = 9) -> np.ndarray:
    return np.stack([np.convolve(c, np.ones(width) / width, "valid") for c in values.T], 1)


@pytest.fixture(scope="module")
def world():
    """Users, audio, a blind avatar that follows its own audio, and a true one that answers the user 11 frames later."""
    rng = np.random.default_rng(0)
    clips, frames = 24, 300
    draw = lambda dims: [smooth(rng.normal(size=(frames + 8, dims))) for _ in range(clips)]  # noqa: E731
    user, user_audio, avatar_audio = draw(3), draw(4), draw(4)
    blind = [np.roll(a[:, :3], 3, axis=0) + 0.5 * n for a, n in zip(avatar_audio, draw(3), strict=True)]
    true = [b + 0.5 * np.roll(u, 11, axis=0) for b, u in zip(blind, user, strict=True)]
    identities = [f"person {i // 2}" for i in range(clips)]
    model = ReactionModel(lags=20).fit(user, true, user_audio, avatar_audio, identities)
    return model, user, true, blind, user_audio, avatar_audio, identities


def test_lagged_gram_equals_the_matrix_laid_out():
    rng = np.random.default_rng(0)
    inputs = [rng.normal(size=(n, 3)) for n in (12, 20)]
    targets = [rng.normal(size=(len(i), 2)) for i in inputs]
    for lags in (1, 2, 7):
        gram = LaggedGram.of_clips(inputs, targets, lags)
        rows = [np.concatenate([f[t - 1 - j] for j in range(lags)]) for f in inputs for t in range(lags, len(f))]
        x, y = np.stack(rows), np.concatenate([t[lags:] for t in targets])
        assert_allclose(gram.xx, x.T @ x, atol=1e-12)
        assert_allclose(gram.xy, x.T @ y, atol=1e-12)
        columns, norms = np.arange(x.shape[1]), np.diagonal(x.T @ x)
        weights = solve_ridge(gram, [(columns[::2], 0.1), (columns[1::2], 2.0)])
        penalty = np.where(columns % 2 == 0, 0.1 * norms[::2].mean(), 2.0 * norms[1::2].mean())
        assert_allclose(weights, np.linalg.solve(x.T @ x + np.diag(penalty), x.T @ y), rtol=1e-8)
        alone = solve_ridge(gram, [(columns[::2], 0.1), (columns[1::2], 1e9)])
        assert_allclose(alone[::2], solve_ridge(gram, [(columns[::2], 0.1)])[::2], rtol=1e-6)
        assert_allclose(gram.error(weights), np.sum((y - x @ weights) ** 2))
        filtered = lagged_filter(inputs[0], weights.reshape(lags, 3, 2))
        assert_allclose(filtered[lags:], x[: 12 - lags] @ weights)


def test_folds_keep_an_identity_together():
    groups = ["a", "b", "a", "c", "c", "c", "d"]
    fold = fold_of_groups(groups, 3)
    assert len(set(fold)) == 3
    for name in set(groups):
        assert len({f for f, g in zip(fold, groups, strict=True) if g == name}) == 1


def test_gain_sees_reactions_and_does_not_reward_a_blind_avatar(world):
    model, _, true, blind, *_ = world
    reactive, none = model.gain(true), model.gain(blind)
    assert reactive.interval.low > 0.1
    assert none.interval.low < 0.02
    assert abs(none.value) < 0.06 * reactive.value
    gains = np.log(reactive.errors.sum(0)[0] / reactive.errors.sum(0)[1:])
    assert_allclose(reactive.value, gains[0] - gains[1:].mean())
    lags = model.gain_by_lag(true, bands=[(1, 6), (8, 15), (16, 21)])
    assert max(lags, key=lambda band: band[2])[:2] == (8, 15)


@pytest.mark.slow
def test_gain_on_synthetic_conversations():
    """Turn-taking makes the two voices depend on each other: neither a blind talker nor a stranger may gain from it."""
    from af.synth.session import SessionConfig, simulate

    sessions = [simulate(i) for i in range(60)]
    nobody_answers = SessionConfig(smile_answer=0, tilt_answer=0, nod_answer=0)
    blind = [simulate(i, nobody_answers, voices=False).b.face for i in range(60)]
    user, true = [s.a.face for s in sessions], [s.b.face for s in sessions]
    sounds = [[log_mel(s.side(role).audio, s.frames) for s in sessions] for role in ("a", "b")]
    model = ReactionModel().fit(user, true, *sounds, [str(i) for i in range(60)])
    reactive = model.gain(true)
    assert reactive.interval.low > 0.01
    for motion in (blind, true[1:] + true[:1]):
        gain = model.gain(motion)
        assert gain.interval.low < 0.002
        assert gain.interval.high < reactive.interval.low


def test_avatars_of_another_shape_are_refused_by_name(world):
    model, _, true, *_ = world
    with pytest.raises(ValueError, match="avatar has 23 clips where the model was fitted on 24"):
        model.gain(true[1:])
    with pytest.raises(ValueError, match=r"avatar\[2\] has shape \(299, 3\) where the true clip has \(300, 3\)"):
        model.gain([*true[:2], true[2][1:], *true[3:]])


def test_gain_grows_with_the_share_of_the_reaction(world):
    model, _, true, blind, *_ = world
    values = [model.gain([b + s * (t - b) for t, b in zip(true, blind, strict=True)]).value for s in (0, 0.3, 0.6, 1)]
    assert values == sorted(values)


def test_shifting_the_filter_output_is_shifting_the_user(world):
    """The shortcut behind the null: rolling the user and refiltering gives the same errors."""
    model = world[0]
    inputs = model._other[0]
    weights = np.random.default_rng(0).normal(size=(20, inputs.shape[1], 2))
    rolled = lagged_filter(np.roll(inputs, 70, axis=0), weights)
    assert_allclose(rolled, np.roll(lagged_filter(inputs, weights), 70, axis=0), atol=1e-12)


def test_one_identity_has_no_gain(world):
    _, user, true, *_ = world
    sound, face = np.random.default_rng(0).normal(size=300 * 640), FaceSpec(("a", "b", "c"), 3, "test/1")
    clips = [
        EvaluationClip(str(i), "one", u, t, t, face, sound, sound)
        for i, (u, t) in enumerate(zip(user, true, strict=True))
    ]
    (row,) = evaluate_clips(clips, metrics=[ReactionGain()]).rows
    assert np.isnan(row.value)
    assert row.interval is None
    assert "two identities" in row.note


def test_known_reactions_read_the_lag_and_skip_constant_sessions():
    rng = np.random.default_rng(0)
    user = [rng.normal(size=100) for _ in range(3)]
    avatar = [np.roll(user[0], 11), np.roll(user[1], 11), np.zeros(100)]
    found = np.array([correlation_at_lag(u, a, 11) for u, a in zip(user, avatar, strict=True)])
    assert_allclose(found, [1, 1, np.nan])
    assert_allclose(mean_and_error(found), (1, 0), atol=1e-12)
    assert np.isnan(mean_and_error(found[2:])).all()


def test_nods_by_hand():
    pitch = np.zeros(100)
    pitch[11:36] = 2.0  # the second after frame 10
    pitch[60] = 1.5
    assert_allclose(nod_response(pitch, [10]), 2.0 - 1.5 / 75)
    assert np.isnan(nod_response(pitch, []))
