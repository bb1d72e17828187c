"""Conversations of a service: without a clock of their own, one `tick` after the other."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from af.clock import frames_to_samples
from af.errors import UserError
from af.forcing.anchor import Anchor
from af.forcing.guidance import Guidance
from af.forcing.pieces import Signals
from af.pipeline.avatar import Avatar
from af.pipeline.encode import video_motion_pieces
from af.pipeline.sampling import ONE_PASS
from af.serve.conversation import Conversation
from af.serve.limits import Limits
from af.serve.queues import Shown
from af.serve.service import Service
from af.serve.settings import Settings
from af.types import Identity
from tests.toy_avatar import recording, toy_avatar

BLOCK, LONG = 5, 40
SAMPLING = {"steps": 2, "guidance": Guidance(audio=2, user=2)}
RECORDED = Settings(SAMPLING, user="camera", barge_in=False, seed=4, mark=False)


def service_of(avatar: Avatar, settings: Settings = RECORDED, **limits) -> Service:
    return Service(avatar, recording(7)["user_frames"][0], settings, Limits(**limits))


def play(service: Service, recorded: dict[Conversation, dict], frames: range) -> dict[Conversation, list[Shown]]:
    shown: dict[Conversation, list[Shown]] = {c: [] for c in recorded}
    for n in frames:
        for conversation, given in recorded.items():
            conversation.hear(given["user_audio"][frames_to_samples(n) : frames_to_samples(n + 1)])
            conversation.see(given["user_frames"][n])
        service.tick()
        for conversation in recorded:
            while frame := conversation.playout.take():
                shown[conversation].append(frame)
    return shown


def images(shown: list[Shown]) -> np.ndarray:
    return np.stack([frame.image for frame in shown])


def generated(avatar: Avatar, portrait: np.ndarray, recorded: dict, sampling: dict = SAMPLING) -> np.ndarray:
    """What `af generate` computes of the same recording, before it is coded as a video."""
    identity, reference = avatar.identity(portrait)
    motion = avatar.motion(
        reference,
        LONG,
        avatar_audio=recorded["avatar_audio"],
        user_audio=recorded["user_audio"],
        user_motion=video_motion_pieces(avatar.autoencoder, recorded["user_frames"], 1),
        generator=torch.Generator().manual_seed(4),
        **sampling,
    )
    return np.stack(list(avatar.frames(identity, motion)))


def test_a_recorded_conversation_has_the_bits_of_af_generate(avatar: Avatar) -> None:
    recorded = recording(frames=LONG)
    service = service_of(avatar)
    conversation = service.open()
    conversation.say(recorded["avatar_audio"])
    (shown,) = play(service, {conversation: recorded}, range(LONG)).values()
    assert [frame.index for frame in shown] == list(range(LONG))
    expected = generated(avatar, service.portrait, recorded)
    assert expected.std(0).max() > 1  # it moves
    np.testing.assert_array_equal(images(shown), expected)
    np.testing.assert_array_equal(np.concatenate([frame.voice for frame in shown]), recorded["avatar_audio"])


def test_the_mark_is_all_that_differs(avatar: Avatar) -> None:
    recorded = recording(frames=LONG)
    films = []
    for mark in (False, True):
        service = service_of(avatar, replace(RECORDED, mark=mark))
        films.append(images(play(service, {service.open(): recorded}, range(2 * BLOCK)).popitem()[1]))
    changed = (films[0] != films[1]).any((0, 3))
    assert changed.any()
    assert not changed[: len(changed) // 2].any()


def test_conversations_in_one_batch_are_apart(avatar: Avatar, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is what it is alone, up to rounding, also one that begins later; and the model sees them in one batch."""
    batches: list[int] = []
    velocity = avatar.denoiser.velocity

    def counted(x, *args, **kwargs):
        batches.append(len(x))
        return velocity(x, *args, **kwargs)

    monkeypatch.setattr(avatar.denoiser, "velocity", counted)
    service = service_of(avatar)
    first, second = recording(1, LONG), recording(2, LONG)
    a = service.open()
    a.say(first["avatar_audio"])
    early = play(service, {a: first}, range(7))[a]
    alone = batches[-1]
    b = service.open()  # within a block: it begins with the next one
    b.say(second["avatar_audio"])
    for n in range(7, 10):
        early += play(service, {a: first}, range(n, n + 1))[a]
    shown: dict[Conversation, list[Shown]] = {a: early, b: []}
    for n in range(10, LONG):
        for conversation, given, at in ((a, first, n), (b, second, n - 10)):
            conversation.hear(given["user_audio"][frames_to_samples(at) : frames_to_samples(at + 1)])
            conversation.see(given["user_frames"][at])
        service.tick()
        for conversation, frames in shown.items():
            while frame := conversation.playout.take():
                frames.append(frame)
    assert max(batches) == 2 * alone
    for conversation, given in ((a, first), (b, second)):
        got = images(shown[conversation]).astype(int)
        assert len(got) >= LONG - 10
        wanted = generated(avatar, service.portrait, given)[: len(got)].astype(int)
        assert np.abs(got - wanted).max() <= 1


