"""Settings of a session that change while it runs."""

from __future__ import annotations

import pytest
import torch

from af.clock import frames_to_samples
from af.errors import UserError
from af.forcing.anchor import Anchor
from af.forcing.guidance import Guidance
from af.forcing.stream import LiveSession, Signals
from af.pipeline.live import speech_stream

BLOCK, FRAMES = 3, 24
STRONG = Guidance(audio=4, user=20)  # small networks hardly see their signals
BLIND = Signals(user_motion=False)


def session(denoiser, speech, **options) -> LiveSession:
    generator = torch.Generator().manual_seed(11)
    return LiveSession(
        denoiser,
        torch.linspace(-1, 1, 6)[None],
        speech_stream(speech),
        generator=generator,
        **{"steps": 2, "guidance": STRONG, **options},
    )


def play(running: LiveSession, talk, start: int, stop: int) -> torch.Tensor:
    blocks = []
    for n in range(start, stop):
        sound = slice(frames_to_samples(n), frames_to_samples(n + 1))
        rows = {name: values[slice(n, n + 1) if "motion" in name else sound] for name, values in talk.items()}
        blocks += running.push(**rows)
    return torch.cat([block.motion for block in blocks], 1)


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def test_a_signal_off_from_the_start_is_a_session_without_it(denoiser, speech, talk) -> None:
    signals = talk(FRAMES)
    running = session(denoiser, speech)
    running.change(signals=BLIND)
    without = {name: values for name, values in signals.items() if name != "user_motion"}
    expected = play(session(denoiser, speech, signals=BLIND), without, 0, FRAMES)
    assert difference(play(running, signals, 0, FRAMES), expected) < 1e-6


def test_nothing_of_a_signal_that_is_off_is_seen_and_its_past_returns(denoiser, speech, talk) -> None:
    signals, whole = talk(FRAMES), talk(FRAMES)
    whole["user_motion"] = -whole["user_motion"]
    after = []
    for later in (signals, whole):
        running = session(denoiser, speech)
        play(running, signals, 0, 9)
        running.change(signals=BLIND)
        after.append(play(running, later, 9, FRAMES))
    assert torch.equal(*after)
    plain = session(denoiser, speech)
    play(plain, signals, 0, 9)
    assert difference(after[0], play(plain, signals, 9, FRAMES)) > 1e-3
    switched = session(denoiser, speech)  # off and on again, within a window: as if never off
    seen = play(switched, signals, 0, 9)
    switched.change(signals=BLIND)
    switched.change(signals=Signals())
    seen = torch.cat((seen, play(switched, signals, 9, FRAMES)), 1)
    assert difference(seen, play(session(denoiser, speech), signals, 0, FRAMES)) < 1e-5


@pytest.mark.parametrize(
    "settings", [{"guidance": Guidance(3, 2)}, {"guidance": Guidance.conditional()}, {"steps": 5}, {"dead_band": 0.3}]
)
def test_sampling_changes_between_two_blocks(denoiser, speech, talk, settings) -> None:
    signals = talk(FRAMES)
    changed, plain = session(denoiser, speech), session(denoiser, speech)
    before = play(changed, signals, 0, 10)  # a frame of the next block is already there
    assert torch.equal(before, play(plain, signals, 0, 10))
    changed.change(**settings)
    later = play(changed, signals, 10, FRAMES)
    assert changed.frames == FRAMES
    assert difference(later, play(plain, signals, 10, FRAMES)) > 1e-3
    changed.change()  # and settings not named stay
    first = session(denoiser, speech, **settings)
    changed_first = session(denoiser, speech)
    changed_first.change(**settings)
    changed_first.change(signals=Signals())
    assert torch.equal(play(changed_first, signals, 0, FRAMES), play(first, signals, 0, FRAMES))


def test_a_change_keeps_the_mean_motion_that_the_anchor_pulls_back(denoiser, speech, talk) -> None:
    """It is of longer than the window that a change goes through again."""
    running = session(denoiser, speech, anchor=Anchor(pull=0.5))
    play(running, talk(FRAMES), 0, FRAMES)
    mean = running._sampler.state.mean
    running.change(steps=3)
    assert torch.equal(running._sampler.state.mean, mean)
    running.change(anchor=Anchor(pull=0.2))
    assert torch.equal(running._sampler.state.mean, mean)


def test_a_finished_session_changes_no_more(denoiser, speech, talk) -> None:
    running = session(denoiser, speech)
    play(running, talk(FRAMES), 0, 10)
    running.finish()
    for change in ({"steps": 3}, {"signals": BLIND}, {}):
        with pytest.raises(UserError, match="the session is finished; start a new one"):
            running.change(**change)


def test_what_cannot_be_changed_is_said(denoiser, speech, talk) -> None:
    running = session(denoiser, speech, signals=BLIND)
    with pytest.raises(UserError, match="user_motion: this session was made without it"):
        running.change(signals=Signals())
    with pytest.raises(UserError, match="step: a session takes no such argument"):
        running.change(step=3)
