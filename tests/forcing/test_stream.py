from __future__ import annotations

import gc
import sys
from contextlib import nullcontext
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from af.clock import FRAME_MS, frames_to_samples
from af.errors import UserError
from af.forcing.guidance import Guidance
from af.forcing.inputs import SpeechStream
from af.forcing.rollout import rollout
from af.forcing.stream import LiveSession, Signals, push_batch
from af.models.speech import LogMel
from af.pipeline.live import speech_stream

STEPS = 2


REFERENCE = torch.linspace(-1, 1, 6)[None]


class Work(TorchDispatchMode):
    """Counts what runs inside: operations of torch, the elements they give, and calls of Python functions."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = self.elements = self.calls = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = func(*args, **(kwargs or {}))
        self.operations += 1
        self.elements += sum(x.numel() for x in tree_leaves(given) if isinstance(x, torch.Tensor))
        return given

    def __enter__(self):
        gc.disable()  # it would call what other tests have left
        sys.setprofile(self._count)
        return super().__enter__()

    def __exit__(self, *reason) -> None:
        sys.setprofile(None)
        gc.enable()
        super().__exit__(*reason)

    def _count(self, frame, event: str, argument) -> None:
        self.calls += event == "call"


def session(denoiser, speech: LogMel, **options) -> LiveSession:
    generator = torch.Generator().manual_seed(11)
    return LiveSession(denoiser, REFERENCE, speech_stream(speech), steps=STEPS, generator=generator, **options)


def offline(denoiser, speech: LogMel, avatar_audio, user_audio, user_motion) -> torch.Tensor:
    def features(sound: torch.Tensor | None) -> torch.Tensor | None:
        return None if sound is None else speech(sound)[None]

    with torch.no_grad():
        condition = denoiser.condition(
            features(avatar_audio), features(user_audio), None if user_motion is None else user_motion[None]
        )
        return rollout(denoiser, condition, REFERENCE, steps=STEPS, generator=torch.Generator().manual_seed(11))


def live(running: LiveSession, talk: dict[str, torch.Tensor], cuts: dict[str, list[int]]) -> torch.Tensor:
    """Push every signal in its own pieces (`cuts`: where they are cut), in turns; joined output."""
    pieces = {name: [talk[name][a:b] for a, b in pairwise([0, *cuts[name], len(talk[name])])] for name in talk}
    blocks = []
    while any(pieces.values()):
        blocks += running.push(**{name: waiting.pop(0) for name, waiting in pieces.items() if waiting})
    blocks += running.finish()
    assert [b.start for b in blocks] == [0, *np.cumsum([b.motion.shape[1] for b in blocks])[:-1]]
    return torch.cat([b.motion for b in blocks], 1)


def relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    assert got.shape == expected.shape
    return ((got - expected).norm() / expected.norm()).item()


def cut_randomly(talk: dict[str, torch.Tensor], seed: int) -> dict[str, list[int]]:
    rng = np.random.default_rng(seed)
    return {k: sorted(rng.integers(0, len(v), rng.integers(0, 40)).tolist()) for k, v in talk.items()}


@pytest.mark.parametrize(("frames", "extra"), [(24, 0), (23, 0), (25, 333), (2, 100)])
@pytest.mark.parametrize("causal_condition", [True, False])
def test_equals_the_offline_roll_out(small_denoiser, speech, talk, frames, extra, causal_condition: bool) -> None:
    denoiser = small_denoiser(audio_feature_dim=speech.spec.dim, causal_condition=causal_condition).float()
    signals = talk(frames, extra)
    expected = offline(denoiser, speech, **signals)
    got = live(session(denoiser, speech), signals, cut_randomly(signals, 0))
    assert relative_error(got, expected) < 1e-5


def test_cutting_changes_no_bit(denoiser, speech, talk) -> None:
    signals = talk(20)
    whole = live(session(denoiser, speech), signals, {name: [] for name in signals})
    for seed in range(4):
        assert torch.equal(live(session(denoiser, speech), signals, cut_randomly(signals, seed)), whole)


@pytest.mark.parametrize("block", [2, 3, 4, 6])
@pytest.mark.parametrize("right", [0, 1])
def test_feature_blocks_of_another_size(small_denoiser, talk, block: int, right: int) -> None:
    """Feature blocks need not be motion blocks; declared waiting and look-ahead are what is measured."""
    speech = LogMel(dim=4, hops=1, block_frames=block, window_frames=12, right_context_frames=right)
    denoiser = small_denoiser(audio_feature_dim=speech.spec.dim).float()
    signals = talk(24)
    running = session(denoiser, speech)
    due: dict[int, int] = {}
    got = []
    for n in range(24):
        samples = slice(frames_to_samples(n), frames_to_samples(n + 1))
        blocks = running.push(
            avatar_audio=signals["avatar_audio"][samples],
            user_audio=signals["user_audio"][samples],
            user_motion=signals["user_motion"][n : n + 1],
        )
        due |= {b.start: n + 1 for b in blocks}
        got += blocks
    assert running.waiting_ms == max(arrived - start for start, arrived in due.items()) * FRAME_MS
    assert running.look_ahead_ms == max(arrived - start - 3 for start, arrived in due.items()) * FRAME_MS
    motion = torch.cat([b.motion for b in [*got, *running.finish()]], 1)
    assert relative_error(motion, offline(denoiser, speech, **signals)) < 1e-5


@pytest.mark.parametrize("name", ["avatar_audio", "user_audio", "user_motion"])
@pytest.mark.parametrize("right", [0, 1])
def test_raw_input_after_a_block_is_due_changes_no_bit_of_it(small_denoiser, talk, name: str, right: int) -> None:
    speech = LogMel(dim=4, hops=1, block_frames=3, window_frames=12, right_context_frames=right)
    denoiser = small_denoiser(audio_feature_dim=speech.spec.dim).float()
    signals = talk(24)
    plain = live(session(denoiser, speech), signals, {k: [] for k in signals})
    for frame in (12, 17):
        changed = {k: v.clone() for k, v in signals.items()}
        first = frame if name == "user_motion" else frames_to_samples(frame)
        changed[name][first:] = changed[name][first:].flip(0) * 2 + 0.1
        other = live(session(denoiser, speech), changed, {k: [] for k in signals})
        heard = frame if name == "user_motion" else frame - right  # the declared look-ahead
        safe = heard // 3 * 3
        assert torch.equal(other[:, :safe], plain[:, :safe])
        assert not torch.equal(other[:, frame:], plain[:, frame:])


def test_gradients_from_the_raw_waveform_agree(small_denoiser, talk) -> None:
    """The same features, denoiser and roll-out, differentiated from samples: no block sees a later sample."""
    speech = LogMel(dim=4, hops=1, block_frames=3, window_frames=12).double()
    denoiser = small_denoiser(audio_feature_dim=speech.spec.dim)
    signals = {k: v.double().requires_grad_() for k, v in talk(15).items()}

    def features(sound: torch.Tensor) -> torch.Tensor:
        parts = []
        for block in range(5):
            stop = frames_to_samples(3 * block + 3)
            window = sound[max(0, stop - frames_to_samples(12)) : stop][None]
            normal = (window - window.mean()) / (window.var(correction=0) + 1e-5).sqrt()
            parts.append(speech.encode(normal)[:, -3:])
        return torch.cat(parts, 1)

    condition = denoiser.condition(
        features(signals["avatar_audio"]), features(signals["user_audio"]), signals["user_motion"][None]
    )
    generator = torch.Generator().manual_seed(1)
    motion = rollout(denoiser, condition, REFERENCE.double(), steps=1, generator=generator)
    for start in range(0, 15, 3):
        stop = start + 3
        gradients = torch.autograd.grad(motion[:, start:stop].sum(), list(signals.values()), retain_graph=True)
        for (name, _), gradient in zip(signals.items(), gradients, strict=True):
            due = stop if name == "user_motion" else frames_to_samples(stop)
            assert (gradient[due:] == 0).all(), name
            assert (gradient[:due] != 0).any(), name


@pytest.mark.parametrize(
    "present",
    [{"avatar_audio"}, {"user_audio"}, {"user_motion"}, {"avatar_audio", "user_motion"}, {"user_audio", "user_motion"}],
)
def test_missing_signals_are_dropped(denoiser, speech, talk, present: set[str]) -> None:
    signals = {k: v for k, v in talk(10).items() if k in present}
    names = ("avatar_audio", "user_audio", "user_motion")
    running = session(denoiser, speech, signals=Signals(**{name: name in present for name in names}))
    got = live(running, signals, cut_randomly(signals, 3))
    expected = offline(denoiser, speech, **{name: signals.get(name) for name in names})
    assert relative_error(got, expected) < 1e-5


def test_signals_that_end_early_go_on_as_silence_and_a_held_face(denoiser, speech, talk) -> None:
    signals = talk(16)
    short = {"avatar_audio": signals["avatar_audio"], "user_audio": signals["user_audio"][:5000],
             "user_motion": signals["user_motion"][:7]}  # fmt: skip
    silent = torch.cat((short["user_audio"], torch.zeros(frames_to_samples(16) - 5000)))
    held = torch.cat((short["user_motion"], short["user_motion"][-1:].expand(9, -1)))
    expected = offline(denoiser, speech, signals["avatar_audio"], silent, held)
    got = live(session(denoiser, speech), short, {k: [] for k in short})
    assert relative_error(got, expected) < 1e-5


def test_a_pause_holds_nobody_up_with_patience(denoiser, speech, talk) -> None:
    signals = talk(30)
    running = session(denoiser, speech, patience_frames=4)
    stuck = session(denoiser, speech)
    starts = []
    for n in range(30):
        voice = signals["avatar_audio"][frames_to_samples(n) : frames_to_samples(n + 1)]
        starts += [b.start for b in running.push(avatar_audio=voice)]
        assert stuck.push(avatar_audio=voice) == []
    assert starts == list(range(0, 26 - 2, 3))  # complete blocks of the 26 frames that patience lets go
    assert running.faults.filled_frames == 2 * 26
    assert len(stuck.push(user_audio=signals["user_audio"], user_motion=signals["user_motion"])) == 10


def test_bad_input_is_mended_and_counted(denoiser, speech, talk) -> None:
    signals = talk(12)
    mended = {k: v.clone() for k, v in signals.items()}
    broken = {k: v.clone() for k, v in signals.items()}
    broken["user_audio"][1000:1100] = float("nan")
    mended["user_audio"][1000:1100] = 0
    broken["user_motion"][4:6] = float("inf")
    mended["user_motion"][4:6] = mended["user_motion"][3]
    running = session(denoiser, speech)
    got = live(running, broken, cut_randomly(broken, 5))
    assert (running.faults.bad_samples, running.faults.frames_without_face) == (100, 2)
    assert torch.equal(got, live(session(denoiser, speech), mended, cut_randomly(mended, 5)))


def test_frames_without_a_face_hold_the_last_motion(denoiser, speech, talk) -> None:
    signals = talk(9)
    seen = [None, None, *signals["user_motion"][2:5], None, *signals["user_motion"][6:]]
    held = signals["user_motion"].clone()
    held[:2], held[5] = 0, held[4]  # before the first face: what a dropped signal is
    running = session(denoiser, speech, encode_user=lambda frame: frame)
    blocks = running.push(avatar_audio=signals["avatar_audio"], user_audio=signals["user_audio"], user_frames=seen)
    assert running.faults.frames_without_face == 3
    expected = offline(denoiser, speech, signals["avatar_audio"], signals["user_audio"], held)
    assert relative_error(torch.cat([b.motion for b in blocks], 1), expected) < 1e-5


def test_wrong_use_is_said_and_changes_nothing(denoiser, speech, talk) -> None:
    signals = talk(6)
    running = session(denoiser, speech, signals=Signals(user_audio=False))
    voice, face = signals["avatar_audio"], signals["user_motion"]
    for wrong, message in (
        ({"avatar_audio": voice, "sample_rate": 48_000}, "rates=Rates"),
        ({"avatar_audio": (voice * 30_000).to(torch.int64)}, "int64"),
        ({"avatar_audio": voice.reshape(2, -1)}, "mono"),
        ({"user_audio": voice}, "user_audio: this session was made without it"),
        ({"user_motion": face[:, :3]}, r"\(frames, 6\), got Tensor torch.float32 \(6, 3\)"),
        ({"user_frames": [face]}, "encode_user"),
    ):
        with pytest.raises(UserError, match=message):
            running.push(**wrong)
    got = torch.cat([b.motion for b in running.push(avatar_audio=voice, user_motion=face)], 1)
    assert relative_error(got, offline(denoiser, speech, voice, None, face)) < 1e-5
    assert running.finish() == []
    with pytest.raises(UserError, match="finished"):
        running.push(avatar_audio=voice)
    with pytest.raises(UserError, match="needs the avatar's audio"):
        session(denoiser, speech, signals=Signals(False, False, False))
    with pytest.raises(UserError, match="utterance"):
        speech_stream(LogMel(mode="utterance"))
    with pytest.raises(UserError, match="need speech features"):
        LiveSession(denoiser, REFERENCE, None)


def test_what_is_waited_for_is_said(denoiser, talk) -> None:
    speech = LogMel(dim=4, hops=1, block_frames=3, window_frames=12, right_context_frames=1)
    signals = talk(12)
    running = session(denoiser, speech)
    assert running.waiting_for == {"avatar_audio": 4, "user_audio": 4, "user_motion": 3}
    running.push(avatar_audio=signals["avatar_audio"], user_motion=signals["user_motion"][:2])
    assert running.waiting_for == {"user_audio": 4, "user_motion": 1}
    running.push(user_audio=signals["user_audio"][: frames_to_samples(3)], user_motion=signals["user_motion"][2:])
    assert running.waiting_for == {"user_audio": 1}
    assert len(running.push(user_audio=signals["user_audio"][frames_to_samples(3) : frames_to_samples(4)])) == 1


def test_a_frame_that_cannot_be_encoded_leaves_the_session_as_it_was(denoiser, speech, talk) -> None:
    signals = talk(3)

    def encode(frame: torch.Tensor) -> torch.Tensor:
        if frame.shape != (6,):
            raise UserError("wrong size")
        return frame

    running = session(denoiser, speech, encode_user=encode)
    voices = {name: signals[name] for name in ("avatar_audio", "user_audio")}
    frames = list(signals["user_motion"])
    with pytest.raises(UserError, match="wrong size"):
        running.push(**voices, user_frames=[frames[0], frames[1][:4], frames[2]])
    (block,) = running.push(**voices, user_frames=frames)
    assert relative_error(block.motion, offline(denoiser, speech, **signals)) < 1e-5


def test_many_sessions_together_are_each_alone(denoiser, speech, talk) -> None:
    """They began at different times, speak at different times, and one lacks a signal."""
    signals = talk(36)
    options = ({}, {}, {"signals": Signals(user_motion=False)}, {})
    alone, together = ([session(denoiser, speech, **o) for o in options] for _ in range(2))
    expected, got = ([[] for _ in options] for _ in range(2))
    for turn in range(12):
        active = [i for i, start in enumerate((0, 0, 2, 7)) if turn >= start]
        pushed = []
        for i in active:
            samples = slice(frames_to_samples(3 * turn), frames_to_samples(3 * turn + 3 + i % 2))
            new = {"avatar_audio": signals["avatar_audio"][samples], "user_audio": signals["user_audio"][samples]}
            if i != 2:
                new["user_motion"] = signals["user_motion"][3 * turn : 3 * turn + 3]
            pushed.append(new)
        for i, blocks, new in zip(active, push_batch([together[i] for i in active], pushed), pushed, strict=True):
            got[i] += blocks
            expected[i] += alone[i].push(**new)
    for blocks, theirs in zip(got, expected, strict=True):
        assert [b.start for b in blocks] == [b.start for b in theirs]
        assert len(blocks) >= 5
        motion, true = (torch.cat([b.motion for b in x], 1) for x in (blocks, theirs))
        assert relative_error(motion, true) < 1e-5


@pytest.mark.slow
def test_twenty_minutes_of_conversation(small_denoiser, speech) -> None:
    """30,000 frames: work and memory of a block stay what they were, and the motion stays finite.

    Work is counted, not timed: a clock also measures what else the machine does.
    """
    import resource

    denoiser = small_denoiser(
        audio_feature_dim=speech.spec.dim, hidden=16, depth=1, block_frames=30, window_frames=60, look_ahead=1
    ).float()
    generator = torch.Generator().manual_seed(3)
    running = LiveSession(
        denoiser, REFERENCE, speech_stream(speech), steps=1, guidance=Guidance.conditional(), generator=generator
    )
    sound = 0.1 * torch.randn(2, frames_to_samples(30), generator=generator)
    face = torch.randn(30, 6, generator=generator)
    work, held, resident = [], set(), []
    for n in range(1_000):
        with Work() if n % 100 == 99 else nullcontext() as counted:
            (block,) = running.push(avatar_audio=sound[0], user_audio=sound[1], user_motion=face)
        if counted is not None:
            work.append((counted.operations, counted.elements, counted.calls))
        assert torch.isfinite(block.motion).all()
        if n > 10 and n % 50 == 0:
            voice, sampler = running._voices["user_audio"], running._sampler
            held.add((len(voice._sound), voice.ready_frames, sampler.state.cache.held.nbytes, len(sampler._geometries)))
            resident.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    assert running.frames == 30_000
    assert len(held) == 1
    assert resident[-1] - resident[5] < 8_000  # kB
    assert len(work) == 10
    assert min(work[0]) > 100
    assert set(work[1:]) == {work[1]}


def test_an_empty_conversation(denoiser, speech) -> None:
    assert session(denoiser, speech).finish() == []


def test_memory_does_not_grow(denoiser, speech, talk) -> None:
    signals = talk(30)
    running = session(denoiser, speech)
    held = []
    for i in range(6):
        running.push(**signals)
        voice = running._voices["user_audio"]
        held.append((len(voice._sound), voice.ready_frames, running._face.ready_frames))
        assert running.frames == 30 * (i + 1)
    assert len(set(held[1:])) == 1


def test_speech_stream_knows_what_it_needs() -> None:
    stream = SpeechStream(lambda w: w, lambda i: (0, 0), block_frames=4, right_context_frames=1)
    assert [stream.needed_frames(n) for n in (1, 4, 5, 8)] == [5, 5, 9, 9]
