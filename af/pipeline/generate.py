"""From files to videos: an avatar's inputs are read, its frames written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from af.data.container import Notes
from af.data.video_writer import require_video_name
from af.ingest.crops import read_portrait
from af.pipeline.avatar import Avatar
from af.pipeline.encode import video_motion_pieces
from af.pipeline.video_files import read_inputs, write_videos


def generate_video(
    avatar: Avatar,
    portrait: Path,
    out: Path,
    *,
    avatar_audio: Path | None = None,
    user_audio: Path | None = None,
    user_video: Path | None = None,
    side_by_side: Path | None = None,
    find_face: bool = True,
    seconds: float | None = None,
    seed: int = 0,
    mark: bool = True,
    notes: Notes | None = None,
    **sampling: Any,
) -> int:
    """Write a video of the avatar from files; returns its number of frames.

    `side_by_side` is another video, with the user. Without `find_face` portrait and user video are face crops already.
    `seconds` cuts the video; `sampling` as in `Avatar.motion`. Raises UserError for files that cannot be used.
    """
    for path in (out, side_by_side):
        if path is not None:
            require_video_name(path)
    notes = Notes() if notes is None else notes
    faces: dict[str, Any] = {"size": avatar.autoencoder.image_size, "find_face": find_face, "notes": notes}
    heard = read_inputs(avatar_audio, user_audio, user_video, seconds=seconds, **faces)
    identity, reference = avatar.identity(read_portrait(portrait, **faces))
    # one by one, as a live session sees them: with the same bits
    seen = None if heard.user_frames is None else video_motion_pieces(avatar.autoencoder, heard.user_frames, 1)
    motion = avatar.motion(
        reference,
        heard.frames,
        avatar_audio=heard.spoken,
        user_audio=heard.user_voice,
        user_motion=seen,
        generator=torch.Generator().manual_seed(seed),
        **sampling,
    )
    write_videos(avatar.frames(identity, motion), heard, out, side_by_side, user_video, mark)
    return heard.frames
