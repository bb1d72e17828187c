"""Turn a released checkpoint (your own copy) into a model folder of this project.

The file is recognised by its keys; every missing, unexpected or misshapen key is listed and nothing is written then.

af import-released motion_autoencoder.pth --out runs/released/autoencoder
  af import-released flow_transformer.pth --out runs/released/denoiser \\
      --autoencoder runs/released/autoencoder --wav2vec2 facebook/wav2vec2-base-960h

With --autoencoder and --wav2vec2 the denoiser's folder names its latents and features and is ready for `af generate`;
without them it holds only the weights (for fine-tuning or for Python).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from af.cli.options import out_place
from af.errors import UserError


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `af import-released`."""
    parser.add_argument("file", type=Path, help="flow_transformer.pth or motion_autoencoder.pth (or .safetensors)")
    parser.add_argument("--out", type=out_place, required=True, help="model folder to write (or its model.safetensors)")
    parser.add_argument("--autoencoder", type=Path, help="model folder of the autoencoder, imported before")
    parser.add_argument("--wav2vec2", help="wav2vec 2.0 base, 960 h: a Hugging Face name or a local folder")


def run(args: argparse.Namespace) -> int:
    """Read, check, convert, write."""
    from af.models.artifact import save_model
    from af.models.released import LICENCE_NOTE, read_released

    folder = args.out.parent if args.out.name == "model.safetensors" else args.out
    if folder.suffix:
        raise UserError(f"--out {args.out}: give a folder, or a file called model.safetensors in one")
    released = read_released(args.file)
    info = {"licence": LICENCE_NOTE, "source": args.file.name}
    if released.kind == "denoiser":
        info |= _belongs(args.autoencoder, args.wav2vec2)
    digest = save_model(folder, released.model, released.config, info)
    print(f"{released.kind} -> {folder} (sha256 {digest[:12]}…)\n{LICENCE_NOTE}")
    return 0


def _belongs(autoencoder: Path | None, wav2vec2: str | None) -> dict[str, Any]:
    """What the denoiser was made for, in the words of `af generate`: latents and speech features."""
    from dataclasses import asdict

    from af.models.artifact import load_as
    from af.models.autoencoder import MotionAutoencoder
    from af.models.speech import Wav2Vec2Features
    from af.types import MotionSpec

    info: dict[str, Any] = {}
    if autoencoder is not None:
        model, images = load_as(autoencoder, MotionAutoencoder)
        info["motion_spec"] = asdict(
            MotionSpec(
                dim=model.latent_dim,
                directions=model.directions_count,
                autoencoder=images.digest,
                image_size=model.image_size,
            )
        )
    if wav2vec2 is not None:
        features = Wav2Vec2Features(wav2vec2, mode="utterance")  # as released: the whole voice at once
        info["features"] = {
            "_target_": "af.models.speech.Wav2Vec2Features",
            "checkpoint": wav2vec2,
            "mode": "utterance",
        }
        info["feature_spec"] = asdict(features.spec)
    return info
