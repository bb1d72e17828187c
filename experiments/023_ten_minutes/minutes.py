"""Let an exported avatar answer long conversations, and list the first and the last minute of each for `af compare`.

python experiments/023_ten_minutes/minutes.py --data data/long/test --export runs/ten_minutes/onnx --out runs/ten_minutes

Writes OUT/{first,last}/N/{user,true,generated}.mp4 and OUT/{first,last}.csv. A conversation that is there is not made again.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from af.clock import SAMPLES_PER_FRAME, seconds_to_frames
from af.data.shards import ShardReader
from af.data.video_writer import write_video
from af.evaluation.manifest import ManifestClip, write_manifest
from af.share.runtime import Runtime
from af.types import Clip

MINUTE = seconds_to_frames(60)
SIDES = ("user", "true", "generated")


def main() -> None:
    """Make what is missing and write the lists."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="split folder of dyadic shards, a minute or longer")
    parser.add_argument("--export", type=Path, required=True, help="folder of `af export --to onnx`")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    runtime, reader = Runtime(args.export), ShardReader(args.data)
    listed: dict[str, list[ManifestClip]] = {"first": [], "last": []}
    for n, entry in enumerate(tqdm(reader.index.samples)):
        clip = reader.read(n, {"video", "audio"})
        minutes = {"first": slice(0, MINUTE), "last": slice(entry.frames - MINUTE, entry.frames)}
        if not all((args.out / name / str(n) / "generated.mp4").is_file() for name in minutes):
            write(runtime, clip, n, {args.out / name / str(n): at for name, at in minutes.items()})
        for name, at in minutes.items():
            ends = [end - at.start for end in clip.meta["extra"]["phrase_ends"]["a"] if at.start <= end < at.stop]
            about: dict[str, Any] = {side: args.out / name / str(n) / f"{side}.mp4" for side in SIDES}
            about |= {"identity": entry.participants[1], "session": entry.session, "phrase_ends": tuple(ends)}
            listed[name].append(ManifestClip(str(n), **about))
    for name, clips in listed.items():
        write_manifest(args.out / f"{name}.csv", clips)


def write(runtime: Runtime, clip: Clip, seed: int, minutes: dict[Path, slice]) -> None:
    """Roll out one conversation and write some minutes of it: {folder: frames}."""
    user, true = clip.person("a"), clip.person("b")
    assert user.video is not None
    assert true.video is not None
    face = runtime.face(true.video[0])
    seen = map(runtime.user_motion, user.video)
    heard = {"avatar_audio": true.audio, "user_audio": user.audio, "user_motion": seen}
    motion = np.concatenate(list(runtime.motion(face.reference, len(true.video), seed=seed, **heard)), axis=1)
    for folder, at in minutes.items():
        sound = slice(at.start * SAMPLES_PER_FRAME, at.stop * SAMPLES_PER_FRAME)
        for name, person in (("user", user), ("true", true)):
            assert person.video is not None
            assert person.audio is not None
            write_video(folder / f"{name}.mp4", person.video[at], person.audio[sound], crf=12)
        blocks = np.array_split(motion[:, at], MINUTE // 5, axis=1)
        write_video(folder / "generated.mp4", runtime.frames(face, blocks), crf=12)


if __name__ == "__main__":
    main()
