"""When the avatar speaks: at once, without a gap, and not over the user."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import numpy as np
import pytest

from af.clock import SAMPLES_PER_FRAME, frames_to_samples, samples_to_frames
from af.pipeline.avatar import Avatar
from af.serve.queues import Shown
from af.serve.settings import Settings
from tests.serve.test_service import BLOCK, LONG, SAMPLING, images, play, service_of
from tests.toy_avatar import recording


def test_an_interrupted_avatar_is_silent_within_a_block_and_its_motion_goes_on(avatar: Avatar) -> None:
    recorded = recording(frames=LONG)
    service = service_of(avatar)
    conversation, other = service.open(), service_of(avatar)
    undisturbed = other.open()
    for one in (conversation, undisturbed):
        one.say(recorded["avatar_audio"])
    before = play(service, {conversation: recorded}, range(18))[conversation]
    same = play(other, {undisturbed: recorded}, range(18))[undisturbed]
    conversation.interrupt()
    after = play(service, {conversation: recorded}, range(18, LONG))[conversation]
    still = play(other, {undisturbed: recorded}, range(18, LONG))[undisturbed]
    np.testing.assert_array_equal(images(before), images(same))
    assert [frame.index for frame in before + after] == list(range(LONG))
    assert not any(frame.voice.any() for frame in after)  # the block at hand, from frame 15 on, too
    assert all(frame.voice.any() for frame in still)
    change = np.abs(images(after).astype(int) - images(still)).mean((1, 2, 3))
    jump = np.abs(images(before)[-1].astype(int) - images(after)[0]).mean()
    usual = np.abs(np.diff(images(still).astype(int), axis=0)).mean((1, 2, 3)).max()
    assert change.max() > 0
    assert jump <= 1.5 * usual  # no new start


def test_an_interruption_silences_the_block_being_computed(avatar: Avatar, monkeypatch: pytest.MonkeyPatch) -> None:
    service = service_of(avatar)
    conversation, decoded = service.open(), service._decoded
    conversation.say(0.1 * np.ones(frames_to_samples(LONG), np.float32))

    def interrupted(finished: list) -> list:
        conversation.interrupt()
        return decoded(finished)

    monkeypatch.setattr(service, "_decoded", interrupted)
    for _ in range(BLOCK):
        service.tick()
    assert not any(conversation.playout.take().voice.any() for _ in range(BLOCK))


def test_frames_are_played_as_soon_as_they_come_and_then_evenly(
    avatar: Avatar, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A block that is 25 ms late delays the next frames by 25 ms, one that is 50 ms late by 50; turns come every 40 ms."""
    conversation, now = service_of(avatar).open(), 0.0
    arrivals = [0.213, 0.413, 0.638, 0.813, 1.063, 1.213]  # blocks of 0.2 s: on time, on time, 25 ms late, …

    async def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds
        while arrivals and arrivals[0] <= now:
            block = 6 - len(arrivals)
            voice = np.full(SAMPLES_PER_FRAME, 0.1, np.float32)
            conversation.playout.put(
                [Shown(block * BLOCK + n, recording()["user_frames"][0], voice) for n in range(BLOCK)]
            )
            arrivals.pop(0)

    conversation.playout.clock = lambda: now
    monkeypatch.setattr("af.serve.conversation.asyncio", SimpleNamespace(sleep=sleep))

    async def main() -> tuple[list[float], list[float]]:
        turns, times = [], []
        async for _, shown in conversation.played():
            turns.append(now)
            if shown is not None:
                times.append(now)
                if shown.index == 6 * BLOCK - 1:
                    return turns, times
        raise AssertionError

    turns, times = asyncio.run(main())
    first = [0.213, 0.413, 0.638, 0.838, 1.063, 1.263]
    np.testing.assert_allclose(times, [start + 0.04 * n for start in first for n in range(BLOCK)], atol=0.009)
    assert np.diff(turns).max() < 0.09
    assert np.diff(times).min() > 0.03


def test_speech_that_has_only_begun_to_arrive_is_said_without_a_gap(avatar: Avatar) -> None:
    """As a text-to-speech service sends it: the first piece is shorter than a block."""
    service = service_of(avatar)
    conversation = service.open()
    word, voice = 0.1 * np.ones(frames_to_samples(14), np.float32), []
    for n in range(6 * BLOCK):
        if n == 6:
            conversation.say(word[: frames_to_samples(2)])
        elif n == 11:
            conversation.say(word[frames_to_samples(2) :])
        service.tick()
        while frame := conversation.playout.take():
            voice.append(bool(frame.voice.any()))
    assert voice == [False] * 8 + [True] * 14 + [False] * 8
    assert conversation.voiced_frames == 25


def test_what_is_repeated_ends_with_the_first_word_of_another(avatar: Avatar) -> None:
    service = service_of(avatar)
    conversation = service.open()
    said, word = np.full(frames_to_samples(7), 0.2, np.float32), np.full(frames_to_samples(1), 0.1, np.float32)
    conversation.repeat(said)
    (shown,) = play(service, {conversation: recording(frames=LONG)}, range(4 * BLOCK)).values()
    np.testing.assert_array_equal(np.concatenate([frame.voice for frame in shown]), np.float32(0.2))
    conversation.say(word)
    (shown,) = play(service, {conversation: recording(frames=LONG)}, range(4 * BLOCK)).values()
    np.testing.assert_array_equal([frame.voice.max() for frame in shown].count(np.float32(0.1)), 1)
    assert not any(frame.voice.max() == np.float32(0.2) for frame in shown)


def test_the_users_voice_interrupts(avatar: Avatar) -> None:
    service = service_of(avatar, Settings(SAMPLING, user="camera"))
    conversation = service.open()
    conversation.say(0.1 * np.ones(frames_to_samples(LONG), np.float32))
    for n in range(20):
        conversation.hear(np.full(frames_to_samples(1), 0.0 if n < 10 else 0.1, np.float32))
        service.tick()
    assert len(conversation.unsaid) == 0
    conversation.say(0.1 * np.ones(frames_to_samples(LONG), np.float32))
    conversation.change(barge_in=False)
    conversation.hear(np.zeros(frames_to_samples(5), np.float32))
    conversation.hear(np.full(frames_to_samples(10), 0.1, np.float32))
    for _ in range(10):
        service.tick()
    assert samples_to_frames(len(conversation.unsaid)) == LONG - 10
