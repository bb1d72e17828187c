"""A live session has one clock, the sound's: whatever comes late, early, at other rates, broken or not at all."""

from __future__ import annotations

import sys
import threading
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from af.clock import SAMPLES_PER_FRAME
from af.errors import UserError
from af.forcing.anchor import Anchor
from af.forcing.guidance import Guidance
from af.forcing.pieces import Rates, mono_samples
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
