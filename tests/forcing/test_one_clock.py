"""A live session has one clock, the sound's: whatever comes late, early, at other rates, broken or not at all."""

from __future__ import annotations

import sys
import threading
from fractions import Fraction

import numpy as np
import pytest
import soxr
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from af.clock import SAMPLE_RATE, SAMPLES_PER_FRAME, frames_to_samples
from af.errors import UserError
from af.forcing.anchor import Anchor
from af.forcing.guidance import Guidance
from af.forcing.pieces import Rates, Resampler, mono_samples
from af.forcing.rollout import rollout
from af.forcing.stream import LiveSession, Signals, push_batch
from af.models.speech import LogMel
from af.pipeline.live import speech_stream
from af.types import Condition

REFERENCE = torch.linspace(-1, 1, 6)[None]
BLOCK = 3


class Listening:
    """A denoiser that keeps what its session tells it: the features and the motion of every frame."""

    def __init__(self, denoiser) -> None:
        self._denoiser, self.heard = denoiser, []

    def __getattr__(self, name):
        return getattr(self._denoiser, name)

    def condition(self, *signals) -> Condition:
        self.heard.append(signals)
        return self._denoiser.condition(*signals)

    def signal(self, number: int) -> torch.Tensor:
        return torch.cat([signals[number] for signals in self.heard], 1)

    @property
    def seen(self) -> list[float]:
        """The number of the frame that was seen in each slot, see `numbered`."""
        return self.signal(2)[0, :, 0].tolist() if self.heard else []


def numbered(start: int, stop: int) -> torch.Tensor:
    """Frames whose first number says which they are (the first is 1; 0 is a face that was never seen)."""
    frames = torch.randn(stop - start, 6, generator=torch.Generator().manual_seed(start))
    frames[:, 0] = torch.arange(start, stop) + 1
    return frames


def voice(frames: float, seed: int = 0) -> np.ndarray:
    return 0.1 * np.random.default_rng(seed).standard_normal(round(frames * SAMPLES_PER_FRAME)).astype(np.float32)


@pytest.fixture
def listening(small_denoiser, speech) -> Listening:
    return Listening(small_denoiser(audio_feature_dim=speech.spec.dim, depth=1, hidden=8).float())


def session(denoiser, speech: LogMel, *, seed: int = 3, **options) -> LiveSession:
    options = {
        "generator": torch.Generator().manual_seed(seed),
        "guidance": Guidance.conditional(),
        "steps": 1,
        **options,
    }
    return LiveSession(denoiser, REFERENCE, speech_stream(speech), **options)


def received(running: LiveSession, name: str = "user_motion") -> int:
    return running._signals[name].received_frames


def joined(blocks) -> torch.Tensor:
    return torch.cat([block.motion for block in blocks], 1) if blocks else torch.zeros(1, 0, 6)


LISTENS = Signals(avatar_audio=False)

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


# --- any sequence -------------------------------------------------------------------------------------------------------

