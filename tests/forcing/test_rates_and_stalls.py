"""Frames and sound at other rates, late, early, in bursts or not at all: everything is heard and seen at its time."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import soxr
import torch

from af.clock import SAMPLE_RATE, SAMPLES_PER_FRAME, frames_to_samples
from af.errors import UserError
from af.forcing.pieces import Rates, Resampler
from af.forcing.stream import LiveSession, Signals
from tests.forcing.test_one_clock import LISTENS, Listening, joined, numbered, received, session, voice


@pytest.fixture
def listening(small_denoiser, speech) -> Listening:
    return Listening(small_denoiser(audio_feature_dim=speech.spec.dim, depth=1, hidden=8).float())


# --- rates ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fps", [10, 24, Fraction(30000, 1001), 29.97, 25, 30, 60])
@pytest.mark.parametrize("piece", [1, 7])
def test_a_camera_of_any_declared_rate_is_seen_at_its_time(listening, speech, fps, piece: int) -> None:
    running = session(listening, speech, signals=LISTENS, rates=Rates(user_frames=fps), patience_frames=25)
    seconds, taken, exact = 8, 0, Fraction(fps)
    for frame in range(25 * seconds):
        due = int((frame + 1) * exact / 25)  # pushed when it was taken, in pieces
        due = due if due - taken >= piece else taken
        running.push(user_audio=voice(1, frame), user_motion=numbered(taken, due))
        taken = due
    assert running.faults.dropped_frames == running.faults.filled_frames == 0
    assert len(listening.seen) >= 25 * seconds - 20
    for slot, number in enumerate(listening.seen):
        distance = abs((number - 1) / exact - Fraction(slot, 25))
        assert distance <= Fraction(1, 2) / exact + Fraction(1, 10**6), (slot, number)


def test_a_rate_that_is_not_the_one_said_is_a_fault(listening, speech) -> None:
    waiting = session(listening, speech, signals=LISTENS)
    for second in range(30):  # 24 frames a second
        waiting.push(user_audio=voice(25), user_motion=numbered(24 * second, 24 * second + 24))
    assert waiting.faults.furthest_behind_frames == 30


@pytest.mark.parametrize("fps", [20, 24, 30, 60])
def test_a_rate_that_is_not_the_one_said_stays_within_the_patience(listening, speech, fps: int) -> None:
    running, taken = session(listening, speech, signals=LISTENS, patience_frames=5), 0
    for frame in range(500):
        due = (frame + 1) * fps // 25
        running.push(user_audio=voice(1, frame), user_motion=numbered(taken, due))
        taken = due
        assert abs(received(running) - running.clock_frames) <= 5
    faults = running.faults
    assert (faults.dropped_frames if fps > 25 else faults.filled_frames) > 0
    # ten blocks before the end as well as at it: seen when it was taken
    for slot in (len(listening.seen) // 2, len(listening.seen) - 1):
        assert abs((listening.seen[slot] - 1) / fps - slot / 25) <= 0.04 * 6 + 1 / fps


@pytest.mark.parametrize("signals", [LISTENS, Signals(False, False, True)])
@pytest.mark.parametrize("fps", [7, 24, 30])
def test_the_end_is_the_clocks_whatever_the_rate(denoiser, speech, fps: int, signals: Signals) -> None:
    """The last frame may be shown for longer than the recording lasts, but makes it no longer."""
    for frames in range(20, 31):
        running = session(denoiser, speech, signals=signals, rates=Rates(user_frames=fps))
        sound = {"user_audio": voice(frames)} if signals.user_audio else {}
        blocks = running.push(**sound, user_motion=numbered(0, frames * fps // 25))
        lasts = frames if sound else frames * fps // 25 * 25 // fps
        got = joined([*blocks, *running.finish()]).shape[1]
        assert got == max(lasts, sum(b.motion.shape[1] for b in blocks))


@pytest.mark.parametrize("rate", [8000, 11_025, 22_050, 24_000, 44_100, 48_000, 96_000])
def test_sound_of_another_rate_is_resampled_as_a_whole_would_be(rate: int) -> None:
    sound = voice(rate * 30 / SAMPLE_RATE, rate)[: rate // 2 + 17]
    # in silence: the two ends of what soxr is given are treated otherwise
    whole = soxr.resample(np.pad(sound, rate // 25), rate, SAMPLE_RATE)[SAMPLES_PER_FRAME:]
    results = []
    for seed in range(3):
        cuts = np.sort(np.random.default_rng(seed).integers(0, len(sound), 5 * seed))
        resampler = Resampler(rate)
        pieces = [resampler.push(piece) for piece in np.split(sound, cuts)]
        results.append(np.concatenate([*pieces, resampler.push(sound[:0], last=True)]))
    assert all(np.array_equal(other, results[0]) for other in results[1:])
    length = round(len(sound) * SAMPLE_RATE / rate)
    assert len(results[0]) == length
    # the filter reaches 10 ms to either side; what it would still take from further away is below 16 bits
    assert np.abs(results[0] - whole[:length]).max() < 2**-16


def test_a_session_at_48_khz_and_30_fps_is_one_at_the_clocks_rates(denoiser, speech) -> None:
    fast, faces = voice(3 * 40), numbered(0, 48)
    nearest = [(6 * slot + 2) // 5 for slot in range(40)]  # 30 / 25, halves down
    running = session(denoiser, speech, signals=LISTENS, rates=Rates(user_audio=48_000, user_frames=30))
    assert running.look_ahead_ms >= 10
    got = joined([*running.push(user_audio=fast, user_motion=faces), *running.finish()])
    plain = session(denoiser, speech, signals=LISTENS)
    sound = soxr.resample(fast, 48_000, SAMPLE_RATE)
    expected = joined([*plain.push(user_audio=sound, user_motion=faces[nearest]), *plain.finish()])
    assert got.shape == expected.shape
    assert (got - expected).norm() < 1e-3 * expected.norm()


# --- stalls and bursts ------------------------------------------------------------------------------------------------


def talk_with_a_stall(running: LiveSession, *, burst: int | None, frames: int = 600, stall=(40, 540), **other) -> None:
    """A camera that is gone for 20 s and then delivers all it kept, in pieces of `burst`, or nothing (None)."""
    kept: list[torch.Tensor] = []
    for frame in range(frames):
        new = numbered(frame, frame + 1)
        if stall[0] <= frame < stall[1]:
            kept, new = ([*kept, new] if burst else kept), new[:0]
        elif kept:
            kept.append(new)
            new, kept = torch.cat(kept[:burst]), kept[burst:]
        running.push(user_audio=voice(1, frame), user_motion=new, **other)
        assert abs(received(running) - running.clock_frames) <= 5, frame
        assert running.clock_frames == frame + 1


@pytest.mark.parametrize("burst", [None, 600, 50])
def test_after_a_stall_of_twenty_seconds_the_user_is_seen_when_they_move(listening, speech, burst) -> None:
    running = session(listening, speech, signals=LISTENS, patience_frames=5)
    talk_with_a_stall(running, burst=burst)
    assert len(listening.seen) == 600
    late = np.array(listening.seen[-45:]) - np.arange(556, 601)
    assert (np.abs(late) <= 5).all()
    assert running.faults.filled_frames >= 490
    assert running.faults.furthest_behind_frames >= 450
    assert (running.faults.dropped_frames > 450) == (burst is not None)
    if burst == 600:  # what was kept has its own place: nothing is off afterwards, and what could be replaced was
        assert (late == 0).all()
        assert listening.seen[539:] == [float(n) for n in range(540, 601)]


def test_frames_with_times_are_seen_at_their_times(listening, speech) -> None:
    """A camera with an uneven rhythm and a stall; what it kept is late and has no say in the frames after."""
    running = session(listening, speech, signals=LISTENS, patience_frames=4)
    rng = np.random.default_rng(0)
    taken = np.arange(330) / 27.5 + rng.uniform(0, 0.03, 330)
    kept: list[int] = []
    for frame in range(300):
        new = [n for n in range(330) if frame <= 25 * taken[n] < frame + 1]
        if 50 <= frame < 150:
            kept, new = [*kept, *new], []
        new, kept = ([*kept, *new], []) if new else (new, kept)
        rows = torch.cat([numbered(n, n + 1) for n in new]) if new else torch.zeros(0, 6)
        running.push(user_audio=voice(1, frame), user_motion=rows, user_times=taken[new])
        assert abs(received(running) - running.clock_frames) <= 4
    for slot, number in enumerate(listening.seen):
        if not 50 <= slot < 152:
            nearest = np.abs(taken - slot / 25).min()
            # two frames in one slot: the later is not there yet when the first has been used
            assert abs(taken[int(number) - 1] - slot / 25) <= nearest + 0.04, slot
    assert running.faults.dropped_frames > 80


def test_frames_with_times_ahead_of_the_sound_are_dropped_and_counted(listening, speech) -> None:
    running = session(listening, speech, signals=LISTENS, patience_frames=4)
    for frame in range(60):  # a second ahead, for a second
        ahead = 1.0 if 20 <= frame < 45 else 0.0
        running.push(
            user_audio=voice(1, frame), user_motion=numbered(frame, frame + 1), user_times=[frame / 25 + ahead]
        )
        assert abs(received(running) - running.clock_frames) <= 4
    assert running.faults.dropped_frames == 25
    assert listening.seen[:20] == [float(n) for n in range(1, 21)]
    assert listening.seen[45:] == [float(n) for n in range(46, 61)]


@pytest.mark.parametrize("off", [-2, 5 * 25])
def test_a_frame_that_was_dropped_for_its_time_is_not_held(listening, speech, off: int) -> None:
    """Each push ends with a frame from before, or from far ahead; then the camera stops."""
    running = session(listening, speech, signals=LISTENS, patience_frames=3)
    for frame in range(30):
        new = [frame, 500 + frame] if 2 <= frame < 15 else [frame] if frame < 15 else []
        rows = torch.cat([numbered(n, n + 1) for n in new]) if new else torch.zeros(0, 6)
        times = [frame / 25, (frame + off) / 25][: len(new)]
        running.push(user_audio=voice(1, frame), user_motion=rows, user_times=times)
    assert listening.seen == [float(min(n, 15)) for n in range(1, len(listening.seen) + 1)]
    assert running.faults.dropped_frames == 13


def test_an_uneven_rhythm_is_no_gap(listening, speech) -> None:
    """A frame is seen up to the middle to the next one: nothing is filled, unless one is missing."""
    for missing in (False, True):
        running = session(listening, speech, signals=LISTENS, rates=Rates(user_frames=30))
        rng = np.random.default_rng(2)
        taken = np.arange(240) / 30 + rng.uniform(0, 0.025, 240)
        kept = np.delete(taken, slice(100, 110)) if missing else taken
        running.push(user_audio=voice(190), user_motion=numbered(0, len(kept)), user_times=kept - kept[0])
        assert (running.faults.filled_frames > 0) == missing


def test_times_that_cannot_be_are_said(listening, speech) -> None:
    running = session(listening, speech, signals=LISTENS)
    running.push(user_audio=voice(10), user_motion=numbered(0, 2), user_times=[0.0, 0.04])
    for times, said in (
        ([0.1], "for each of 2 frames"), ([0.1, np.nan], "finite"), ([1.7e9, 1.7e9 + 1], "far ahead"),
        (["a", "b"], "for each of 2"), ([[0.1], [0.2, 0.3]], "cannot be read"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=f"user_times: .*{said}"):
            running.push(user_motion=numbered(2, 4), user_times=times)
    running.push(user_motion=numbered(2, 5), user_times=[0.08, 0.08, 0.02])
    assert running.faults.dropped_frames == 2
    assert received(running) == 3


def test_a_microphone_that_stalls_does_not_run_ahead_afterwards(listening, speech) -> None:
    """The avatar's voice goes on: the user's is silence, and goes on at the clock when it is back."""
    for burst in (False, True):
        listening.heard.clear()
        running = session(listening, speech, signals=Signals(user_motion=False), patience_frames=5)
        for frame in range(300):
            sound = voice(1, frame) if not 50 <= frame < 200 else voice(0)
            if burst and frame == 200:
                sound = np.concatenate([voice(1, n) for n in range(50, 201)])
            running.push(avatar_audio=voice(1, 1000 + frame), user_audio=sound)
            assert running.clock_frames == frame + 1
            assert frame + 1 - 5 <= received(running, "user_audio") <= frame + 1 + 5
        assert (running.faults.dropped_samples > 0) == burst
        heard = speech(torch.from_numpy(np.concatenate([voice(1, n) for n in range(300)])))
        assert torch.allclose(listening.signal(1)[0, -60:], heard[-60:], atol=2e-3)  # features are of half precision


def test_the_clock_of_a_session_that_only_sees_is_what_it_saw(listening, speech) -> None:
    running = session(listening, speech, signals=Signals(False, False, True), patience_frames=2)
    running.push(user_motion=numbered(0, frames_to_samples(1) // 64))
    assert running.clock_frames == 10
    assert listening.seen == [float(n) for n in range(1, 10)]
