"""The avatar of drawn people that `af live` runs without arguments, and the command that makes its folder:

python -m af.serve.ship --autoencoder runs/demo/vae --denoiser runs/demo/denoiser --student runs/student \
    --out af/serve/weights
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Final

import numpy as np
import soundfile
from jaxtyping import Float32
from PIL import Image

from af.clock import SAMPLE_RATE, seconds_to_frames
from af.errors import UserError
from af.files import atomic_path, sha256_of
from af.forcing.guidance import Guidance
from af.forcing.solvers import SCHEDULE, SOLVER, STEPS
from af.models.artifact import WEIGHTS, Artifact, load_model, save_model
from af.models.autoencoder import MotionAutoencoder
from af.models.denoiser import MotionDenoiser
from af.pipeline.avatar import Avatar
from af.pipeline.sampling import plain_sampling
from af.serve.puppet import portrait
from af.synth.turns import plan_phrase
from af.synth.voice import VoiceType, speech

#: Bytes that the folder may have.
LARGEST: Final = 8 << 20
AUTOENCODER, DENOISER, STUDENT = "autoencoder", "denoiser", "student"
PORTRAIT, VOICE = "portrait.png", "voice.wav"
#: How its denoiser says that it is sampled: with `af demo`'s guidance, but calmer.
_SAMPLING: Final[Mapping[str, Any]] = {
    "steps": STEPS,
    "solver": SOLVER,
    "schedule": SCHEDULE,
    "guidance": Guidance(audio=0.7, user=0, joint=1),
    "dead_band": 0.05,
}
#: (start, stop) in seconds of what the voice says; in the pauses the avatar listens.
_PHRASES: Final = ((0.3, 1.9), (2.3, 3.6))
_VOICE_S: Final = 6.0


def shipped() -> Path:
    """The folder in this package. Raises UserError when it is missing."""
    folder = Path(str(resources.files("af.serve"))) / "weights"
    if not (folder / DENOISER).is_dir():
        raise UserError("this installation has no avatar of its own: give --autoencoder and --denoiser")
    return folder


def ship(autoencoder: Path, denoiser: Path, student: Path, out: Path, seed: int = 0) -> int:
    """Write the models in half precision, a drawn portrait and a voice; returns the bytes of all files.

    Raises UserError for models that do not fit together, and when the files are larger than `LARGEST`.
    """
    images = load_model(autoencoder, MotionAutoencoder)
    motions = {DENOISER: load_model(denoiser, MotionDenoiser), STUDENT: load_model(student, MotionDenoiser)}
    avatar, _ = (Avatar.of(images, motion) for motion in motions.values())
    size = avatar.autoencoder.image_size
    digest = _save(images, out / AUTOENCODER, latents=None)  # rounding changes them
    for name, motion in motions.items():
        said = {"sampling": plain_sampling(_SAMPLING)} if name == DENOISER else {}
        _save(motion, out / name, motion_spec={**motion.info["motion_spec"], "autoencoder": digest}, **said)
    with atomic_path(out / PORTRAIT) as temporary:
        Image.fromarray(portrait(seed, size)).save(temporary, format="PNG")
    with atomic_path(out / VOICE) as temporary:
        soundfile.write(temporary, voice(seed), SAMPLE_RATE, format="WAV", subtype="PCM_16")
    for name in motions:
        Avatar.load(out / AUTOENCODER, out / name)  # they fit
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    if size > LARGEST:
        raise UserError(f"{out}: {size / 2**20:.1f} MB, at most {LARGEST >> 20} may be shipped")
    return size


def voice(seed: int) -> Float32[np.ndarray, " S"]:
    """A synthetic voice that says two phrases and then listens."""
    rng = np.random.default_rng(seed)
    kind, phrases = VoiceType.sample(rng), [plan_phrase(rng, *span) for span in _PHRASES]
    return speech(phrases, kind, seconds_to_frames(_VOICE_S), rng)


def _save(artifact: Artifact, folder: Path, **changed: object) -> str:
    return save_model(folder, artifact.model, artifact.info["model"], {**artifact.info, **changed}, half=True)


def main() -> None:
    """Make the folder and say what is in it."""
    parser = argparse.ArgumentParser(prog="python -m af.serve.ship", description=__doc__)
    for name in ("autoencoder", "denoiser", "student", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    given = parser.parse_args()
    try:
        size = ship(given.autoencoder, given.denoiser, given.student, given.out)
    except UserError as error:
        parser.exit(1, f"{parser.prog}: {error}\n")
    for part in (AUTOENCODER, DENOISER, STUDENT):
        print(f"{given.out / part / WEIGHTS}: sha256 {sha256_of(given.out / part / WEIGHTS)}")
    print(f"{given.out}: {size / 2**20:.1f} MB")


if __name__ == "__main__":
    main()
