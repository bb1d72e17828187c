"""Portrait, voices and the user's video in; a video of the avatar out, with sound, of any length.

  af generate --autoencoder runs/vae/export --denoiser runs/denoiser/export \\
    --portrait face.jpg --avatar-audio speech.wav --user-video user.mp4 --out avatar.mp4 --side-by-side both.mp4

Every input of the user is optional: without --user-video and --user-audio the avatar only talks, without --avatar-audio
it only listens. The user's voice is --user-audio, or the sound of --user-video. Blocks are rolled out and decoded one
by one, so memory does not grow with the length. Faces are found and cropped as in `af ingest`; give --no-crop when the
pictures are face crops already. The video is as long as the longest input (--seconds cuts it).
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from af.cli.devices import add_device_argument, device_of
from af.cli.options import out_file, positive, seed
from af.cli.sampling import add_sampling_arguments, anchor_of, guidance_of
from af.errors import UserError

if TYPE_CHECKING:
    import numpy as np


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `af generate`."""
    models = parser.add_argument_group("models")
    models.add_argument(
        "--autoencoder", type=Path, required=True, help="model folder, run or checkpoint of the motion VAE"
    )
    models.add_argument("--denoiser", type=Path, required=True, help="model folder, run or checkpoint of the denoiser")
    add_device_argument(models)
    inputs = parser.add_argument_group("inputs")
    inputs.add_argument("--portrait", type=Path, required=True, help="picture of the avatar")
    inputs.add_argument("--avatar-audio", type=Path, help="what the avatar says (any sound or video file)")
    inputs.add_argument("--user-video", type=Path, help="the user's face")
    inputs.add_argument("--user-audio", type=Path, help="the user's voice (default: the sound of --user-video)")
    inputs.add_argument("--no-crop", action="store_true", help="portrait and user video are face crops already")
    outputs = parser.add_argument_group("outputs")
    outputs.add_argument(
        "--out", type=out_file, required=True, help="the avatar with its voice: .mp4, or .gif without sound"
    )
    outputs.add_argument("--side-by-side", type=out_file, help="also user | avatar with both voices: .mp4 or .gif")
    outputs.add_argument("--seconds", type=positive, help="length (default: of the longest input)")
    sampling = parser.add_argument_group("sampling")
    add_sampling_arguments(sampling)
    sampling.add_argument("--solver", default="euler", help="euler, or heun: two evaluations a step (default euler)")
    sampling.add_argument("--schedule", default="uniform", help="uniform, released or pyramid (default uniform)")
    sampling.add_argument(
        "--precision", help="fp32, bf16 or auto (what is fast here): pack the denoiser's weights, faster on CPU"
    )
    sampling.add_argument("--seed", type=seed, default=0, help="the same seed gives the same video (default 0)")


def run(args: argparse.Namespace) -> int:
    """Generate and write."""
    import numpy as np
    import torch

    from af.clock import frames_to_samples, frames_to_seconds, seconds_to_frames
    from af.console import progress_bar
    from af.data.audio import fit_audio, read_audio
    from af.data.container import probe
    from af.data.notes import Notes
    from af.data.video import iter_video
    from af.data.video_writer import require_video_name, video_writer
    from af.ingest.crops import face_frames, read_portrait
    from af.nn.precision import choose
    from af.pipeline.avatar import Avatar, longest
    from af.pipeline.encode import video_motion_pieces
    from af.pipeline.side_by_side import enlarged, side_by_side

    require_video_name(args.out, "--out")
    if args.side_by_side is not None:
        require_video_name(args.side_by_side, "--side-by-side")
    device = device_of(args)
    if args.precision is not None:
        print(f"precision: {choose(args.precision, device)}")
    avatar = Avatar.load(args.autoencoder, args.denoiser, device, args.precision)
    size = avatar.autoencoder.image_size
    notes = Notes()
    voice = None if args.avatar_audio is None else read_audio(args.avatar_audio, notes=notes)
    user_voice, user_frames, video_frames = None, None, 0
    if args.user_audio is not None:
        user_voice = read_audio(args.user_audio, notes=notes)
    if args.user_video is not None:
        info = probe(args.user_video)
        if info.video_s is not None:
            video_frames = seconds_to_frames(info.video_s)
        else:  # what browsers record does not say how long it is
            video_frames = sum(1 for _ in iter_video(args.user_video, max_side=16))
        if user_voice is None and info.has_audio:
            user_voice = read_audio(args.user_video, notes=notes)
        user_frames = face_frames(args.user_video, size, find_face=not args.no_crop, notes=notes, voice=user_voice)
    if voice is None and user_voice is None and user_frames is None:
        raise UserError("give --avatar-audio, --user-audio or --user-video: there is nothing to act on")
    frames = longest(audio=(voice, user_voice), video_frames=video_frames)
    if args.seconds is not None:
        frames = min(frames, seconds_to_frames(args.seconds))
    if frames == 0:
        raise UserError("the inputs are shorter than one frame (40 ms)")
    # a listener is silent, which is something else than a voice the model was not told about
    spoken = voice if voice is not None else np.zeros(frames_to_samples(frames), np.float32)
    portrait = read_portrait(args.portrait, size, find_face=not args.no_crop, notes=notes)
    identity, reference = avatar.identity(portrait)
    motion = avatar.motion(
        reference,
        frames,
        avatar_audio=spoken,
        user_audio=user_voice,
        user_motion=None if user_frames is None else video_motion_pieces(avatar.autoencoder, user_frames),
        steps=args.steps,
        guidance=guidance_of(args),
        schedule=args.schedule,
        solver=args.solver,
        anchor=anchor_of(args),
        generator=torch.Generator().manual_seed(args.seed),
    )
    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(progress_bar())
        task = progress.add_task("generating", total=frames)
        alone = stack.enter_context(video_writer(args.out, spoken, crf=16))
        both = None
        if args.side_by_side is not None:
            mixed = np.sum([fit_audio(v, frames) for v in (voice, user_voice) if v is not None], axis=0)
            sound = np.clip(mixed, -1, 1).astype(np.float32) if mixed.ndim else None
            both = stack.enter_context(video_writer(args.side_by_side, sound, crf=16))
        users = _user_frames(args.user_video if both is not None else None)
        for picture, user in zip(avatar.frames(identity, motion), users, strict=False):
            large = enlarged(picture[None])[0]
            alone.write(large)
            if both is not None:
                sides = {"user": np.zeros_like(picture) if user is None else user, "avatar": picture}
                both.write(side_by_side(sides, len(large)))
            progress.advance(task)
    print(f"{args.out}: {frames} frames, {frames_to_seconds(frames):.2f} s")
    if args.side_by_side is not None:
        print(args.side_by_side)
    for path in (args.out, args.side_by_side):
        if path is not None and path.suffix.lower() == ".gif":
            print(f"{path}: a GIF has no sound")
    for note in notes:
        print(f"note: {note.text}", file=sys.stderr)
    return 0


def _user_frames(video: Path | None) -> Iterator[np.ndarray | None]:
    """The user's frames, the last one again for ever; None as long as there is none."""
    from af.data.video import iter_video

    held = None
    for frame in iter_video(video) if video is not None else ():
        held = frame
        yield held
    while True:
        yield held
