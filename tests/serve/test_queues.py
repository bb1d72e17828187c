from __future__ import annotations

import weakref

import numpy as np
import pytest

from af.clock import SAMPLES_PER_FRAME
from af.ingest.landmarks import MEDIAPIPE_BLENDSHAPES, Face
from af.serve.mirror import parameters
from af.serve.puppet import ACTIONS, SLIDERS, Puppet
from af.serve.queues import Playout, SampleQueue, Shown
from af.synth.face import FACE_INDEX
from af.synth.render import render

SILENCE = np.zeros(SAMPLES_PER_FRAME, np.float32)


def ramp(start: int, stop: int) -> np.ndarray:
    return np.arange(start, stop, dtype=np.float32)


def frames(start: int, stop: int, voice: np.ndarray = SILENCE) -> list[Shown]:
    return [Shown(n, np.zeros((2, 2, 3), np.uint8), voice) for n in range(start, stop)]


def test_samples_come_in_order_however_they_are_cut():
    queue, rng, taken, start = SampleQueue(10_000), np.random.default_rng(0), [], 0
    while start < 5000:
        stop = start + int(rng.integers(1, 90))
        queue.push(ramp(start, stop))
        taken.append(queue.take(min(int(rng.integers(0, 90)), len(queue))))
        start = stop
    taken.append(queue.take(len(queue)))
    np.testing.assert_array_equal(np.concatenate(taken), ramp(0, start))


def test_empty_pieces_are_not_kept():
    queue, nothing = SampleQueue(1000), ramp(0, 0)
    queue.push(nothing)
    kept = weakref.ref(nothing)
    del nothing
    assert kept() is None
    queue.push(ramp(0, 10))
    np.testing.assert_array_equal(queue.take(10), ramp(0, 10))


def test_a_cushion_is_waited_for_again_after_a_gap():
    queue = SampleQueue(1000, cushion=30)
    queue.push(ramp(1, 21))
    assert not queue.take(10).any()  # not yet
    queue.push(ramp(21, 41))
    np.testing.assert_array_equal(np.concatenate([queue.take(10) for _ in range(4)]), ramp(1, 41))
    assert queue.missing == 0
    assert not queue.take(10).any()
    assert queue.missing == 10
    queue.push(ramp(41, 61))
    assert not queue.take(10).any()
    assert queue.missing == 10  # a pause counts once
    queue.push(ramp(61, 71))
    np.testing.assert_array_equal(queue.take(10), ramp(41, 51))


def test_a_sender_with_a_fast_clock_adds_no_delay():
    queue = SampleQueue(10_000, cushion=20, slack=10)
    for n in range(2000):  # a tenth too many
        queue.push(ramp(11 * n, 11 * n + 11))
        queue.take(10)
        assert len(queue) < 20 + 10 + 2 * 125 + 11
    assert queue.dropped > 1500


class Viewer:
    """Takes a frame whenever one is due, on a clock that stands still between."""

    def __init__(self, capacity: int) -> None:
        self.now = 0.0
        self.playout = Playout(capacity, clock=lambda: self.now)

    def take(self, number: int) -> list[int | None]:
        shown = []
        for _ in range(number):
            self.now = self.playout.due_s
            frame = self.playout.take()
            shown.append(frame.index if frame else None)
        return shown


def test_late_blocks_add_delay_and_early_ones_take_it_back():
    viewer, shown = Viewer(40), []
    playout = viewer.playout
    for block in range(30):
        playout.put(frames(10 * block, 10 * block + 10))
        shown += viewer.take(16 if block == 3 else 10)  # the fifth block is six frames late
    assert playout.late == 6
    assert shown.count(None) == 6
    assert playout.dropped == 0
    for block in range(30, 60):  # from here on a block is there six frames before it is needed
        playout.put(frames(10 * block, 10 * block + 10))
        shown += viewer.take(4 if block == 30 else 10)
    assert playout.dropped == 4  # two are kept in reserve
    indices = [index for index in shown if index is not None]
    assert None not in shown[-300:]
    assert indices == sorted(set(indices))


def test_what_blocks_come_too_early_is_taken_back_a_millisecond_a_frame():
    """Blocks of 0.2 s, the eleventh 30 ms late: all later ones would wait for 30 ms to be shown."""
    viewer = Viewer(40)
    playout, voice, waited, turns = viewer.playout, np.full(SAMPLES_PER_FRAME, 0.1, np.float32), [], []
    for block in range(80):
        comes = 0.2 * block + (0.03 if block == 10 else 0)
        while viewer.now < comes and (playout.due_s < comes or len(playout)):
            viewer.take(1)
            turns.append(viewer.now)
        late = max(0.0, comes - playout.due_s) if not len(playout) else 0.0
        viewer.now = max(viewer.now, comes)
        playout.put(frames(5 * block, 5 * block + 5, voice))
        playout.postpone(late)
        waited.append(0.04 * (len(playout) - 5) + playout.due_s - comes)
    assert waited[11] > 0.028
    assert min(waited[60:]) > 0.005
    assert max(waited[60:]) < 0.0075
    assert np.diff(turns[1:]).min() > 0.0385
    assert playout.dropped == 0