BAD = [
    {"user_audio": np.float32(0.1)},
    {"user_audio": [[0.0, 0.1], [0.2]]},
    {"user_audio": np.full(640, 1e4, np.float32)},
    {"user_motion": np.zeros((4, 5), np.float32)},
    {"user_motion": torch.zeros(6)},
    {"user_adio": np.zeros(640, np.float32)},
    {"user_motion": numbered(0, 2), "user_times": [0.0]},
]
PUSH = st.tuples(
    st.integers(0, 4000),  # samples of the avatar's voice
    st.booleans(),  # the user's voice comes with it
    st.sampled_from(["live", "stall", "burst", "none", "nan"]),
    st.sampled_from([None, None, *range(len(BAD))]),
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(PUSH, max_size=25), st.sampled_from([None, 0, 2, 6]))
def test_after_any_pushes_the_clock_is_the_sounds(denoiser, speech, pushes, patience) -> None:
    listening = Listening(denoiser)
    running, twin = (session(d, speech, patience_frames=patience) for d in (listening, denoiser))
    sound = {"avatar_audio": voice(200, 1), "user_audio": voice(200, 2)}
    at, taken, pushed, blocks, others = dict.fromkeys(sound, 0), 0, 0, [], []
    for samples, speaks, camera, bad in pushes:
        new = {}
        for name in ["avatar_audio", "user_audio"] if speaks else ["avatar_audio"]:
            # what the user said while nothing came is delivered with the next piece
            stop = at["avatar_audio"] + samples if name == "avatar_audio" else at["avatar_audio"]
            new[name], at[name] = sound[name][at[name] : stop], stop
        taken = at["avatar_audio"] // SAMPLES_PER_FRAME
        if camera == "live":
            start, pushed = max(pushed, taken - 1), max(pushed, taken)
            new["user_motion"] = numbered(start, max(start, pushed))
        elif camera == "burst":
            new["user_motion"], pushed = numbered(pushed, max(pushed, taken + 3)), max(pushed, taken + 3)
        elif camera in ("none", "nan"):
            rows = numbered(pushed, max(pushed, taken))
            rows[:] = float("nan")
            new["user_motion"], pushed = rows, max(pushed, taken)
        if bad is not None:
            broken = {**new, **BAD[bad]}
            with pytest.raises(UserError):
                running.push(**broken)
        blocks += running.push(**new)
        others += twin.push(**new)
        assert running.clock_frames == at["avatar_audio"] // SAMPLES_PER_FRAME
        if patience is not None:
            motion = received(running)
            assert running.clock_frames - patience <= motion <= running.clock_frames + patience
            lacking = running.clock_frames - patience - running.frames
            assert lacking < BLOCK
    blocks, others = [*blocks, *running.finish()], [*others, *twin.finish()]
    got = joined(blocks)
    assert torch.equal(got, joined(others))  # what was refused has left no trace
    assert running.faults == twin.faults
    if got.shape[1]:
        whole = max(0, got.shape[1] - BLOCK)
        with torch.no_grad():
            condition = denoiser.condition(*(listening.signal(i) for i in range(3)))
            generator = torch.Generator().manual_seed(3)
            expected = rollout(denoiser, condition, REFERENCE, steps=1, guidance=Guidance.conditional(),
                               generator=generator)  # fmt: skip
        assert (got - expected).norm() < 1e-5 * expected.norm()
        heard = speech(torch.from_numpy(np.pad(sound["avatar_audio"][: at["avatar_audio"]], (0, 6400))))
        assert torch.equal(listening.signal(0)[0, :whole], heard[:whole])


@pytest.mark.parametrize("where", ["encode", "features", "denoiser", "interrupted"])
def test_an_exception_anywhere_leaves_all_sessions_as_they_were(denoiser, speech, where: str) -> None:
    fails = False

    def failing(work, name):
        def run(*args):
            if fails and name == where:
                raise KeyboardInterrupt if where == "interrupted" else RuntimeError("out of memory")
            return work(*args)

        return run

    def make(seed: int) -> LiveSession:
        listening = Listening(denoiser)
        listening.velocity = failing(denoiser.velocity, "denoiser" if where != "interrupted" else where)
        running = session(listening, speech, seed=seed, signals=LISTENS, encode_user=failing(lambda f: f, "encode"))
        stream = running._voices["user_audio"]
        object.__setattr__(stream.speech, "extract", failing(stream.speech.extract, "features"))
        return running

    def new(frame: int) -> dict:
        frames = list(numbered(4 * frame, 4 * frame + 4))
        return {"user_audio": voice(4, frame), "user_frames": frames}

    (failed, expected) = ([make(5), make(6)] for _ in range(2))
    got, plain = [], []
    for frame in range(8):
        if frame in (0, 3, 4):
            fails = True
            with pytest.raises((RuntimeError, KeyboardInterrupt)):
                push_batch(failed, [new(frame), new(frame + 1)])
            fails = False
        got.append(push_batch(failed, [new(frame), new(frame + 1)]))
        plain.append(push_batch(expected, [new(frame), new(frame + 1)]))
    for mine, theirs in zip(got, plain, strict=True):
        for blocks, others in zip(mine, theirs, strict=True):
            assert torch.equal(joined(blocks), joined(others))
    assert failed[0].frames >= 30


def test_threads_may_push_to_one_session(denoiser, speech) -> None:
    """A camera's thread, a microphone's and one that only asks: the same as one after the other."""
    frames, before = 60, sys.getswitchinterval()
    running, plain = (session(denoiser, speech, signals=LISTENS) for _ in range(2))
    blocks, failed = [], []

    def pushing(new) -> None:
        try:
            for frame in range(frames):
                blocks.extend(running.push(**new(frame)))
                _ = running.faults
        except Exception as error:
            failed.append(error)

    def sound(frame: int) -> dict:
        return {"user_audio": voice(1, frame)}

    def motion(frame: int) -> dict:
        return {"user_motion": numbered(frame, frame + 1)}

    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=pushing, args=(new,)) for new in (sound, motion)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert failed == []
    expected = [b for n in range(frames) for b in plain.push(**sound(n), **motion(n))]
    assert running.faults.dropped_frames == running.faults.filled_frames == 0
    got = sorted(blocks, key=lambda block: block.start)
    assert (joined(got) - joined(expected)).norm() < 1e-5 * joined(expected).norm()


