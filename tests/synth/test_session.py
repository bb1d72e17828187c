"""Synthetic conversations: every movement has its cause, and only that one."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter1d

from af.clock import SAMPLES_PER_FRAME
from af.synth.face import FACE_INDEX, FACE_NAMES, FACE_RANGES
from af.synth.session import REACTION_LAG_FRAMES, REACTION_RANGE_FRAMES, SessionConfig, simulate

COUNT = 60


@pytest.fixture(scope="module")
def silent():
    """Many sessions, movement only."""
    return [simulate((7, n), voices=False) for n in range(COUNT)]


@pytest.fixture(scope="module")
def spoken():
    return [simulate((8, n)) for n in range(6)]


def column(side, name):
    return side.face[:, FACE_INDEX[name]].astype(float)


def lagged(cause, effect, lag):
    """Correlation of effect[t + lag] with cause[t]."""
    if lag < 0:
        return lagged(effect, cause, -lag)
    return np.corrcoef(cause[: len(cause) - lag], effect[lag:])[0, 1]


def envelope(audio):
    return np.sqrt((audio.reshape(-1, SAMPLES_PER_FRAME) ** 2).mean(1))


def test_same_seed_same_values():
    one, two, other = simulate(3), simulate(3), simulate(4)
    for role in "ab":
        assert np.array_equal(one.side(role).face, two.side(role).face)
        assert np.array_equal(one.side(role).audio, two.side(role).audio)
        assert one.side(role).appearance == two.side(role).appearance
        assert not np.array_equal(one.side(role).face, other.side(role).face)
        assert one.side(role).appearance != other.side(role).appearance


def test_lengths_types_and_ranges(spoken):
    for session in spoken:
        for role in "ab":
            side = session.side(role)
            assert side.face.shape == (400, 13)
            assert side.face.dtype == side.audio.dtype == np.float32
            assert side.audio.shape == (400 * SAMPLES_PER_FRAME,)
            for i, name in enumerate(FACE_NAMES):
                low, high = FACE_RANGES[name]
                assert low <= side.face[:, i].min() <= side.face[:, i].max() <= high


def test_movement_is_smooth(silent):
    """No jitter: nothing but lips, lids and eyes crosses much of its range within a frame."""
    slow = {"smile": 0.3, "brow": 0.35, "yaw": 0.04, "pitch": 0.10, "roll": 0.12, "shift_x": 0.004, "scale": 0.03}
    for session in silent:
        for name, limit in slow.items():
            assert np.abs(np.diff(column(session.a, name))).max() < limit, name


@pytest.mark.parametrize(("name", "kind"), [("smile", "smile"), ("roll", "tilt")])
def test_smiles_and_tilts_are_answered_at_their_lag_by_the_right_person(silent, name, kind):
    lag = REACTION_LAG_FRAMES[kind]

    def mean(lag, shift=0):
        pairs = [(column(silent[(n + shift) % COUNT].a, name), column(s.b, name)) for n, s in enumerate(silent)]
        return np.mean([lagged(a, b, lag) for a, b in pairs])

    after = {n: mean(n) for n in range(0, 31)}
    assert abs(max(after, key=after.__getitem__) - lag) <= 1
    assert after[lag] > 0.2
    assert after[lag] > after[0] + 0.05
    assert abs(mean(lag, shift=1)) < 0.1  # the user of another session


@pytest.mark.parametrize("kind", ["smile", "tilt"])
def test_answers_come_in_time_to_spontaneous_movements_only(silent, kind):
    low, high = REACTION_RANGE_FRAMES[kind]
    answered = causes = 0
    for session in silent:
        for me, partner in ((session.a, session.b), (session.b, session.a)):
            mine, theirs = getattr(me, f"{kind}s"), getattr(partner, f"{kind}s")
            spontaneous = {e.start: e for e in theirs if e.cause is None}
            causes += sum(start + high < session.frames for start in spontaneous)
            for event in (e for e in mine if e.cause is not None):
                answered += 1
                cause = spontaneous[event.cause]  # a KeyError is an answer to an answer
                assert low <= event.start - event.cause <= high
                assert np.sign(event.amplitude) == np.sign(cause.amplitude)
                ratio = event.amplitude / cause.amplitude
                assert ratio == pytest.approx(session.expressiveness, rel=0.15)
    assert answered / causes == pytest.approx(0.8, abs=0.08)


def test_most_sessions_are_little_expressive(silent):
    levels = np.array([s.expressiveness for s in silent])
    assert (levels < 0.7).mean() == pytest.approx(0.6, abs=0.15)
    assert ((levels >= 0.4) & (levels <= 1)).all()


def test_nods_follow_the_partners_phrase_ends_and_the_nodder_is_silent(silent):
    low, high = REACTION_RANGE_FRAMES["nod"]
    assert (low * 40, high * 40) == (200, 480)  # ms
    after, elsewhere, nods, ends = [], [], 0, 0
    for session in silent:
        pitch, mask = column(session.b, "pitch"), np.zeros(session.frames, bool)
        for end in session.a.phrase_ends:
            mask[end : end + 25] = True
        after.append(pitch[mask].mean() if mask.any() else np.nan)
        elsewhere.append(pitch[~mask].mean())
        ends += len(session.a.phrase_ends)
        nods += len(session.b.nods)
        for nod in session.b.nods:
            assert low <= nod.start - nod.cause <= high
            assert nod.cause in session.a.phrase_ends
            assert not any(start <= nod.start < stop for start, stop in session.b.phrases)
    difference = np.array(after) - np.array(elsewhere)
    error = np.nanstd(difference) / np.sqrt(np.isfinite(difference).sum())
    assert np.nanmean(difference) > 5 * error
    assert 0.3 < nods / ends < 0.85  # sometimes none


def test_lips_follow_the_own_voice_without_delay_and_not_the_partners(spoken):
    own, other, lags = [], [], []
    for session in spoken:
        for me, partner in ((session.a, session.b), (session.b, session.a)):
            mouth, sound = column(me, "mouth_open"), envelope(me.audio)
            curve = [lagged(sound, mouth, lag) for lag in range(-4, 5)]
            own.append(max(curve))
            lags.append(int(np.argmax(curve)) - 4)
            other.append(lagged(envelope(partner.audio), mouth, 0))
    assert min(own) > 0.75
    assert np.abs(lags).max() <= 1
    assert np.mean(other) < 0.1


def test_muting_a_person_takes_away_what_their_voice_causes_and_nothing_else():
    for seed in range(3):
        full = simulate((9, seed))
        muted = simulate((9, seed), SessionConfig(speakers=("b",)))
        for role in "ab":
            for name in ("smile", "roll", "blink"):
                assert np.array_equal(column(full.side(role), name), column(muted.side(role), name)), name
        assert np.array_equal(full.b.audio, muted.b.audio)
        assert np.array_equal(column(full.b, "mouth_open"), column(muted.b, "mouth_open"))
        assert column(muted.a, "mouth_open").max() == 0
        assert np.abs(muted.a.audio).max() < 0.01
        assert muted.a.phrase_ends == muted.b.nods == ()
        assert full.b.nods or full.a.nods


def test_without_smiles_the_sound_is_the_same():
    one = simulate((10, 0))
    other = simulate((10, 0), replace(SessionConfig(), smile_every_s=1000.0, tilt_every_s=1000.0))
    for role in "ab":
        assert np.array_equal(one.side(role).audio, other.side(role).audio)
    assert one.a.smiles
    assert sum(len(other.side(r).smiles) for r in "ab") == 0


def test_voices_are_at_conversation_level_over_a_quiet_floor(spoken):
    for session in spoken:
        for role in "ab":
            side = session.side(role)
            quiet = np.ones(session.frames, bool)
            for start, stop in side.phrases:
                quiet[max(0, start - 2) : stop + 3] = False
            level = envelope(side.audio)
            assert 20 * np.log10(level[quiet].max()) == pytest.approx(-60, abs=2)
            assert 0.1 < np.abs(side.audio).max() < 0.32
            loud = level > 0.01
            assert not (loud & quiet).any()


def test_people_take_turns(silent):
    speech = [sum(stop - start for start, stop in s.side(r).phrases) / s.frames for s in silent for r in "ab"]
    assert 0.25 < np.mean(speech) < 0.6
    both = []
    for session in silent:
        active = np.zeros((2, session.frames + 200), bool)
        for row, role in enumerate("ab"):
            for start, stop in session.side(role).phrases:
                active[row, start:stop] = True
        both.append(active.all(0).mean())
    assert 0 < np.mean(both) < 0.06


def test_eyes_return_to_the_partner_who_begins_to_speak(silent):
    """Glances away are cut short by the partner's voice: less of them after its onset than before."""
    away = {-1: [], 1: []}
    for session in silent:
        world = gaussian_filter1d(column(session.b, "gaze_x") + 1.1 * column(session.b, "yaw"), 0.1)
        for start, _ in session.a.phrases:
            if 12 < start < session.frames - 22:
                away[-1].append(np.abs(world[start - 6 : start]).mean() > 0.3)
                away[1].append(np.abs(world[start + 11 : start + 15]).mean() > 0.3)
    assert np.mean(away[-1]) > np.mean(away[1]) + 0.05


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"seconds": 0.0}, "seconds"),
        ({"smile_every_s": 0.0}, "smile_every_s"),
        ({"nod_answer": 1.5}, "nod_answer"),
        ({"speakers": ("c",)}, "speakers"),
    ],
)
def test_a_wrong_configuration_is_named(values, word):
    with pytest.raises(ValueError, match=word):
        SessionConfig(**values)
