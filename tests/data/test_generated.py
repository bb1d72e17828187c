from __future__ import annotations

import io

import av
import numpy as np
import pytest
from PIL import Image

from af.data.container import MediaError
from af.data.generated import MARKED, SOURCE_TYPE, STATEMENT, marked, png_metadata, refuse_marked
from af.data.video import read_video
from af.data.video_writer import write_video

# two: x264 does not write the same bytes each time of tiny images with B frames
FRAMES = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)


@pytest.mark.parametrize("suffix", ["mp4", "gif"])
def test_files_say_that_they_are_generated_and_show_the_same(tmp_path, suffix) -> None:
    plain, said = tmp_path / f"plain.{suffix}", tmp_path / f"said.{suffix}"
    write_video(plain, FRAMES)
    write_video(said, FRAMES, generated=STATEMENT)
    np.testing.assert_array_equal(read_video(said), read_video(plain))
    assert SOURCE_TYPE.encode() in said.read_bytes()
    assert STATEMENT.encode() not in plain.read_bytes()
    if suffix == "mp4":
        with av.open(str(said), options={"export_xmp": "1"}) as container:
            assert container.metadata["comment"] == container.metadata["description"] == STATEMENT
            assert SOURCE_TYPE in container.metadata["xmp"]


def test_images_say_it() -> None:
    file = io.BytesIO()
    Image.fromarray(FRAMES[0]).save(file, "PNG", pnginfo=png_metadata())
    found = Image.open(file)
    assert found.info["Description"] == STATEMENT
    assert SOURCE_TYPE in found.info["XML:com.adobe.xmp"]


@pytest.mark.parametrize("size", [4, 16, 64, 130, 512])
def test_the_visible_mark_is_in_the_corner(size) -> None:
    image = np.full((size, size, 3), 200, np.uint8)
    changed = (marked(image) != image).any(-1)
    assert (image == 200).all()
    assert changed.any()
    if size >= 16:
        assert not changed[: size // 2].any()
        assert not changed[:, : size // 3].any()


@pytest.mark.parametrize("name", ["a.mp4", "a.gif"])
def test_visible_marks_are_not_measured(tmp_path, name) -> None:
    for said in (STATEMENT, MARKED):
        write_video(tmp_path / name, FRAMES, generated=said)
        if said == STATEMENT:
            refuse_marked(tmp_path / name)
        else:
            with pytest.raises(MediaError, match="--no-mark"):
                refuse_marked(tmp_path / name)
