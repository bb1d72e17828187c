"""A conversation on video as a folder to be evaluated: pieces of it, "generated" by nobody, right and too late.

    python experiments/004_videos_of_any_system/prepare.py CLIP OUT

CLIP holds user.mp4, avatar.mp4 and avatar.wav. OUT gets pieces of a few seconds and a manifest for each "system":
copy.csv, whose generated video is the true one, and late.csv, in which it comes `--late` frames late.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np

from af.clock import frames_to_samples
from af.data.audio import read_audio
from af.data.video import read_video
from af.data.video_writer import write_video


def main() -> None:
    """Write the pieces and both manifests."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clip", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--frames", type=int, default=125, help="length of a piece (default 125: 5 s)")
    parser.add_argument("--late", type=int, default=12, help="frames (default 12)")
    args = parser.parse_args()
    user, avatar = (read_video(args.clip / f"{name}.mp4") for name in ("user", "avatar"))
    voices = {"user": read_audio(args.clip / "user.mp4"), "avatar": read_audio(args.clip / "avatar.wav")}
    late = avatar[np.maximum(np.arange(len(avatar)) - args.late, 0)]
    pieces = min(len(user), len(avatar)) // args.frames
    for n in range(pieces):
        frames = slice(n * args.frames, (n + 1) * args.frames)
        sound = slice(frames_to_samples(frames.start), frames_to_samples(frames.stop))
        write_video(args.out / f"user/{n}.mp4", user[frames], voices["user"][sound])
        write_video(args.out / f"true/{n}.mp4", avatar[frames], voices["avatar"][sound])
        write_video(args.out / f"late/{n}.mp4", late[frames], voices["avatar"][sound])
    for system, folder in (("copy", "true"), ("late", "late")):
        with open(args.out / f"{system}.csv", "w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["clip", "user", "true", "generated", "session"])
            rows.writerows(
                [f"piece {n}", f"user/{n}.mp4", f"true/{n}.mp4", f"{folder}/{n}.mp4", "1"] for n in range(pieces)
            )
    print(f"{args.out}: {pieces} pieces of {args.frames} frames, copy.csv and late.csv")


if __name__ == "__main__":
    main()
