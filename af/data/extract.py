"""Extracting one sample of a shard as ordinary files, to look at or as input of other programs."""

from __future__ import annotations

from pathlib import Path

import cv2
import soundfile

from af.clock import SAMPLE_RATE
from af.data.schema import ROLES
from af.data.shards import ShardReader
from af.data.stores import Location
from af.data.video_writer import write_video
from af.errors import UserError
from af.files import atomic_path

#: File names by role: person a is the user, person b the avatar, as in evaluation.
NAMES = {"a": "user", "b": "avatar"}


def extract(folder: Location, sample: int, out: Path) -> list[Path]:
    """Write `user.mp4`, `user.wav` and `user.png` (first frame), and likewise for `avatar`; returns the paths.

    Raises UserError when there is no such sample, ShardError when it holds no video or audio.
    """
    reader = ShardReader(folder)
    if not 0 <= sample < len(reader):
        raise UserError(f"{folder} has samples 0 to {len(reader) - 1}, but no {sample}")
    clip = reader.read(sample, {"video", "audio"})
    written = []
    for role in ROLES:
        person, name = clip.person(role), NAMES[role]
        assert person.video is not None
        assert person.audio is not None
        paths = [out / f"{name}{suffix}" for suffix in (".mp4", ".wav", ".png")]
        write_video(paths[0], person.video, person.audio, crf=12)
        with atomic_path(paths[1]) as temporary:
            soundfile.write(temporary, person.audio, SAMPLE_RATE, format="WAV")
        with atomic_path(paths[2]) as temporary:
            temporary.write_bytes(cv2.imencode(".png", person.video[0, ..., ::-1])[1].tobytes())
        written += paths
    return written
