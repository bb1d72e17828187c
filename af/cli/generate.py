"""Generate a video of the avatar, with audio and of any length, from a portrait, voices and the user's video.

  af generate --autoencoder runs/vae/export --denoiser runs/denoiser/export \\
    --portrait face.jpg --avatar-audio speech.wav --user-video user.mp4 --out avatar.mp4 --side-by-side both.mp4

Every input of the user is optional: without --user-video and --user-audio the avatar only talks, without --avatar-audio
it only listens. The user's voice is --user-audio, or the audio of --user-video. Blocks are rolled out and decoded one
by one, so memory does not grow with the length. Faces are found and cropped as in `af ingest`; give --no-crop when the
pictures are face crops already. The video is as long as the longest input (--seconds cuts it).

The files say that they are generated, in their metadata and by a small mark in every frame; --no-mark leaves out the
latter, for research and for `af compare`, which would measure it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from af.cli.kinds import Device, Model, OutFile, Positive, Seed
from af.cli.sampling import Sampling


def run(
    *,
    autoencoder: Annotated[Model, "model folder, run or checkpoint of the motion VAE"],
    denoiser: Annotated[Model, "model folder, run or checkpoint of the denoiser"],
    device: Device = "auto",
    portrait: Annotated[Path, "image of the avatar"],
    avatar_audio: Annotated[Path | None, "what the avatar says (any sound or video file)"] = None,
    user_video: Annotated[Path | None, "the user's face"] = None,
    user_audio: Annotated[Path | None, "the user's voice (default: the sound of --user-video)"] = None,
    no_crop: Annotated[bool, "portrait and user video are face crops already"] = False,
    out: Annotated[OutFile, "the avatar with its voice: .mp4, or .gif without sound"],
    side_by_side: Annotated[OutFile | None, "also user | avatar with both voices: .mp4 or .gif"] = None,
    seconds: Annotated[Positive | None, "length (default: of the longest input)"] = None,
    sampling: Sampling,
    precision: Annotated[
        str | None, "fp32, bf16 or auto (what is fast here): pack the denoiser's weights, faster on CPU"
    ] = None,
    seed: Annotated[Seed, "the same seed gives the same video"] = 0,
    no_mark: Annotated[bool, "draw no mark into the frames, for research"] = False,
) -> None:
    """Generate and write."""
    from af.clock import frames_to_seconds
    from af.data.container import Notes
    from af.data.video_writer import require_video_name
    from af.nn.precision import choose
    from af.pipeline.generate import generate_video
    from af.share.avatar import Avatar

    outputs = {flag: path for flag, path in (("--out", out), ("--side-by-side", side_by_side)) if path is not None}
    for flag, path in outputs.items():
        require_video_name(path, flag)
    if precision is not None:
        print(f"precision: {choose(precision, device)}")
    avatar, notes = Avatar.load(autoencoder, denoiser, device, precision), Notes()
    frames = generate_video(
        avatar,
        portrait,
        out,
        avatar_audio=avatar_audio,
        user_audio=user_audio,
        user_video=user_video,
        side_by_side=side_by_side,
        find_face=not no_crop,
        seconds=seconds,
        seed=seed,
        mark=not no_mark,
        notes=notes,
        **sampling.over(avatar.sampling),
    )
    print(f"{out}: {frames} frames, {frames_to_seconds(frames):.2f} s")
    if side_by_side is not None:
        print(side_by_side)
    for path in outputs.values():
        if path.suffix.lower() == ".gif":
            print(f"{path}: a GIF has no audio")
    for note in notes:
        print(f"note: {note.text}", file=sys.stderr)