def test_frames_with_a_voice_are_not_left_out():
    viewer, voice = Viewer(60), np.full(SAMPLES_PER_FRAME, 0.1, np.float32)
    for block in range(30):
        viewer.playout.put(frames(10 * block, 10 * block + 10, voice))
        assert None not in viewer.take(4 if block == 0 else 10)
    assert viewer.playout.dropped == 0


def test_a_program_that_takes_what_there_is_loses_nothing():
    viewer = Viewer(40)
    for block in range(60):
        viewer.now = 0.2 * block
        viewer.playout.put(frames(5 * block, 5 * block + 5))
        assert [frame.index for frame in viewer.playout.take_all()] == list(range(5 * block, 5 * block + 5))
    assert (viewer.playout.late, viewer.playout.dropped) == (0, 0)


def test_an_interruption_leaves_a_block_of_voice_whatever_waits():
    playout, voice = Playout(60), np.full(SAMPLES_PER_FRAME, 0.1, np.float32)
    playout.put(frames(0, 30, voice))
    playout.hush(10)
    heard = [bool(playout.take().voice.any()) for _ in range(30)]
    assert heard == [True] * 10 + [False] * 20


def test_faces_drawn_ahead_are_those_of_their_frames(monkeypatch):
    """While nothing happens five are drawn at once; what happens shows in the next frame all the same."""
    puppet, drawn = Puppet(0, 32), []
    monkeypatch.setattr("af.serve.puppet.render", lambda *face: drawn.append(len(face[0])) or render(*face))
    loud = np.full(SAMPLES_PER_FRAME, 0.3, np.float32)
    for n in range(60):
        if n == 22:
            puppet.act("smile")
        if n == 31:
            puppet.steer({"tilt": 1.0})
        face, image, _ = puppet.step(loud if 41 <= n < 46 else SILENCE)
        np.testing.assert_array_equal(image, render(face[None], puppet.appearance, 32)[0], str(n))
        if n == 19:
            assert drawn == [5] * 4
    assert 15 < len(drawn) < 30


def test_the_puppet_does_what_it_is_told_and_returns_to_rest():
    puppet = Puppet(0, 32)
    still = np.stack([puppet.step(SILENCE)[0] for _ in range(10)])
    moved = {"smile": "smile", "nod": "pitch", "tilt left": "roll", "tilt right": "roll", "blink": "blink"}
    moved["talk"] = "mouth_open"
    assert set(moved) == set(ACTIONS)
    for action, parameter in moved.items():
        puppet.act(action)
        steps = [puppet.step(SILENCE) for _ in range(80)]
        curve = np.array([face[FACE_INDEX[parameter]] for face, _, _ in steps]) - still[-1, FACE_INDEX[parameter]]
        assert np.abs(curve[:70]).max() > 0.15, action
        assert np.abs(curve[-1]) < 0.12, action
        heard = np.concatenate([sound for _, _, sound in steps])
        assert bool(np.abs(heard).max() > 0.05) is (action == "talk")
    for name, (parameter, _, high) in SLIDERS.items():
        puppet.steer({name: 1.0})
        steps = [puppet.step(SILENCE) for _ in range(20)]
        assert abs(steps[-1][0][FACE_INDEX[parameter]] - high) < 0.15, name
        puppet.steer({name: 0.0})
    frames = np.stack([image for _, image, _ in steps])
    assert frames.shape == (20, 32, 32, 3)


def test_the_puppets_mouth_follows_a_microphone():
    puppet, rng = Puppet(0, 32), np.random.default_rng(0)
    loud = [puppet.step((0.2 * rng.standard_normal(SAMPLES_PER_FRAME)).astype(np.float32))[0] for _ in range(10)]
    quiet = [puppet.step(SILENCE)[0] for _ in range(10)]
    assert loud[-1][FACE_INDEX["mouth_open"]] > 0.3
    assert quiet[-1][FACE_INDEX["mouth_open"]] < 0.05


def test_a_camera_moves_the_puppet():
    names = {name: place for place, name in enumerate(MEDIAPIPE_BLENDSHAPES)}
    expression, pose = np.zeros(52, np.float32), np.array([0.1, 0.3, 0, 0, 0, -40], np.float32)
    straight = pose[:3].copy()
    expression[[names["mouthSmileLeft"], names["mouthSmileRight"], names["jawOpen"]]] = 0.7, 0.7, 0.4
    pose[2] = 0.2
    puppet = Puppet(0, 32)
    for _ in range(10):
        puppet.mirror(parameters(Face(np.zeros((478, 3), np.float32), expression, pose), straight))
        face = puppet.step(SILENCE)[0]
    found = {name: face[FACE_INDEX[name]] for name in ("smile", "mouth_open", "roll", "pitch")}
    assert found == pytest.approx({"smile": 0.77, "mouth_open": 0.6, "roll": 0.2, "pitch": 0}, abs=0.01)
    puppet.mirror(None)
    assert puppet.step(SILENCE)[0][FACE_INDEX["smile"]] < 0.15