def test_an_encoder_may_write_to_its_output_again(denoiser, speech) -> None:
    output, results = torch.zeros(6), []
    for encode in (lambda frame: output.copy_(frame), lambda frame: frame):
        running = session(denoiser, speech, signals=LISTENS, encode_user=encode)
        results.append(joined(running.push(user_audio=voice(6), user_frames=list(numbered(0, 6)))))
    assert torch.equal(*results)


def test_a_finished_session_has_lasted_as_long_as_its_sound(denoiser, speech) -> None:
    running = session(denoiser, speech, signals=LISTENS)
    running.push(user_audio=voice(7), user_motion=numbered(0, 7))
    running.finish()
    assert (running.frames, running.clock_frames, running.waiting_for, running.finish()) == (7, 7, {}, [])
    for use in (running.push, lambda: running.change_reference(REFERENCE)):
        with pytest.raises(UserError, match="finished; start a new one"):
            use()


def test_one_bad_session_of_many_leaves_the_others_as_they_were(denoiser, speech) -> None:
    first, second = (session(denoiser, speech, signals=LISTENS) for _ in range(2))
    good = {"user_audio": voice(3), "user_motion": numbered(0, 3)}
    with pytest.raises(UserError, match="user_audio"):
        push_batch([first, second], [good, {"user_audio": "hello"}])
    assert first.clock_frames == 0
    assert [len(blocks) for blocks in push_batch([first, second], [good, good])] == [1, 1]


# --- what is taken and what is refused ----------------------------------------------------------------------------------


