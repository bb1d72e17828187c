"""Any still image comes out whole, upright, in sRGB and on white; what cannot is named."""

from __future__ import annotations

import struct
import sys
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms

from af.data.container import MediaError, Notes
from af.data.images import read_image
from af.data.video import iter_video
from af.ingest.crops import read_portrait
from tests.toy_videos import disc_video


def corners(height: int = 64, width: int = 96) -> np.ndarray:
    image = np.empty((height, width, 3), np.uint8)
    image[: height // 2, : width // 2], image[: height // 2, width // 2 :] = (200, 40, 20), (30, 200, 30)
    image[height // 2 :, : width // 2], image[height // 2 :, width // 2 :] = (20, 40, 200), (220, 220, 220)
    return image


#: How EXIF orientations 1 to 8 are shown, by their definition.
_SHOWN = [
    lambda p: p,
    lambda p: p[:, ::-1],
    lambda p: p[::-1, ::-1],
    lambda p: p[::-1],
    lambda p: p.transpose(1, 0, 2),
    lambda p: p.transpose(1, 0, 2)[:, ::-1],
    lambda p: p.transpose(1, 0, 2)[::-1, ::-1],
    lambda p: p.transpose(1, 0, 2)[::-1],
]


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_as_the_camera_says(tmp_path, ending, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(corners()).save(tmp_path / f"a.{ending}", exif=exif)
    expected = _SHOWN[orientation - 1](corners())
    found = read_image(tmp_path / f"a.{ending}")
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).mean() < 8


@pytest.mark.parametrize("ending", ["jpg", "png", "bmp", "webp", "tif", "avif", "tga", "gif", "jp2", "ppm"])
def test_every_format_is_a_portrait(tmp_path, ending):
    Image.fromarray(corners(64, 64)).save(tmp_path / f"a.{ending}")
    found = read_portrait(tmp_path / f"a.{ending}", 64, find_face=False)
    assert np.abs(found.astype(int) - corners(64, 64)).mean() < 8


@pytest.mark.parametrize("ending", ["png", "webp", "tif", "avif", "tga", "gif", "jp2"])
def test_transparent_places_are_white_in_every_format(tmp_path, ending):
    rgba = np.dstack([corners(), np.full((64, 96), 255, np.uint8)])
    rgba[:, :48] = 0  # black, and not to be seen
    Image.fromarray(rgba).save(tmp_path / f"a.{ending}")
    found = read_image(tmp_path / f"a.{ending}")
    assert (found[4:-4, 4:40] > 250).all()
    assert np.abs(found[4:-4, 56:-4].astype(int) - corners()[4:-4, 56:-4]).mean() < 8


def test_transparency_of_palettes_and_single_colours(tmp_path):
    flat = Image.fromarray(corners()).quantize(8)
    hidden = flat.getpixel((0, 0))
    flat.save(tmp_path / "palette.png", transparency=hidden)
    Image.fromarray(corners()).save(tmp_path / "key.png", transparency=(200, 40, 20))
    for name in ("palette.png", "key.png"):
        found = read_image(tmp_path / name)
        assert (found[:32, :48] == 255).all(), name
        assert np.abs(found[32:].astype(int) - corners()[32:]).mean() < 8, name


@pytest.mark.parametrize("ending", ["png", "tif"])
@pytest.mark.parametrize("colour", [False, True])
def test_sixteen_bits_become_eight(tmp_path, ending, colour):
    image = corners()[..., ::-1] if colour else corners()[..., 0]
    cv2.imwrite(str(tmp_path / f"a.{ending}"), np.ascontiguousarray(image).astype(np.uint16) * 257)
    expected = corners() if colour else np.repeat(corners()[..., :1], 3, 2)
    np.testing.assert_allclose(read_image(tmp_path / f"a.{ending}"), expected, atol=1)


def display_p3() -> bytes:
    """An ICC profile (version 2) of P3's primaries, adapted to its D50, with a gamma of 2.2."""

    def xyz(*values: float) -> bytes:
        return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(v * 65536) for v in values))

    text = b"desc" + bytes(4) + struct.pack(">I", 11) + b"Display P3\0" + bytes(78)
    gamma = b"curv" + bytes(4) + struct.pack(">IH", 1, round(2.2 * 256)) + bytes(2)
    tags = {
        b"desc": text + bytes(-len(text) % 4),
        b"wtpt": xyz(0.9642, 1.0, 0.8249),
        b"rXYZ": xyz(0.5151, 0.2412, -0.0011),
        b"gXYZ": xyz(0.2920, 0.6922, 0.0419),
        b"bXYZ": xyz(0.1571, 0.0666, 0.7841),
        **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), gamma),
    }
    table, body, at = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        table += name + struct.pack(">II", at + len(body), len(data))
        body += data
    head = struct.pack(">I4xI4s4s4s12x4s28x", at + len(body), 0x02100000, b"mntr", b"RGB ", b"XYZ ", b"acsp")
    return head + struct.pack(">3i", 63190, 65536, 54061) + bytes(128 - len(head) - 12) + table + body


