"""Whatever a video file is made of, its frames are what a person would see; or it is said which are not, or why not."""

from __future__ import annotations

import itertools
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from af.data import colour
from af.data.audio import read_audio
from af.data.container import MediaError, Notes
from af.data.video import iter_video
from tests.toy_videos import scene


def kinds(notes: Notes) -> list[str]:
    return [note.kind for note in notes]


def write(
    path: Path,
    pictures,
    codec: str = "libx264",
    pixels: str = "yuv444p",
    *,
    start_s: float = 0.0,
    tags: tuple[int, int, int] | None = None,
    **options: str,
) -> Path:
    """A 25 fps video of RGB arrays or ready frames; `tags`: primaries, transfer and matrix."""
    if codec == "libx264":
        options = {"crf": "4", "preset": "ultrafast", **options}
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.options, stream.pix_fmt = options, pixels
        stream.codec_context.thread_count = 1  # the same file on every machine
        if tags:
            context = stream.codec_context
            context.color_primaries, context.color_trc, context.colorspace = tags
            context.color_range = 1
        for n, picture in enumerate(pictures):
            if isinstance(picture, np.ndarray):
                alpha = "rgba" if picture.shape[-1] == 4 else "rgb24"
                picture = av.VideoFrame.from_ndarray(picture, format=alpha)
            if n == 0:
                stream.width, stream.height = picture.width, picture.height
            picture.pts, picture.time_base = n + round(25 * start_s), Fraction(1, 25)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return path


def corners(height: int, width: int) -> np.ndarray:
    """Four colours in the four corners, so that no turn or mirror looks like another."""
    picture = np.empty((height, width, 3), np.uint8)
    picture[: height // 2, : width // 2], picture[: height // 2, width // 2 :] = (200, 30, 30), (30, 200, 30)
    picture[height // 2 :, : width // 2], picture[height // 2 :, width // 2 :] = (30, 30, 200), (220, 220, 220)
    return picture


# ------------------------------------------------------------------------------------------------------ orientation

_MATRICES = [
    (a, b, c, d)
    for a, b, c, d in itertools.product((-1, 0, 1), repeat=4)
    if abs(a * d - b * c) == 1 and abs(a) + abs(b) == 1 and abs(c) + abs(d) == 1
]


def place(picture: np.ndarray, matrix: tuple[int, int, int, int]) -> np.ndarray:
    """Pixel by pixel by the definition of a display matrix: (x, y) is shown at (a x + c y, b x + d y)."""
    a, b, c, d = matrix
    y, x = np.mgrid[: picture.shape[0], : picture.shape[1]]
    right, down = a * x + c * y, b * x + d * y
    right, down = right - right.min(), down - down.min()
    out = np.empty((down.max() + 1, right.max() + 1, 3), np.uint8)
    out[down, right] = picture
    return out


@pytest.mark.parametrize("matrix", _MATRICES)
def test_all_eight_display_matrices_are_applied(tmp_path, matrix):
    picture = corners(64, 96)
    file = write(tmp_path / "in.mp4", [picture] * 3)
    data = bytearray(file.read_bytes())
    at = data.index(b"tkhd") + 44
    a, b, c, d = (65536 * v for v in matrix)
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    file.write_bytes(data)
    notes = Notes()
    shown = next(iter(iter_video(file, notes=notes)))
    expected = place(picture, matrix)
    assert shown.shape == expected.shape
    assert np.abs(shown.astype(int) - expected).mean() < 4
    assert ("matrix" in kinds(notes)) == (matrix != (1, 0, 0, 1))


# ----------------------------------------------------------------------------------------------------------- colours

_PRIMARIES = {"709": 1, "2020": 9, "p3": 12}
_TRANSFERS = {"hlg": 18, "pq": 16, "sdr": 1}


def _matrix(name: str) -> np.ndarray:
    """Linear BT.709 to linear light of these primaries, from the standards' printed matrices (BT.2087, SMPTE EG 432)."""
    if name == "2020":
        return np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])
    if name == "p3":
        return np.array([[0.8225, 0.1774, 0.0], [0.0332, 0.9669, 0.0], [0.0171, 0.0724, 0.9108]])
    return np.eye(3)