def test_a_slow_client_loses_frames_and_a_fast_one_input_but_never_memory(avatar: Avatar) -> None:
    service = service_of(avatar, Settings(SAMPLING))
    conversation = service.open()
    for _ in range(60):  # nobody takes the frames
        conversation.hear(np.zeros(frames_to_samples(9), np.float32))  # nine times too many samples
        service.tick()
    assert len(conversation.playout) == 4 * BLOCK
    report = conversation.report()
    assert report["faults"]["left_out_frames"] == 40
    assert conversation.playout.take().index >= 40
    kept = report["faults"]["surplus_samples"] + len(conversation.heard) + frames_to_samples(60)
    assert kept == frames_to_samples(9 * 60)
    with pytest.raises(UserError, match="at most 300 s"):
        conversation.say(np.zeros(301 * frames_to_samples(25), np.float32))
    for _ in range(16):
        conversation.restart()
    with pytest.raises(UserError, match="too many changes"):
        conversation.restart()


def test_settings_change_and_a_restart_is_the_beginning(avatar: Avatar) -> None:
    recorded = recording(frames=LONG)
    service = service_of(avatar)
    conversation = service.open()
    beginning = play(service, {conversation: recorded}, range(20))[conversation]
    conversation.change(signals=Signals(user_motion=False, user_audio=False), steps=3)
    conversation.show(recorded["user_frames"][3])
    changed = play(service, {conversation: recorded}, range(20, 30))[conversation]
    conversation.change(signals=Signals(), steps=2)
    conversation.show(service.portrait)
    conversation.restart()
    again = play(service, {conversation: recorded}, range(20))[conversation]
    np.testing.assert_array_equal(images(again), images(beginning))
    assert not (images(changed)[:, None] == images(beginning)).all((2, 3, 4)).any()


def test_a_change_is_refused_as_a_whole(avatar: Avatar) -> None:
    """When too much is waiting, or there is no student, all stays as it was."""
    service = Service(avatar, recording(7)["user_frames"][0], RECORDED, student=avatar)
    conversation = service.open()
    for _ in range(16):
        conversation.restart()
    changes: list[tuple[dict, str]] = [
        ({"student": True}, "too many"),
        ({"steps": 7, "signals": Signals()}, "too many"),
    ]
    alone = service_of(avatar).open()
    for one, (change, text) in [
        *((conversation, c) for c in changes),
        (alone, ({"student": True, "steps": 7}, "--student")),
    ]:
        with pytest.raises(UserError, match=text):
            one.change(barge_in=True, **change)
        assert (one.settings.sampling, one.settings.barge_in, one.on_student) == (SAMPLING, False, False)
    service.tick()
    assert service.conversations == [conversation]


