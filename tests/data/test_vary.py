"""Varied pairs: both frames alike, in the mirror with faces, the same at every reading."""

from __future__ import annotations

import numpy as np
import pytest

from af.data.vary import Vary, cropped, mirrored, moved
from af.errors import UserError
from af.specs import FaceSpec

SPEC = FaceSpec(("jawOpen", "eyeBlinkLeft", "eyeBlinkRight", "yaw", "pitch"), 3, "toy")
FACES = np.array([[0.1, 0.2, 0.3, 0.4, 0.5]], np.float32)


def _frames() -> np.ndarray:
    return np.random.default_rng(0).integers(30, 220, (2, 8, 8, 3), np.uint8)


def test_in_a_mirror_left_is_right_and_a_turn_is_the_other_way():
    once = mirrored(FACES, SPEC)
    np.testing.assert_allclose(once, [[0.1, 0.3, 0.2, -0.4, 0.5]], rtol=1e-6)
    np.testing.assert_array_equal(mirrored(once, SPEC), FACES)


def test_half_of_the_pairs_are_mirrored_with_their_faces():
    vary, frames, turned = Vary(colours=0), _frames(), 0
    for seed in range(200):
        images, faces = vary(frames, FACES, SPEC, np.random.default_rng(seed))
        if faces[0, 3] < 0:
            turned += 1
            np.testing.assert_array_equal(images, frames[:, :, ::-1])
        else:
            np.testing.assert_array_equal(images, frames)
    assert 70 < turned < 130


def test_equal_colours_stay_equal_across_the_pair_and_differ_between_pairs():
    vary, frames = Vary(colours=0.1, mirror=False), np.stack([_frames()[0]] * 2)
    first, again, other = (vary(frames, None, None, np.random.default_rng(seed))[0] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first[0], first[1])
    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() > 0.9


def test_a_changed_crop_changes_roll_and_place_and_nothing_else():
    """A face 30 cm before the camera, 1 cm to the right and 2 cm up, seen twice as large, turned, moved by half a frame."""
    spec = FaceSpec(("jawOpen", "roll", "translate_x", "translate_y", "translate_z"), 1, "toy")
    face = np.array([[0.1, 0.2, 1.0, 2.0, -30.0]], np.float32)
    np.testing.assert_allclose(moved(face, spec, 2.0, 0.0, (0, 0)), [[0.1, 0.2, 1, 2, -15]], rtol=1e-6)
    np.testing.assert_allclose(
        moved(face, spec, 1.0, np.pi / 2, (0, 0)), [[0.1, 0.2 + np.pi / 2, 2, -1, -30]], rtol=1e-5
    )
    half = 30 * np.tan(np.radians(31.5))  # half of the frame's height in cm at 30 cm
    np.testing.assert_allclose(
        moved(face, spec, 1.0, 0.0, (0.5, 0.5)), [[0.1, 0.2, 1 + half, 2 - half, -30]], rtol=1e-5
    )


def test_a_crop_turns_clockwise_and_moves_right_and_down():
    frame = np.zeros((65, 65, 3), np.uint8)
    frame[12, 32] = 255  # above the centre
    turned = cropped(frame, 1.0, np.pi / 2, (0, 0))
    assert turned[32, 52, 0] == 255
    assert cropped(frame, 1.0, 0.0, (0.2, 0.4))[38, 45, 0] == 255  # 13 and 26 px
    assert cropped(frame, 1.5, 0.0, (0, 0))[2, 32, 0] == 255


def test_crops_differ_between_pairs_and_are_the_same_in_one():
    vary, frames = Vary(colours=0, mirror=False, place=0.05), np.stack([_frames()[0]] * 2)
    first, again, other = (vary(frames, None, None, np.random.default_rng(seed))[0] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first[0], first[1])
    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() > 0.5


def test_a_crop_of_faces_that_it_does_not_know_is_refused_before_any_work():
    Vary().require(SPEC, "shards")
    with pytest.raises(UserError, match=r"shards: data\.vary\.place"):
        Vary(place=0.1).require(SPEC, "shards")


@pytest.mark.parametrize("wrong", [{"colours": 2}, {"place": 0.5}, {"place": -0.1}])
def test_too_much_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Vary(**wrong)
