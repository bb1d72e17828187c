"""One long conversation of two drawn people as clips: for `person` of the first alone, for `person_denoiser` of both."""

import argparse
from pathlib import Path
from typing import Any

from af.clock import frames_to_samples, frames_to_seconds, seconds_to_frames
from af.data.codecs import encode_audio, encode_video
from af.data.index import build_index
from af.data.schema import ROLES, ClipMeta
from af.data.shards import write_shard
from af.synth.face import FACE_SPEC
from af.synth.render import render
from af.synth.session import SessionConfig, simulate

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("out", type=Path)
parser.add_argument("--seed", type=int, default=1000, help="of the people (the demo's are 0)")
parser.add_argument("--seconds", type=float, default=120.0)
parser.add_argument("--clip", type=float, default=5.0, metavar="SECONDS")
parser.add_argument("--size", type=int, default=64)
parser.add_argument("--both", action="store_true", help="the conversation, not the first person alone")
args = parser.parse_args()
seed, roles = (args.seed, 0, 0), ROLES if args.both else ROLES[:1]
session, step = simulate(seed, SessionConfig(seconds=args.seconds)), seconds_to_frames(args.clip)
people = tuple(f"drawn-{args.seed}-{role}" for role in (*roles, *roles)[:2])
about: dict[str, Any] = {
    "dataset": "synthetic",
    "licence": "CC0-1.0",
    "consent": "shows no real people",
    "split": "train",
    "session": f"drawn-{args.seed}",
    "image_size": args.size,
    "separation": "synthetic",
    "face_spec": FACE_SPEC,
    "extra": {"seed": list(seed)},
    "one_sided": not args.both,
}
samples = []
for number, start in enumerate(range(0, session.frames - step + 1, step)):
    span, members = slice(start, start + step), {}
    for role in roles:
        side = session.side(role)
        members[f"{role}.mp4"] = encode_video(render(side.face[span], side.appearance, args.size))
        members[f"{role}.flac"] = encode_audio(side.audio[frames_to_samples(start) : frames_to_samples(start + step)])
        members[f"{role}.face.npy"] = side.face[span]
    time = (frames_to_seconds(start), frames_to_seconds(start + step))
    samples.append((f"{number:06d}", ClipMeta(**about, participants=people, frames=step, time_range_s=time), members))
write_shard(args.out / "train" / "000000.tar", samples)
print(build_index(args.out / "train").frames, "frames")
