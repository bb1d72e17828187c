"""Let an avatar and its exports answer the same held-out conversations with the same noise, and list the videos for `af compare`.

  python experiments/022_exports/videos.py --data data/demo/test --out runs/exports

Writes OUT/KIND/N.mp4 and OUT/KIND.csv for torch in fp32 and for the graphs in fp32, with fp16 and with int8 weights. A
video that is there is not made again.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from af.data.contents import extract
from af.evaluation.manifest import ManifestClip, write_manifest
from af.serve.ship import AUTOENCODER, DENOISER, STUDENT, shipped
from af.share.avatar import Avatar
from af.share.export import export_avatar
from af.share.folder import write_folder
from af.share.runtime import Runtime

#: Options of `export_avatar` of each kind of graphs.
EXPORTS: dict[str, dict[str, Any]] = {
    "onnx_fp32": {},
    "onnx_fp16_weights": {"dtype": "fp16"},
    "onnx_int8_weights": {"int8": True},
}


def main() -> None:
    """Make what is missing and write the lists."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="split folder of dyadic shards")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--models", type=Path, help="folder with autoencoder, denoiser and student (default: the package's)"
    )
    parser.add_argument("--student", action="store_true", help="its student")
    parser.add_argument("--conversations", type=int, default=32)
    args = parser.parse_args()
    true = [args.out / "true" / str(n) for n in range(args.conversations)]
    for n, folder in enumerate(true):
        if not (folder / "avatar.png").is_file():
            extract(args.data, n, folder)
    with tempfile.TemporaryDirectory() as place:
        source = Path(place) / "avatar"
        models = args.models or shipped()
        write_folder(source, models / AUTOENCODER, models / (STUDENT if args.student else DENOISER))
        makers: dict[str, Callable[..., int]] = {
            "torch_fp32": Avatar.from_pretrained(source, precision="fp32").generate
        }
        for kind, how in EXPORTS.items():
            export_avatar(source, Path(place) / kind, **how)
            makers[kind] = Runtime(Path(place) / kind).generate
        for kind, generate in makers.items():
            for n, folder in enumerate(tqdm(true, desc=kind)):
                to = args.out / kind / f"{n}.mp4"
                if not to.is_file():
                    sides = {
                        "avatar_audio": folder / "avatar.wav",
                        "user_audio": folder / "user.wav",
                        "user_video": folder / "user.mp4",
                    }
                    generate(folder / "avatar.png", to, **sides, find_face=False, seed=n, mark=False)
    for kind in makers:
        clips = [
            ManifestClip(str(n), of / "user.mp4", of / "avatar.mp4", args.out / kind / f"{n}.mp4", of / "avatar.wav")
            for n, of in enumerate(true)
        ]
        write_manifest(args.out / f"{kind}.csv", clips)


if __name__ == "__main__":
    main()
