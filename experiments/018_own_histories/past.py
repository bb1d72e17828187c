"""How restlessly the avatar of the package moves after true motion, and after its own: median speeds over the true ones'.

  python experiments/018_own_histories/past.py

Face parameters are read from latents by a linear fit to true ones of the same conversations; guidance 1, one pass without it.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from tqdm import tqdm

from af.forcing.guidance import Guidance
from af.forcing.sampler import BlockSampler
from af.images import to_float
from af.metrics.ridge import fit_ridge
from af.pipeline.avatar import Avatar
from af.serve.ship import AUTOENCODER, DENOISER, shipped
from af.synth.face import FACE_INDEX
from af.synth.render import render
from af.synth.session import SessionConfig, Side, simulate

FIRST_SEED = 777_000


def latents(avatar: Avatar, side: Side) -> np.ndarray:
    """Motion latents (T, L) of a drawn person."""
    frames = torch.from_numpy(render(side.face, side.appearance, avatar.autoencoder.image_size)).permute(0, 3, 1, 2)
    with torch.inference_mode():
        return torch.cat([avatar.autoencoder.motion(to_float(few), check=False) for few in frames.split(32)]).numpy()


@torch.inference_mode()
def rolled(avatar: Avatar, a: Side, true: np.ndarray, b: Side, user: np.ndarray, seed: int, own: bool) -> np.ndarray:
    """Motion latents (T, L) of whole blocks, each after the true ones or after its `own`."""
    space, size = avatar.denoiser.motion_space, avatar.denoiser.layout.block_frames
    sampler = BlockSampler(avatar.denoiser, space.to_model(torch.from_numpy(true[:1])), guidance=Guidance(1, 1))
    generator, made = torch.Generator().manual_seed(seed), []
    given = space.to_model(torch.from_numpy(true)[None])
    for condition in avatar._conditions(len(true), a.audio, b.audio, [user]):
        if condition.frames != size:
            break
        saved, start = sampler.saved(), size * len(made)
        made.append(sampler.step(condition, torch.randn(1, size, given.shape[2], generator=generator)))
        if not own:
            sampler.restore(saved)
            sampler.give(condition, given[:, start : start + size])
    return space.from_model(torch.cat(made, 1))[0].numpy()


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conversations", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=24)
    args = parser.parse_args()
    avatar = Avatar.load(shipped() / AUTOENCODER, shipped() / DENOISER)
    size = avatar.denoiser.layout.block_frames
    motions: dict[str, list[np.ndarray]] = {"true": [], "true past": [], "own past": []}
    faces = []
    for n in tqdm(range(args.conversations)):
        session = simulate([FIRST_SEED + n], SessionConfig(seconds=args.seconds))
        true, user = latents(avatar, session.a), latents(avatar, session.b)
        motions["true"].append(true)
        faces.append(session.a.face)
        for name, own in (("true past", False), ("own past", True)):
            motions[name].append(rolled(avatar, session.a, true, session.b, user, n, own))
    weights, offset = fit_ridge(np.concatenate(motions["true"]), np.concatenate(faces), 1e-4)

    def speed(name: str, parameter: str) -> float:
        """Median change from frame to frame within blocks."""
        changes = [np.abs(np.diff((m @ weights + offset)[:, FACE_INDEX[parameter]])) for m in motions[name]]
        return float(np.median(np.concatenate([c[np.arange(len(c)) % size != size - 1] for c in changes])))

    print("| speed, of the true one | true past | own past |\n| --- | ---: | ---: |")
    for parameter in ("yaw", "pitch", "roll", "scale", "smile"):
        cells = (f"{speed(name, parameter) / speed('true', parameter):.2f}" for name in ("true past", "own past"))
        print(f"| {parameter} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
