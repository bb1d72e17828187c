"""Generate a video of the avatar, with audio and of any length, from a portrait, voices and the user's video.

af generate --autoencoder runs/vae/export --denoiser runs/denoiser/export \\
    --portrait face.jpg --avatar-audio speech.wav --user-video user.mp4 --out avatar.mp4 --side-by-side both.mp4

Every input of the user is optional: without --user-video and --user-audio the avatar only talks, without --avatar-audio
it only listens. The user's voice is --user-audio, or the audio of --user-video. Blocks are rolled out and decoded one
by one, so memory does not grow with the length. Faces are found and cropped as in `af ingest`; give --no-crop when the
pictures are face crops already. The video is as long as the longest input (--seconds cuts it).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from af.cli.devices import add_device_argument, device_of
from af.cli.options import out_file, positive, seed
from af.cli.sampling import add_sampling_arguments, anchor_of, guidance_of


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `af generate`."""
    models = parser.add_argument_group("models")
    models.add_argument(
        "--autoencoder", type=Path, required=True, help="model folder, run or checkpoint of the motion VAE"
    )
    models.add_argument("--denoiser", type=Path, required=True, help="model folder, run or checkpoint of the denoiser")
    add_device_argument(models)
    inputs = parser.add_argument_group("inputs")
    inputs.add_argument("--portrait", type=Path, required=True, help="image of the avatar")
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
    import torch

    from af.clock import frames_to_seconds
    from af.data.container import Notes
    from af.data.video_writer import require_video_name
    from af.ingest.crops import read_portrait
    from af.nn.precision import choose
    from af.pipeline.avatar import Avatar
    from af.pipeline.encode import video_motion_pieces
    from af.pipeline.generate import read_inputs, write_videos

    outputs = {"--out": args.out, "--side-by-side": args.side_by_side}
    for flag, path in outputs.items():
        if path is not None:
            require_video_name(path, flag)
    device, notes = device_of(args), Notes()
    if args.precision is not None:
        print(f"precision: {choose(args.precision, device)}")
    avatar = Avatar.load(args.autoencoder, args.denoiser, device, args.precision)
    faces: dict[str, Any] = {"size": avatar.autoencoder.image_size, "find_face": not args.no_crop, "notes": notes}
    heard = read_inputs(args.avatar_audio, args.user_audio, args.user_video, seconds=args.seconds, **faces)
    identity, reference = avatar.identity(read_portrait(args.portrait, **faces))
    # one by one, as a live session sees them: with the same bits
    seen = None if heard.user_frames is None else video_motion_pieces(avatar.autoencoder, heard.user_frames, 1)
    motion = avatar.motion(
        reference,
        heard.frames,
        avatar_audio=heard.spoken,
        user_audio=heard.user_voice,
        user_motion=seen,
        steps=args.steps,
        guidance=guidance_of(args),
        schedule=args.schedule,
        solver=args.solver,
        anchor=anchor_of(args),
        generator=torch.Generator().manual_seed(args.seed),
    )
    write_videos(avatar.frames(identity, motion), heard, args.out, args.side_by_side, args.user_video)
    print(f"{args.out}: {heard.frames} frames, {frames_to_seconds(heard.frames):.2f} s")
    if args.side_by_side is not None:
        print(args.side_by_side)
    for path in outputs.values():
        if path is not None and path.suffix.lower() == ".gif":
            print(f"{path}: a GIF has no audio")
    for note in notes:
        print(f"note: {note.text}", file=sys.stderr)
    return 0
