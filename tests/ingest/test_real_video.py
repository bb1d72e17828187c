"""A real conversation becomes clips whose faces are centred."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from af.data.audio import read_audio
from af.data.shards import ShardReader
from af.data.video import read_video
from af.data.video_writer import write_video
from af.ingest.detection import HaarDetector
from af.ingest.options import IngestOptions
from af.ingest.run import run_ingest
from af.ingest.sources import Source
from tests.toy_videos import make_video


@pytest.fixture(scope="module")
def real_pair(shared_folder, tmp_path_factory) -> tuple[Path, Path]:
    """Three seconds of a real conversation, one side at 30 fps, small."""
    folder = shared_folder / "real"
    if not (folder / "user.mp4").is_file():
        pytest.skip("no real clip beside the checkout")
    out = tmp_path_factory.mktemp("real")
    user = read_video(folder / "user.mp4", start=100, stop=175, max_side=256)
    avatar = read_video(folder / "avatar.mp4", start=100, stop=175, max_side=256)
    make_video(out / "user.mp4", [Fraction(n, 30) for n in range(90)], user[np.arange(90) * 25 // 30])
    write_video(out / "avatar.mp4", avatar, read_audio(folder / "avatar.wav")[64000:112000])
    return out / "user.mp4", out / "avatar.mp4"


def test_real_faces_are_centred(real_pair, tmp_path):
    user, avatar = real_pair
    source = Source(a=str(user), b=str(avatar), audio_a="silence")
    report = run_ingest([source], tmp_path, IngestOptions(size=96, detect_every=12))
    assert report.failed == ()
    reader = ShardReader(tmp_path / "train")
    meta = reader.read_meta(0)
    assert meta.frames == 75
    clip = reader.read(0, {"video", "audio"})
    assert not clip.a.audio.any()
    assert clip.b.audio.any()
    detector = HaarDetector()
    for role in "ab":
        assert meta.valid_mask(role).all()
        for n in (5, 40, 70):
            x, y, width, height, _ = detector(clip.person(role).video[n])[0]
            assert abs(x + width / 2 - 48) < 12
            assert abs(y + height / 2 - 48) < 12
        boxes = np.asarray(meta.crop_boxes[role])
        assert np.abs(np.diff(boxes, axis=0)).max() < 1.0  # pixels a frame: steady