def signal(light: np.ndarray, transfer: str) -> np.ndarray:
    """Display light (diffuse white, 203 cd/m2, = 1) as code values: the standards' forward formulas."""
    if transfer == "sdr":
        return light ** (1 / 2.4)
    if transfer == "pq":
        y = (light * 203 / 10000) ** (2610 / 16384)
        return ((3424 / 4096 + 2413 / 128 * y) / (1 + 2392 / 128 * y)) ** (2523 / 32)
    shown = light * 203 / 1000
    brightness = shown @ np.array([0.2627, 0.6780, 0.0593])
    scene_light = shown * np.maximum(brightness, 1e-9)[..., None] ** (1 / 1.2 - 1)
    logarithmic = 0.17883277 * np.log(np.maximum(12 * scene_light - 0.28466892, 1e-9)) + 0.55991073
    return np.where(scene_light <= 1 / 12, np.sqrt(3 * scene_light), logarithmic)


_LIGHT = np.array(
    [[0.02, 0.02, 0.02], [0.18, 0.18, 0.18], [0.5, 0.5, 0.5], [0.5, 0.3, 0.2], [0.1, 0.3, 0.2], [0.05, 0.1, 0.4]]
)
_WIDE = [(p, t) for p, t in itertools.product(_PRIMARIES, _TRANSFERS) if (p, t) != ("709", "sdr")]


@pytest.mark.parametrize(("primaries", "transfer"), _WIDE)
def test_colours_below_the_highlights_come_back(primaries, transfer):
    wide = signal(_LIGHT @ _matrix(primaries).T, transfer)
    found = colour.to_bt709(wide, _PRIMARIES[primaries], _TRANSFERS[transfer])
    np.testing.assert_allclose(found, _LIGHT ** (1 / 2.4), atol=0.002)


@pytest.mark.parametrize("transfer", ["hlg", "pq"])
def test_highlights_stay_apart_and_below_white(transfer):
    codes = np.repeat(np.linspace(0, 1, 101)[:, None], 3, 1)
    grey = colour.to_bt709(codes, 9, _TRANSFERS[transfer])
    np.testing.assert_allclose(grey, grey[:, :1].repeat(3, 1), atol=1e-6)
    steps = np.diff(grey[:, 0])
    assert (steps > -1e-9).all()
    assert (steps[grey[1:, 0] < 0.99] > 0).all()
    assert grey.max() <= 1
    white = signal(np.ones((1, 3)), transfer)
    assert 0.9 < colour.to_bt709(white, 9, _TRANSFERS[transfer]).min() < 0.99


