"""Videos of the shipped avatar in conversations of drawn people, made by each kind of its exports from the same seeds.

  python experiments/017_exports/videos.py --out runs/exports --clips 32

`OUT/KIND/clips.csv` lists a kind's videos for `af compare`. Videos that are there are kept, so that a stopped command goes on.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import tempfile
from pathlib import Path

import soundfile
from PIL import Image
from tqdm import tqdm

from af import Runtime
from af.clock import SAMPLE_RATE
from af.data.video_writer import write_video
from af.files import atomic_path
from af.serve.ship import AUTOENCODER, DENOISER, STUDENT, shipped
from af.share.export import export_avatar
from af.synth.render import render
from af.synth.session import SessionConfig, simulate

KINDS = {"onnx-fp32": {}, "onnx-fp16": {"dtype": "fp16"}, "onnx-int8": {"int8": True}}
#: Seeds of conversations of their own, far from those of `af synth`.
FIRST_SEED = 9_000_000


def conversation(seed: int, folder: Path, seconds: float, size: int) -> None:
    """The user's and the avatar's video and voice, and the avatar's portrait, as files."""
    if (folder / "portrait.png").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    session = simulate([seed], SessionConfig(seconds=seconds))
    for name, side in (("avatar", session.a), ("user", session.b)):
        write_video(folder / f"{name}.mp4", render(side.face, side.appearance, size), side.audio)
        soundfile.write(folder / f"{name}.wav", side.audio, SAMPLE_RATE)
    with atomic_path(folder / "portrait.png") as temporary:
        Image.fromarray(render(session.a.face[:1], session.a.appearance, size)[0]).save(temporary, format="PNG")


def main() -> None:
    """Make what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--clips", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=16)
    args = parser.parse_args()
    for model in (DENOISER, STUDENT):
        with tempfile.TemporaryDirectory() as place:
            for part, name in ((AUTOENCODER, AUTOENCODER), (model, DENOISER)):
                shutil.copytree(shipped() / part, Path(place) / "source" / name)
            for kind, how in KINDS.items():
                export_avatar(Path(place) / "source", Path(place) / kind, **how)
                runtime, made = Runtime(Path(place) / kind, 1), args.out / f"{model}-{kind}"
                made.mkdir(parents=True, exist_ok=True)
                rows = []
                for n in tqdm(range(args.clips), desc=made.name):
                    given, out = args.out / "given" / f"{n:03d}", made / f"{n:03d}.mp4"
                    conversation(FIRST_SEED + n, given, args.seconds, runtime.image_size)
                    if not out.is_file():
                        runtime.generate(
                            given / "portrait.png",
                            out,
                            avatar_audio=given / "avatar.wav",
                            user_video=given / "user.mp4",
                            find_face=False,
                            mark=False,
                            seed=n,
                        )
                    files = [
                        given / "user.mp4",
                        given / "avatar.mp4",
                        out,
                        given / "avatar.wav",
                        given / "portrait.png",
                    ]
                    rows.append([f"{n:03d}", *(file.resolve() for file in files)])
                with atomic_path(made / "clips.csv") as temporary, open(temporary, "w", newline="") as file:
                    csv.writer(file).writerows([["clip", "user", "true", "generated", "audio", "source"], *rows])


if __name__ == "__main__":
    main()
