"""What a live block of 0.2 s costs by image size, part by part: the user's face, hearing, motion and images.

  python -m benchmarks.laptop                 64, 128 and 256 px, full and light decoders; some minutes
  python -m benchmarks.laptop --only 256      what has "256" in its name

Random weights; the denoiser has the size of the demo's and makes a block in one pass, like a student. `light` decoders are
those of `experiment=vae_light`. Every avatar runs on torch in fp32 and on ONNX Runtime, in turn in one process; times are
medians. `frames_a_second` is of all parts together, and `share_of_real_time` what they take of the time that they show.
`limit_ms` is the time of their products alone at the rate of this machine's best matrix product, of torch in fp32.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from af.cli.config import instantiate
from af.cli.kinds import count
from af.clock import frames_to_samples, frames_to_seconds
from af.images import to_bytes
from af.models.artifact import Artifact, load_model, save_model
from af.models.autoencoder import MotionAutoencoder
from af.models.motion_space import MotionStatistics
from af.pipeline.encode import motion_spec_of
from af.pipeline.live import live_session, speech_stream, user_encoder
from af.pipeline.sampling import ONE_PASS
from af.share.onnx_avatar import live_avatar
from af.training.flops import flops_of, matmul_gflops
from benchmarks.common import experiment, options, report
from benchmarks.rollout import randomise

#: Overrides of an autoencoder's experiment, and the channel base of its light decoder.
AVATARS: Final[Mapping[str, tuple[tuple[str, ...], int | None]]] = {
    "64 px": (("model/autoencoder@model=demo",), None),
    "128 px": (("model/autoencoder@model=small128",), None),
    "128 px, light": (("model/autoencoder@model=small128",), 2048),
    "256 px": (("model/autoencoder@model=small256",), None),
    "256 px, light": (("model/autoencoder@model=small256",), 2048),
    "256 px, released widths": (("model/autoencoder@model=base256",), None),
    "256 px, released widths, light": (("model/autoencoder@model=base256",), 2048),
}
PARTS: Final = ("face", "hearing", "motion", "images")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """A row for every avatar and runtime."""
    peak = matmul_gflops()
    rows = []
    for name, (overrides, light) in AVATARS.items():
        if args.only is None or args.only in name:
            with tempfile.TemporaryDirectory() as place:
                images, motion = made(Path(place), overrides, light)
                rows += [{"avatar": name, **row} for row in compared(images, motion, args, peak)]
            print(*rows[-2:], sep="\n", file=sys.stderr, flush=True)
    return {"matmul_gflops": peak, "rows": rows}


def made(place: Path, overrides: Sequence[str], light: int | None) -> tuple[Artifact, Artifact]:
    """An autoencoder and a denoiser for it, with random weights."""
    config = experiment("vae_demo", *overrides)["model"] | {"light": light}
    digest = save_model(place / "autoencoder", instantiate(config), config, {"stage": "vae"})
    images = load_model(place / "autoencoder", MotionAutoencoder)
    assert isinstance(images.model, MotionAutoencoder)
    width = config["latent_dim"]
    demo = experiment("denoiser_demo", f"model.motion_space.latent_dim={width}")
    denoiser, features = instantiate(demo["model"]), instantiate(demo["features"])
    basis, size = images.model.directions(), denoiser.motion_space.directions
    denoiser.motion_space.fit(MotionStatistics(torch.zeros(size), torch.eye(size), basis.detach()))
    with torch.no_grad():
        randomise(denoiser, torch.Generator().manual_seed(0))
    specs = {"feature_spec": features.spec.to_json(), "motion_spec": motion_spec_of(images.model, digest).to_json()}
    save_model(place / "denoiser", denoiser, demo["model"], {"stage": "distill", "features": demo["features"], **specs})
    return images, load_model(place / "denoiser")


def compared(images: Artifact, motion: Artifact, args: argparse.Namespace, peak: float) -> list[dict[str, Any]]:
    """Torch and ONNX Runtime on the same signals, block by block in turn."""
    avatars = {
        kind: live_avatar(images, motion, ONE_PASS, runtime=kind, threads=args.threads) for kind in ("torch", "onnx")
    }
    blocks = {kind: _Block(avatar) for kind, avatar in avatars.items()}
    spent: dict[str, dict[str, list[float]]] = {kind: {part: [] for part in PARTS} for kind in avatars}
    for _ in range(args.blocks):
        for kind, block in blocks.items():
            for part, work in block.parts().items():
                start = time.perf_counter()
                work()
                spent[kind][part].append(time.perf_counter() - start)
    flops = sum(flops_of(work) for work in blocks["torch"].parts().values())
    rows = []
    for kind, times in spent.items():
        ms = {part: 1000 * statistics.median(seconds[args.blocks // 3 :]) for part, seconds in times.items()}
        ms["motion"] -= ms["hearing"]  # which the session does itself
        total, frames = sum(ms.values()), blocks[kind].frames
        rows.append(
            {
                "runtime": kind,
                **{f"{part}_ms": round(value, 2) for part, value in ms.items()},
                "block_ms": round(total, 2),
                "frames_a_second": round(1000 * frames / total, 1),
                "share_of_real_time": round(total / 1000 / frames_to_seconds(frames), 3),
                "limit_ms": round(flops / peak / 1e6, 2),
            }
        )
    return rows


class _Block:
    """One block of a conversation after another, its parts one by one."""

    def __init__(self, avatar: Any) -> None:
        self.avatar, size = avatar, avatar.autoencoder.image_size
        rng = np.random.default_rng(0)
        self.image = rng.integers(0, 256, (size, size, 3), np.uint8)
        self.identity, self.reference = avatar.identity(self.image)
        self.encode = user_encoder(avatar)
        self.speech = speech_stream(avatar.features)
        self.frames = avatar.denoiser.layout.block_frames
        self.session = live_session(avatar, self.reference, encode_user=lambda _: self.reference[0], **ONE_PASS)
        self.sound = rng.standard_normal(frames_to_samples(self.frames)).astype(np.float32) / 10
        self.latents = self.reference[:, None].repeat(1, self.frames, 1)
        window = torch.zeros(1, frames_to_samples(avatar.features.spec.window_frames))
        self.window = window + torch.from_numpy(np.resize(self.sound, window.shape[1]))

    def parts(self) -> dict[str, Callable[[], object]]:
        """The parts; a push to the session hears, too."""
        signals = {"avatar_audio": self.sound, "user_audio": self.sound, "user_frames": [self.image] * self.frames}

        def images() -> object:
            with torch.no_grad():
                return to_bytes(self.avatar.autoencoder.decode(self.identity, self.latents))

        return {
            "face": lambda: [self.encode(self.image) for _ in range(self.frames)],
            "hearing": lambda: [self.avatar.features.block(self.window) for _ in range(2)],
            "motion": lambda: self.session.push(**signals),
            "images": images,
        }


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the rows as JSON."""
    parser = options("laptop", __doc__, accelerator=False)
    parser.add_argument("--only", metavar="TEXT", help="avatars with this in their name")
    parser.add_argument("--blocks", type=count, default=30, help="blocks to measure (30)")
    return report(parser, measure, arguments)


if __name__ == "__main__":
    sys.exit(main())
