"""Portraits of any kind become square RGB of 8 bits, or an error that says why not."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from PIL import Image

from af.data.container import MediaError, Notes
from af.ingest.crops import read_portrait

_RED, _BLUE = (200, 40, 20), (20, 40, 200)


def _image(height: int, width: int) -> np.ndarray:
    """Red above, blue below."""
    image = np.empty((height, width, 3), np.uint8)
    image[: height // 2], image[height // 2 :] = _RED, _BLUE
    return image


def _halves(square: np.ndarray) -> np.ndarray:
    half = len(square) // 2
    return np.stack([square[: half - 4].mean((0, 1)), square[half + 4 :].mean((0, 1))])


@pytest.mark.parametrize("shape", [(64, 64), (64, 200), (300, 90)])
def test_the_middle_square_of_any_shape(tmp_path, shape):
    cv2.imwrite(str(tmp_path / "a.png"), _image(*shape)[..., ::-1])
    found = read_portrait(tmp_path / "a.png", 32, find_face=False)
    assert (found.shape, found.dtype) == ((32, 32, 3), np.uint8)
    np.testing.assert_allclose(_halves(found), [_RED, _BLUE], atol=1)


def test_grey_has_three_equal_channels(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), _image(64, 64)[..., 0])
    found = read_portrait(tmp_path / "a.png", 32, find_face=False)
    np.testing.assert_allclose(_halves(found), [[200] * 3, [20] * 3], atol=1)


def test_sixteen_bits_become_eight(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), _image(64, 64)[..., ::-1].astype(np.uint16) * 257)
    np.testing.assert_allclose(_halves(read_portrait(tmp_path / "a.png", 32, find_face=False)), [_RED, _BLUE], atol=1)


@pytest.mark.parametrize("bits", [np.uint8, np.uint16])
def test_transparency_is_white(tmp_path, bits):
    image, full = _image(64, 64)[..., ::-1].astype(bits) * (np.iinfo(bits).max // 255), np.iinfo(bits).max
    alpha = np.full((64, 64, 1), full, bits)
    alpha[:32] = 0
    cv2.imwrite(str(tmp_path / "a.png"), np.concatenate((image, alpha), 2))
    found = read_portrait(tmp_path / "a.png", 32, find_face=False)
    np.testing.assert_allclose(_halves(found), [[255] * 3, _BLUE], atol=1)


@pytest.mark.parametrize("width", [64, 80])
def test_transparency_turns_with_the_picture(tmp_path, width):
    rgba = np.concatenate((_image(64, width), np.full((64, width, 1), 255, np.uint8)), 2)
    rgba[:, : width // 2, 3] = 0  # the left half, which orientation 6 turns to the top
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(rgba).save(tmp_path / "a.png", exif=exif)
    found = read_portrait(tmp_path / "a.png", 32, find_face=False)
    np.testing.assert_array_equal(found[:8], 255)
    assert (found[-8:] != 255).any(-1).all()


def test_what_is_no_portrait_is_said(tmp_path):
    cv2.imwrite(str(tmp_path / "tiny.png"), _image(8, 100))
    (tmp_path / "text.png").write_text("not an image")
    for name, message in (
        ("tiny.png", "100 x 8 pixels; a portrait needs at least 32"),
        ("text.png", "not an image"),
        ("none.jpg", "no such file"),
    ):
        with pytest.raises(MediaError, match=message):
            read_portrait(tmp_path / name, 32, find_face=False)


def test_what_may_spoil_a_portrait_is_named(tmp_path):
    rng = np.random.default_rng(0)
    coloured = (rng.integers(0, 128, (400, 400, 3)) + np.array([100, 40, 0])).astype(np.uint8)

    def remarks(image: np.ndarray, box: tuple[float, ...], size: int = 64) -> str:
        cv2.imwrite(str(tmp_path / "a.png"), image[..., ::-1])
        notes = Notes()
        read_portrait(tmp_path / "a.png", size, detector=lambda frame: np.array([[*box, 1.0]]), notes=notes)
        return " ".join(note.text for note in notes)

    middle = (150, 150, 100, 100)
    assert remarks(coloured, middle) == ""
    assert "no colour: a statue" in remarks(np.repeat(coloured[..., :1], 3, 2), middle)
    assert "cut off by the edge" in remarks(coloured, (-30, 150, 100, 100))
    assert remarks(coloured, (-10, 150, 100, 100)) == ""
    assert "only 100 pixels wide: enlarged to 512" in remarks(coloured, middle, 512)
    assert "blurred" in remarks(cv2.GaussianBlur(coloured, (0, 0), 4), middle)
