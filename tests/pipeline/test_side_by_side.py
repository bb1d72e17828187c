"""Both sides of a video are shown in the same way, under their captions."""

from __future__ import annotations

import numpy as np
import pytest

from af.pipeline.side_by_side import enlarged, side_by_side, strip_height


@pytest.mark.parametrize("size", [24, 32, 48, 192, 300])
def test_an_image_looks_the_same_on_either_side(size):
    image = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    side = len(enlarged(image[None])[0])
    row = side_by_side({"user": image, "avatar": image}, side)[strip_height(side) :]
    assert np.array_equal(row[:, :side], row[:, side:])
    assert np.array_equal(row[:, side:], enlarged(image[None])[0])  # the avatar as in its own video


def test_sizes_that_differ_end_up_alike():
    """A plain gradient in 720 x 1280 and in 64 x 64: the same image to within the steps of the smaller one."""
    small, large = (np.linspace(0, 255, n).astype(np.uint8) for n in (64, 720))
    images = [
        np.broadcast_to(line[:, None, None], (len(line), width, 3)) for line, width in ((small, 64), (large, 1280))
    ]
    row = side_by_side({"user": np.ascontiguousarray(images[1]), "avatar": np.ascontiguousarray(images[0])}, 192)
    user, avatar = (row[strip_height(192) :, part].astype(int) for part in (slice(0, 192), slice(192, 384)))
    assert np.abs(user - avatar).max() <= np.ceil(255 / 63)


def test_captions_can_be_told_apart():
    black = np.zeros((64, 64, 3), np.uint8)
    row = side_by_side({"user": black, "generated": black, "true": black}, 192)
    strips = np.split(row[: strip_height(192)], 3, axis=1)
    assert row.shape == (192 + strip_height(192), 3 * 192, 3)
    assert not row[strip_height(192) :].any()
    for n, strip in enumerate(strips):
        assert np.ptp(strip) > 150, "light letters on a dark strip"
        assert np.ptp(strip[[0, -1]]) == np.ptp(strip[:, [0, -1]]) == 0, "letters are cut off"
        assert all(not np.array_equal(strip, other) for other in strips[:n])