def test_an_anchor_may_come_and_go(avatar: Avatar) -> None:
    recorded = recording(frames=LONG)
    films = []
    for anchor in (Anchor(), Anchor(sink_frames=2 * BLOCK, pull=0.1)):
        service = service_of(avatar)
        conversation = service.open()
        before = play(service, {conversation: recorded}, range(15))[conversation]
        conversation.change(anchor=anchor)
        during = play(service, {conversation: recorded}, range(15, 30))[conversation]
        conversation.change(anchor=Anchor())
        films.append(images(before + during + play(service, {conversation: recorded}, range(30, LONG))[conversation]))
        assert len(films[-1]) == LONG
    np.testing.assert_array_equal(films[0][:15], films[1][:15])
    assert (films[0][15:] != films[1][15:]).any()


def test_limits(avatar: Avatar, monkeypatch: pytest.MonkeyPatch) -> None:
    service = service_of(avatar, Settings(SAMPLING), conversations=2, idle_s=10, length_s=25)
    idle, busy = service.open(), service.open()
    said: list[dict] = []
    idle.listeners.append(said.append)
    with pytest.raises(UserError, match="all 2 places are taken"):
        service.open()
    start = time.monotonic()
    for seconds in (8, 16, 24):
        monkeypatch.setattr(time, "monotonic", lambda seconds=seconds: start + seconds)
        busy.touched_s = time.monotonic()
        service.tick()
    assert service.conversations == [busy]
    assert idle.closed == said[-1]["closed"] == "nothing happened for 10 s"
    monkeypatch.setattr(time, "monotonic", lambda: start + 26)
    service.tick()
    assert busy.closed == "the longest conversation is 25 s"
    service.open()


def test_one_that_fails_is_closed_and_the_others_go_on(avatar: Avatar) -> None:
    service = service_of(avatar)
    good, bad = service.open(), service.open()
    bad.later(lambda: bad.stream.finish() and None)
    for _ in range(BLOCK):
        service.tick()
    assert service.conversations == [good]
    assert "finished" in bad.closed
    assert good.playout.take() is not None


def broken(*_: Any) -> Any:
    raise RuntimeError("broken")


def break_decoding(service: Service, bad: Conversation, monkeypatch: pytest.MonkeyPatch) -> None:
    decode, code = service.avatar.autoencoder.decode, bad.identity.code

    def choosy(identity: Identity, motion: torch.Tensor) -> torch.Tensor:
        return broken() if (identity.code == code).all(1).any() else decode(identity, motion)

    monkeypatch.setattr(service.avatar.autoencoder, "decode", choosy)


def break_playing(service: Service, bad: Conversation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bad.playout, "put", broken)


def break_recording(service: Service, bad: Conversation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bad, "recorder", SimpleNamespace(add=broken, end=lambda: None))


def break_telling(service: Service, bad: Conversation, monkeypatch: pytest.MonkeyPatch) -> None:
    bad.listeners.append(broken)  # which hears of the end, too


@pytest.mark.parametrize("part", [break_decoding, break_playing, break_recording, break_telling])
def test_whatever_fails_closes_its_conversation_alone(
    avatar: Avatar, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, part: Callable[..., None]
) -> None:
    service = service_of(avatar, conversations=2)
    good, bad, told = service.open(), service.open(), list[str]()
    bad.show(recording(8)["user_frames"][0])
    bad.make_changes()  # a face of its own
    bad.listeners.append(lambda report: told.append(report.get("closed", "")))
    part(service, bad, monkeypatch)
    for _ in range(2 * BLOCK):
        service.tick()
    assert service.conversations == [good]
    assert bad.closed == told[-1] == "an error in the server: RuntimeError"
    assert "a conversation was closed" in caplog.text
    assert [frame.index for frame in good.playout.take_all()] == list(range(2 * BLOCK))
    service.open()  # its place is free