def test_any_view_of_the_same_numbers_is_the_same_input(denoiser, speech) -> None:
    sound, motion = np.round(voice(6) * 32768) / np.float32(32768), numbered(0, 6).numpy()
    results = []
    for heard, seen in (
        (sound, motion), (sound[::-1].copy()[::-1], motion[::-1].copy()[::-1]), (np.repeat(sound, 2)[::2], motion.tolist()),
        ((sound * 32768).astype(np.int16), torch.from_numpy(motion).double()), (sound.astype(">f4"), motion.astype(">f8")),
        ((sound * 32768).astype(">i2"), motion), ((sound.astype(np.float64) * 2**31).astype(">i4"), motion),
        ((sound.astype(np.float64) * 2**31).astype(np.int32), np.asfortranarray(motion)), (sound.tolist(), motion),
        (torch.from_numpy(sound).requires_grad_(), torch.from_numpy(motion).requires_grad_()),
    ):  # fmt: skip
        running = session(denoiser, speech, signals=LISTENS)
        results.append(joined(running.push(user_audio=heard, user_motion=seen)))
    assert results[0].shape == (1, 6, 6)
    assert all(torch.equal(other, results[0]) for other in results)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"user_audio": 0.5}, r"user_audio: expected mono samples .* got ndarray float64 \(\)"),
        ({"user_audio": "hello"}, "user_audio: expected mono"),
        ({"user_audio": [[1.0], [1.0, 2.0]]}, "user_audio: cannot be read as numbers"),
        ({"user_audio": np.zeros((640, 2), np.float32)}, r"user_audio: .*\(640, 2\)"),
        ({"user_audio": np.zeros(640, np.complex64)}, "complex64"),
        ({"user_audio": np.zeros(640, np.uint8)}, "uint8"),
        ({"user_audio": np.full(640, 3000.0)}, "user_audio: samples up to 3000.*int16"),
        ({"user_audio": object()}, "user_audio: "),
        ({"user_motion": 3}, r"user_motion: expected floating-point latents \(frames, 6\)"),
        ({"user_motion": np.zeros((2, 6), np.int64)}, "user_motion: .*int64"),
        ({"user_motion": torch.zeros(2, 2, 6)}, "user_motion"),
        ({"user_motion": torch.zeros(2, 6), "user_frames": []}, "not both"),
        ({"user_frames": 7}, "user_frames: expected a list of frames.*int"),
        ({"user_frames": torch.zeros(6)[0]}, "user_frames"),
        ({"user_frames": np.zeros((16, 16, 3))}, "give .frame."),
        ({"user_frames": [torch.zeros(4)]}, r"encode_user: expected a latent \(6,\)"),
        ({"user_frames": [np.zeros(6)]}, r"encode_user: .* tensor.*, got ndarray float64"),
        ({"user_frames": [torch.zeros(6, dtype=torch.long)]}, r"encode_user: .*floating-point.*, got Tensor torch.int64"),
        ({"user_audio": b"\0\0"}, r"user_audio: bytes .*numpy.frombuffer"),
        ({"user_times": [0.1]}, "no user_frames or user_motion that they belong to"),
        ({"user_adio": [0.0]}, "user_adio: .*did you mean user_audio"),
        ({"sample_rate": 48_000}, "rates=Rates"),
        ({"avatar_audio": [0.0]}, "avatar_audio: this session was made without it"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_by_name_whatever_comes_with_it(denoiser, speech, wrong, said) -> None:
    running = session(denoiser, speech, signals=LISTENS, encode_user=lambda frame: frame)
    with pytest.raises(UserError, match=said):
        running.push(**{"user_audio": voice(3), **wrong})
    assert running.clock_frames == 0
    assert running.faults == type(running.faults)()


def test_quiet_loud_and_broken_samples(speech) -> None:
    sound = mono_samples("x", np.array([np.nan, np.inf, 1.5, -0.5]))
    assert np.isfinite(sound).tolist() == [False, False, True, True]
    assert mono_samples("x", np.array([-32768, 16384], np.int16)).tolist() == [-1, 0.5]
    assert mono_samples("x", []).shape == (0,)


def test_settings_that_cannot_work_are_refused_by_name(denoiser, speech) -> None:
    for wrong, said in (
        ({"step": 4}, "step: .*did you mean steps"), ({"patience_frames": -1}, "patience_frames"),
        ({"patience_frames": 2.5}, "patience_frames"), ({"patience_frames": True}, "patience_frames"),
        ({"rates": {"user_audio": 48_000}}, r"rates: expected af.Rates\(...\), got dict"), ({"signals": ["user_audio"]}, "signals: .*list"),
        ({"generator": 42}, "generator: .*manual_seed.*got int"), ({"encode_user": 3}, "encode_user: .*got int"),
        ({"guidance": 2}, "guidance: .*got int"), ({"steps": "4"}, "steps must be .*'4'"), ({"steps": 2.5}, "steps must be a whole number .*2.5"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=said):
            session(denoiser, speech, **wrong)
    for reference in (
        REFERENCE[0],
        REFERENCE / 0,
        REFERENCE.numpy(),
        torch.zeros(2, 6),
        torch.zeros(1, 5),
        REFERENCE.int(),
    ):
        with pytest.raises(UserError, match="reference"):
            LiveSession(denoiser, reference, speech_stream(speech))
    for rates in ({"user_audio": 44_101}, {"avatar_audio": 0}, {"user_audio": "48000"}, {"user_frames": 0}, {"user_frames": float("nan")}):  # fmt: skip
        with pytest.raises(UserError, match=f"rates.{next(iter(rates))}"):
            Rates(**rates)
    assert Rates(np.int64(48_000), 44100.0, np.float32(30)) == Rates(48_000, 44_100, 30)
    assert isinstance(Rates(user_audio=44100.0).user_audio, int)
    assert Rates(user_frames=np.int32(30)).frame_step == Fraction(25, 30)
    session(denoiser, speech, patience_frames=np.int64(5))


# --- another portrait ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("anchor", [Anchor(), Anchor(sink_frames=2, pull=0.1)])
def test_another_portrait_takes_over_with_the_next_block(denoiser, speech, anchor: Anchor) -> None:
    other = -REFERENCE

    def moved(*changes: tuple[int, torch.Tensor], start: torch.Tensor = REFERENCE) -> torch.Tensor:
        running = LiveSession(
            denoiser, start, speech_stream(speech), signals=LISTENS, steps=2, anchor=anchor,
            generator=torch.Generator().manual_seed(1),
        )  # fmt: skip
        blocks = []
        for n in range(8):
            for at, reference in changes:
                if at == n:
                    running.change_reference(reference)
            blocks += running.push(user_audio=voice(3, n), user_motion=numbered(3 * n, 3 * n + 3))
        return joined(blocks)

    plain = moved()
    assert torch.equal(moved((0, other)), moved(start=other))
    changed = moved((4, other))
    assert torch.equal(changed[:, :12], plain[:, :12])
    assert (changed[:, 12:] - plain[:, 12:]).abs().amax(-1).min() > 1e-3
    # going back before the next block is as if nothing had happened; the running mean starts anew
    if not anchor.pull:
        assert torch.equal(moved((4, other), (4, REFERENCE)), plain)
    running = session(denoiser, speech)
    for wrong in (REFERENCE[:, :4], REFERENCE * float("nan"), REFERENCE[0]):
        with pytest.raises(UserError, match="reference"):
            running.change_reference(wrong)


def test_the_clock_of_a_session_that_only_sees_is_what_it_saw(listening, speech) -> None:
    running = session(listening, speech, signals=Signals(False, False, True), patience_frames=2)
    running.push(user_motion=numbered(0, frames_to_samples(1) // 64))
    assert running.clock_frames == 10
    assert listening.seen == [float(n) for n in range(1, 10)]
