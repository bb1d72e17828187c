"""An avatar's files: its inputs read from recordings, and its frames written as videos with audio."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from af.clock import frames_to_samples, samples_to_frames, seconds_to_frames
from af.console import progress_bar
from af.data.audio import fit_audio, read_audio
from af.data.container import Notes, probe
from af.data.generated import MARKED, STATEMENT, marked
from af.data.video import iter_video
from af.data.video_writer import video_writer
from af.errors import UserError
from af.ingest.crops import face_frames
from af.pipeline.side_by_side import enlarged, side_by_side


@dataclass(frozen=True)
class Inputs:
    """Inputs of an avatar for `frames` frames: two voices and the user's face crops; None if missing."""

    frames: int
    voice: Float32[np.ndarray, " S"] | None = None
    user_voice: Float32[np.ndarray, " S"] | None = None
    user_frames: Iterable[UInt8[np.ndarray, "Y X 3"]] | None = None

    @property
    def spoken(self) -> Float32[np.ndarray, " S"]:
        """The avatar's voice; silence for a listener, which differs from a dropped signal."""
        return np.zeros(frames_to_samples(self.frames), np.float32) if self.voice is None else self.voice

    @property
    def mixed(self) -> Float32[np.ndarray, " S"] | None:
        """Both voices together."""
        voices = [fit_audio(voice, self.frames) for voice in (self.voice, self.user_voice) if voice is not None]
        return np.clip(np.sum(voices, axis=0), -1, 1).astype(np.float32) if voices else None


def read_inputs(
    avatar_audio: Path | None,
    user_audio: Path | None,
    user_video: Path | None,
    *,
    size: int,
    find_face: bool,
    seconds: float | None,
    notes: Notes,
) -> Inputs:
    """Read files as inputs with face crops of `size` pixels, as long as the longest file (at most `seconds`). Without
    `user_audio` the voice is that of `user_video`. Raises UserError without input, or with less than a frame.
    """
    voice = None if avatar_audio is None else read_audio(avatar_audio, notes=notes)
    user_voice = None if user_audio is None else read_audio(user_audio, notes=notes)
    user_frames, video_frames = None, 0
    if user_video is not None:
        info = probe(user_video)
        if info.video_s is not None:
            video_frames = seconds_to_frames(info.video_s)
        else:  # browser recordings do not declare their duration
            video_frames = sum(1 for _ in iter_video(user_video, max_side=16))
        if user_voice is None and info.has_audio:
            user_voice = read_audio(user_video, notes=notes)
        user_frames = face_frames(user_video, size, find_face=find_face, notes=notes, voice=user_voice)
    if voice is None and user_voice is None and user_frames is None:
        raise UserError("give --avatar-audio, --user-audio or --user-video: there is nothing to react to")
    frames = longest(audio=(voice, user_voice), video_frames=video_frames)
    if seconds is not None:
        frames = min(frames, seconds_to_frames(seconds))
    if frames == 0:
        raise UserError("the inputs are shorter than one frame (40 ms)")
    return Inputs(frames, voice, user_voice, user_frames)


def longest(*, audio: Iterable[np.ndarray | None], video_frames: int = 0) -> int:
    """Length in frames of the longest given signal."""
    return max([video_frames, *(samples_to_frames(len(a)) for a in audio if a is not None)])


def write_videos(
    images: Iterable[UInt8[np.ndarray, "Y X 3"]],
    inputs: Inputs,
    out: Path,
    both: Path | None,
    user_video: Path | None,
    mark: bool = True,
) -> None:
    """Write the avatar's frames with its voice to `out`, and beside the user's video with both voices to `both`; with a
    visible `mark` (`af.data.generated`).
    """
    how: Any = {"crf": 16, "generated": MARKED if mark else STATEMENT}
    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(progress_bar())
        task = progress.add_task("generating", total=inputs.frames)
        alone = stack.enter_context(video_writer(out, inputs.spoken, **how))
        beside = None if both is None else stack.enter_context(video_writer(both, inputs.mixed, **how))
        users = _held_frames(user_video if beside is not None else None)
        for image, user in zip(images, users, strict=False):
            image = marked(image) if mark else image
            large = enlarged(image[None])[0]
            alone.write(large)
            if beside is not None:
                sides = {"user": np.zeros_like(image) if user is None else user, "avatar": image}
                beside.write(side_by_side(sides, len(large)))
            progress.advance(task)


def _held_frames(video: Path | None) -> Iterator[np.ndarray | None]:
    """The frames of a video, repeating the last one forever; Nones if there is none."""
    held = None
    for frame in iter_video(video) if video is not None else ():
        held = frame
        yield held
    while True:
        yield held
