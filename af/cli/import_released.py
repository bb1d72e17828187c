"""Turn a released checkpoint (your own copy) into a model folder of this project.

The file is recognised by its keys; every missing, unexpected or misshapen key is listed and nothing is written then.

  af import-released motion_autoencoder.pth --out runs/released/autoencoder
  af import-released flow_transformer.pth --out runs/released/denoiser \\
      --autoencoder runs/released/autoencoder --wav2vec2 facebook/wav2vec2-base-960h

With --autoencoder and --wav2vec2 the denoiser's folder names its latents and features and is ready for `af generate`;
without them it holds only the weights (for fine-tuning or for Python).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from af.cli.kinds import OutPlace
from af.errors import UserError


def run(
    file: Annotated[Path, "flow_transformer.pth or motion_autoencoder.pth (or .safetensors)"],
    *,
    out: Annotated[OutPlace, "model folder to write (or its model.safetensors)"],
    autoencoder: Annotated[Path | None, "model folder of the autoencoder, imported before"] = None,
    wav2vec2: Annotated[str | None, "wav2vec 2.0 base, 960 h: a Hugging Face name or a local folder"] = None,
) -> None:
    """Read, check, convert, write."""
    from af.data.provenance import SOURCES, UNRECORDED
    from af.models.artifact import save_model
    from af.models.released import LICENCE, LICENCE_NOTE, read_released

    folder = out.parent if out.name == "model.safetensors" else out
    if folder.suffix:
        raise UserError(f"--out {out}: give a folder, or a file called model.safetensors in one")
    released = read_released(file)
    weights = {**UNRECORDED, "dataset": "released weights, and what they were trained on", "licence": LICENCE}
    info: dict[str, Any] = {"licence": LICENCE_NOTE, "source": file.name, SOURCES: [weights]}
    if released.kind == "denoiser":
        info |= _belongs(autoencoder, wav2vec2)
    digest = save_model(folder, released.model, released.config, info)
    print(f"{released.kind} -> {folder} (sha256 {digest[:12]}…)\n{LICENCE_NOTE}")


def _belongs(autoencoder: Path | None, wav2vec2: str | None) -> dict[str, Any]:
    """What the denoiser was made for, in the words of `af generate`: latents and speech features."""
    from dataclasses import asdict

    from af.models.artifact import load_as
    from af.models.autoencoder import MotionAutoencoder
    from af.models.speech import Wav2Vec2Features
    from af.pipeline.encode import motion_spec_of

    info: dict[str, Any] = {}
    if autoencoder is not None:
        model, images = load_as(autoencoder, MotionAutoencoder)
        info["motion_spec"] = asdict(motion_spec_of(model, images.latents))
    if wav2vec2 is not None:
        how = {"checkpoint": wav2vec2, "mode": "utterance"}  # as released: the whole voice at once
        info["features"] = {"_target_": "af.models.speech.Wav2Vec2Features", **how}
        info["feature_spec"] = asdict(Wav2Vec2Features(**how).spec)  # type: ignore[arg-type]
    return info