@pytest.mark.parametrize(("primaries", "transfer"), [("2020", "hlg"), ("2020", "pq"), ("p3", "sdr")])
def test_a_wide_video_looks_like_its_standard_twin(tmp_path, primaries, transfer):
    codes = signal(_LIGHT @ _matrix(primaries).T, transfer)
    stripes = np.repeat(np.repeat(codes[None], 64, 0), 16, 1)
    weights = np.array([0.2627, 0.6780, 0.0593] if primaries == "2020" else [0.2126, 0.7152, 0.0722])
    luma = stripes @ weights
    planes = [luma, (stripes[..., 2] - luma) / (2 - 2 * weights[2]), (stripes[..., 0] - luma) / (2 - 2 * weights[0])]
    frame = av.VideoFrame(96, 64, "yuv444p10le")
    for plane, values, scale, zero in zip(frame.planes, planes, (876, 896, 896), (64, 512, 512), strict=True):
        rows = np.zeros((64, plane.line_size // 2), np.uint16)
        rows[:, :96] = np.rint(values * scale + zero)
        plane.update(rows.tobytes())
    tags = (_PRIMARIES[primaries], _TRANSFERS[transfer], 9 if primaries == "2020" else 1)
    file = write(tmp_path / "in.mkv", [frame] * 2, "ffv1", "yuv444p10le", tags=tags)
    notes = Notes()
    found = next(iter(iter_video(file, notes=notes)))[32, 8::16]
    np.testing.assert_allclose(found, 255 * _LIGHT ** (1 / 2.4), atol=4)
    assert kinds(notes) == ["colour"]


def test_high_definition_without_tags_is_read_as_bt709(tmp_path):
    red = np.zeros((720, 1280, 3), np.uint8)
    red[..., 0] = 200
    frame = av.VideoFrame.from_ndarray(red, format="rgb24").reformat(format="yuv444p", dst_colorspace="itu709")
    frame.colorspace = 2
    file = write(tmp_path / "in.mkv", [frame], "ffv1")
    np.testing.assert_allclose(next(iter(iter_video(file)))[360, 640], [200, 0, 0], atol=3)


@pytest.mark.parametrize(("codec", "pixels", "ending"), [("qtrle", "argb", "mov"), ("png", "rgba", "mov")])
def test_transparent_places_of_a_video_are_white(tmp_path, codec, pixels, ending):
    picture = np.concatenate([corners(64, 64), np.full((64, 64, 1), 255, np.uint8)], -1)
    picture[:, :32, 3] = 0
    shown = next(iter(iter_video(write(tmp_path / f"in.{ending}", [picture] * 2, codec, pixels))))
    np.testing.assert_array_equal(shown[:, :32], 255)
    np.testing.assert_allclose(shown[:, 32:], corners(64, 64)[:, 32:], atol=2)


# --------------------------------------------------------------------------------------------------- no video at all


@pytest.mark.parametrize("ending", ["jpg", "png", "bmp", "tif", "webp", "avif", "tga", "ppm", "jp2"])
def test_a_still_picture_is_no_video(tmp_path, ending):
    Image.fromarray(corners(64, 64)).save(tmp_path / f"in.{ending}")
    with pytest.raises(MediaError, match=rf"in\.{ending}: .*still image") as caught:
        list(iter_video(tmp_path / f"in.{ending}"))
    assert caught.value.reason == "still"
    with pytest.raises(MediaError, match="still image"):
        read_audio(tmp_path / f"in.{ending}")


def test_an_animation_is_a_video(tmp_path):
    first, *others = [Image.fromarray(f).resize((128, 96)) for f in scene(20)]
    first.save(tmp_path / "in.gif", save_all=True, append_images=others, duration=40)
    assert len(list(iter_video(tmp_path / "in.gif"))) == 20


def test_an_animation_with_a_still_twin_moves(tmp_path):
    first, *others = [Image.fromarray(f) for f in scene(10)]
    first.save(tmp_path / "in.avif", save_all=True, append_images=others, duration=40)
    assert len(list(iter_video(tmp_path / "in.avif"))) == 10


def test_an_avi_that_is_cut_off_is_refused(tmp_path):
    whole = write(tmp_path / "whole.avi", scene(50), "mpeg4", "yuv420p", qscale="2")
    assert len(list(iter_video(whole))) == 50
    data = whole.read_bytes()
    (tmp_path / "in.avi").write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(MediaError, match=r"declares 2\.00 s"):
        list(iter_video(tmp_path / "in.avi"))


@pytest.mark.parametrize("default", [0, 1, None])
def test_the_default_or_the_largest_track_is_shown(tmp_path, default):
    sizes = [(64, 64), (96, 128)]
    with av.open(str(tmp_path / "in.mkv"), "w") as container:
        streams = []
        for n, (height, width) in enumerate(sizes):
            stream = container.add_stream("libx264", rate=25)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            stream.disposition = av.stream.Disposition(1 if n == default else 0)
            streams.append(stream)
        for n in range(5):
            for stream, (height, width) in zip(streams, sizes, strict=True):
                picture = av.VideoFrame.from_ndarray(corners(height, width), format="rgb24")
                picture.pts, picture.time_base = n, Fraction(1, 25)
                container.mux(stream.encode(picture))
        for stream in streams:
            container.mux(stream.encode(None))
    notes = Notes()
    assert (
        next(iter(iter_video(tmp_path / "in.mkv", notes=notes))).shape[:2] == sizes[1 if default is None else default]
    )
    assert kinds(notes) == ["tracks"]