def test_a_colour_profile_is_applied_and_noted(tmp_path):
    """Skin, grey and leaf as a phone of wide gamut writes them look as they do in sRGB."""
    light = np.array([[0.5, 0.3, 0.2], [0.18, 0.18, 0.18], [0.1, 0.3, 0.05]])
    to_p3 = np.array([[0.8225, 0.1774, 0.0], [0.0332, 0.9669, 0.0], [0.0171, 0.0724, 0.9108]])
    wide = np.rint(255 * (light @ to_p3.T) ** (1 / 2.2)).astype(np.uint8)
    image = Image.fromarray(np.repeat(np.repeat(wide[None], 33, 0), 20, 1))
    image.save(tmp_path / "a.png", icc_profile=display_p3())
    image.save(tmp_path / "b.png", icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    image.save(tmp_path / "c.png", icc_profile=b"no profile at all")
    notes = Notes()
    expected = 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    np.testing.assert_allclose(read_image(tmp_path / "a.png", notes)[10, 10::20], expected, atol=2)
    assert ["Display P3" in n.text for n in notes] == [True]
    notes = Notes()
    np.testing.assert_array_equal(read_image(tmp_path / "b.png", notes), np.asarray(image))
    assert not list(notes)
    np.testing.assert_array_equal(read_image(tmp_path / "c.png", notes), np.asarray(image))
    assert "ignored" in next(iter(notes)).text


@pytest.mark.parametrize("mode", ["CMYK", "L", "1", "P", "YCbCr", "LA"])
def test_modes_of_all_kinds_are_images(tmp_path, mode):
    grey = Image.fromarray(np.full((64, 64, 3), 255, np.uint8)).convert(mode)
    grey.save(tmp_path / "a.tif" if mode != "YCbCr" else tmp_path / "a.jpg")
    found = read_image(tmp_path / ("a.tif" if mode != "YCbCr" else "a.jpg"))
    np.testing.assert_array_equal(found, 255)


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif", "gif", "bmp"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_an_image_that_is_cut_off_is_refused(tmp_path, ending, share):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (64, 64, 3), np.uint8)).save(tmp_path / f"a.{ending}")
    data = (tmp_path / f"a.{ending}").read_bytes()
    (tmp_path / f"a.{ending}").write_bytes(data[: int(share * len(data))])
    with pytest.raises(MediaError, match=rf"a\.{ending}: .*(cut off|can be read)"):
        read_portrait(tmp_path / f"a.{ending}", 32, find_face=False)


def test_a_huge_image_is_refused_before_it_is_decoded(tmp_path):
    """A file of a few hundred bytes that says 14,000 x 14,000: nothing of that size is made."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    for side in (10_000, 14_000, 60_000):
        head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
        body = chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
        (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + head + body)
        with pytest.raises(MediaError, match=rf"a\.png: {side**2 // 10**6} million pixels"):
            read_portrait(tmp_path / "a.png", 32)


def test_heic_of_tiles_is_whole(tmp_path):
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.register_heif_opener()
    large = np.asarray(Image.fromarray(corners()).resize((1500, 1000), Image.Resampling.NEAREST))
    Image.fromarray(large).save(tmp_path / "a.heic", quality=90)
    found = read_image(tmp_path / "a.heic")
    assert found.shape == large.shape
    assert np.abs(found.astype(int) - large).mean() < 6
    with pytest.raises(MediaError, match="still image"):
        next(iter(iter_video(tmp_path / "a.heic")))


def test_heic_without_its_package_names_the_extra(tmp_path, monkeypatch):
    (tmp_path / "a.heic").write_bytes(b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic" + bytes(100))
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(MediaError, match=r"pip install 'avatar-forcing\[heic\]'"):
        read_portrait(tmp_path / "a.heic", 32)


def test_a_video_or_an_animation_gives_its_first_frame(tmp_path):
    disc_video(tmp_path / "a.mp4", 10)
    first = next(iter(iter_video(tmp_path / "a.mp4")))
    frames = [Image.fromarray(first), *(Image.new("RGB", (128, 96), (n, 0, 0)) for n in range(3))]
    frames[0].save(tmp_path / "b.webp", save_all=True, append_images=frames[1:], lossless=True)
    frames[0].save(tmp_path / "c.avif", save_all=True, append_images=frames[1:], quality=95)
    expected = read_portrait(tmp_path / "a.mp4", 64, find_face=False)
    for name in ("b.webp", "c.avif"):
        found = read_portrait(tmp_path / name, 64, find_face=False)
        assert np.abs(found.astype(int) - expected).mean() < 6, name


def test_images_of_rare_kinds_say_what_to_do(tmp_path):
    Image.fromarray(corners()).save(tmp_path / "a.pcx")
    (tmp_path / "a.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg" width="64" height="64"/>')
    for name in ("a.pcx", "a.svg"):
        with pytest.raises(MediaError, match=rf"{name}: .*save it as PNG or JPEG"):
            read_portrait(tmp_path / name, 32)


def test_other_faces_are_noted_and_the_largest_is_taken(tmp_path):
    Image.fromarray(corners(120, 200)).save(tmp_path / "a.png")

    def faces(*sides: int):
        return lambda frame: np.array([[10.0 + 90 * n, 30, side, side, 9.0 - n] for n, side in enumerate(sides)])

    def taken(detector) -> tuple[np.ndarray, list[str]]:
        notes = Notes()
        return read_portrait(tmp_path / "a.png", 32, detector=detector, notes=notes), [
            n.kind for n in notes if n.kind == "faces"
        ]

    alone, said = taken(lambda frame: np.array([[100.0, 30, 40, 40, 1.0]]))
    assert said == []
    both, said = taken(faces(30, 40))  # the smaller one is the surer
    assert said == ["faces"]
    np.testing.assert_array_equal(both, alone)
    assert taken(faces(40, 12))[1] == []