def test_reports_hold_the_curves_of_both(avatar: Avatar) -> None:
    service = service_of(avatar, Settings(SAMPLING))
    conversation = service.open()
    reports: list[dict] = []
    conversation.listeners.append(reports.append)
    conversation.act("smile")
    for _ in range(4 * BLOCK):
        service.tick()
    assert [report["start"] for report in reports] == [0, 5, 10, 15]
    smile = np.concatenate([report["user"]["smile"] for report in reports])
    assert smile.max() > 0.8
    assert abs(smile[0]) < 0.15
    assert {len(curve) for report in reports for curve in (*report["user"].values(), *report["avatar"].values())} == {5}
    budget = reports[-1]["budget"]
    assert budget["waiting"] == BLOCK * 40
    assert min(budget["features"], budget["motion"], budget["decoding"]) > 0


def test_the_thread_keeps_time(avatar: Avatar) -> None:
    service = service_of(avatar, Settings(SAMPLING))
    conversation = service.open()
    service.start()
    start = time.monotonic()
    while conversation.stream.frames < 25 and time.monotonic() - start < 20:
        time.sleep(0.01)
    took = time.monotonic() - start
    service.stop()
    assert 0.95 <= took < 5
    assert conversation.closed == "the server is stopping"


def test_a_student_answers_in_the_same_service(avatar: Avatar) -> None:
    """With blocks and settings of its own, beside conversations with its teacher; and back again."""
    recorded = recording(frames=LONG)
    student = replace(avatar, denoiser=toy_avatar(torch.Generator().manual_seed(5)).denoiser)
    student.denoiser.layout = replace(student.denoiser.layout, block_frames=2 * BLOCK)
    service = Service(avatar, recording(7)["user_frames"][0], RECORDED, student=student)
    taught, learned = service.open(), service.open()
    learned.change(student=True)
    for conversation in (taught, learned):
        conversation.say(recorded["avatar_audio"])
    shown = play(service, dict.fromkeys((taught, learned), recorded), range(LONG))
    np.testing.assert_array_equal(images(shown[taught]), generated(avatar, service.portrait, recorded))
    expected = generated(student, service.portrait, recorded, ONE_PASS)
    np.testing.assert_array_equal(images(shown[learned]), expected)
    assert learned.settings.sampling == ONE_PASS
    learned.change(student=False)
    assert learned.settings.sampling == SAMPLING
    with pytest.raises(UserError, match="--student FOLDER"):
        service_of(avatar).open().change(student=True)


def test_a_student_keeps_the_dead_band(avatar: Avatar) -> None:
    recorded = recording(frames=LONG)
    student = replace(avatar, denoiser=toy_avatar(torch.Generator().manual_seed(5)).denoiser)
    calm = replace(RECORDED, sampling={**SAMPLING, "dead_band": 0.3}, student=True)
    service = Service(avatar, recording(7)["user_frames"][0], calm, student=student)
    conversation = service.open()
    conversation.say(recorded["avatar_audio"])
    shown = images(play(service, {conversation: recorded}, range(LONG))[conversation])
    free, held = (generated(student, service.portrait, recorded, {**ONE_PASS, "dead_band": w}) for w in (0.0, 0.3))
    np.testing.assert_array_equal(shown, held)
    assert not np.array_equal(free, held)


def test_somebody_speaks_for_the_avatar(avatar: Avatar) -> None:
    """A second microphone's sound is the avatar's voice of the same frames, beside what it was given to say."""
    spoken, said = (recording(seed, LONG)["avatar_audio"] / 4 for seed in (1, 2))
    service = service_of(avatar)
    conversation = service.open()
    conversation.say(said)
    for n in range(LONG):
        conversation.dub(spoken[frames_to_samples(n) : frames_to_samples(n + 1)])
        service.tick()
    shown = [conversation.playout.take() for _ in range(4 * BLOCK)]
    first = frames_to_samples(shown[0].index)
    heard = np.concatenate([frame.voice for frame in shown])
    np.testing.assert_allclose(heard, (spoken + said)[first:], atol=1e-6)
