"""Varied pairs: both frames alike, in the mirror with faces, the same at every reading."""

from __future__ import annotations

import numpy as np
import pytest

from af.data.vary import Vary, mirrored
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


def test_too_much_colour_is_refused():
    with pytest.raises(ValueError, match="colours"):
        Vary(colours=2)
