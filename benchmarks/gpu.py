"""What one GPU does, as one table: blocks of motion, decoding, latency, memory and training, eager and compiled, fp32 and
bf16; about five minutes.

  python -m benchmarks.gpu --markdown gpu.md            released sizes, on the GPU if there is one
  python -m benchmarks.gpu --smoke                      every row in the small, also on a CPU

Weights and inputs are random. A row that fails (out of memory, a compiler's error), or for which no time is left, says so
and the others go on. `share_of_peak` is the counted products' share of a square matrix product's best rate in the same
precision on the same card. With several GPUs the demo's denoiser is also trained on 2, 4, … of them.
"""

from __future__ import annotations

import argparse
import copy
import gc
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from af.cli.config import instantiate
from af.cli.kinds import number
from af.clock import FPS, frames_to_samples, frames_to_seconds
from af.devices import machine, synchronize
from af.evaluation import table as tables
from af.files import write_text
from af.forcing.graph import CapturedSampler
from af.forcing.guidance import Guidance
from af.metrics.latency import latency
from af.models.artifact import build
from af.models.denoiser import MotionDenoiser, for_inference
from af.models.discriminator import Discriminator
from af.models.speech import SpeechFeatures
from af.nn.kv_cache import WindowLayout
from af.nn.precision import PRECISIONS
from af.pipeline.avatar import Avatar
from af.pipeline.live import live_session
from af.pipeline.sampling import ONE_PASS
from af.training.denoiser import compile_denoiser
from af.training.flops import flops_of, matmul_gflops, seconds_of
from benchmarks.common import encoded_example, experiment, options, report
from benchmarks.rollout import Inputs, one_block, randomise, ready, resized
from benchmarks.training import autoencoder_speed, denoiser_speed, ranks, standardised
from benchmarks.vae import make

SAMPLING: Final[Mapping[str, Mapping[str, Any]]] = {"guided": {"steps": 8, "guidance": Guidance()}, "student": ONE_PASS}
BLOCKS: Final = (5, 10)
Numbers = dict[str, float]


@dataclass(frozen=True)
class Sizes:
    """What is measured."""

    denoiser: tuple[str, ...]  # experiment and overrides
    autoencoders: Mapping[int, tuple[str, ...]]  # by image size
    users: tuple[int, ...]
    decoded: int  # frames
    windows: int  # of a training step
    pairs: int
    seconds: float  # a row
    peak: int | None  # side of the matrix product
    compiler: str


RELEASED: Final = Sizes(
    ("denoiser_paper", "data.root=x"),
    {size: ("vae_demo", f"model/autoencoder@model={name}") for size, name in {256: "base256", 512: "released512"}.items()},
    users=(1, 8, 32), decoded=10, windows=32, pairs=8, seconds=1.0, peak=None, compiler="inductor",
)  # fmt: skip
SMOKE: Final = Sizes(
    ("denoiser_paper", "data.root=x", "features=logmel", "model.hidden=16", "model.depth=2", "model.heads=2",
     "model.condition_dim=16", "model.condition_heads=2", "model.motion_space.latent_dim=16",
     "model.motion_space.directions=6"),
    {32: ("vae_demo", "model.image_size=32", "model.latent_dim=16", "model.directions=6", "model.channel_base=64",
          "model.max_channels=8")},
    users=(2,), decoded=2, windows=2, pairs=1, seconds=0.0, peak=256, compiler="eager",
)  # fmt: skip


class Rows:
    """Rows as they are measured on `device`, until `end` (of `time.monotonic`)."""

    def __init__(self, device: torch.device, end: float) -> None:
        self.device, self.end = device, end
        self.rows: list[dict[str, Any]] = []

    def row(self, work: Callable[[], Numbers], **about: Any) -> Numbers:
        """Measure a row; `work` returns its numbers. A row that fails says why, and has none."""
        numbers: Numbers = {}
        failure = "" if time.monotonic() < self.end else "not measured: no time left (--minutes)"
        if not failure:
            gpu = self.device.type == "cuda"
            self.release()
            if gpu:
                torch.cuda.reset_peak_memory_stats(self.device)
            try:
                numbers = work()
                if gpu:
                    numbers["peak_gb"] = torch.cuda.max_memory_allocated(self.device) / 1e9
            except Exception as error:
                failure = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"[:200]
        self.rows.append({**about, **numbers, **({"failure": failure} if failure else {})})
        print(" ".join(map(str, about.values())), failure or "", file=sys.stderr, flush=True)
        return numbers

    def release(self) -> None:
        """Give back what the row before has left."""
        gc.collect()
        torch.compiler.reset()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def variants(sizes: Sizes) -> Iterator[tuple[str, str, dict[str, Any] | None]]:
    """(precision, "eager" or "compiled", options of `torch.compile`), the compiled ones last."""
    for how, compile in (("eager", None), ("compiled", {"backend": sizes.compiler})):
        for precision in PRECISIONS:
            yield precision, how, compile


def denoiser_of(sizes: Sizes, device: torch.device) -> tuple[MotionDenoiser, dict[str, Any]]:
    """The denoiser with random weights of a trained one's size, and the configuration of its speech features."""
    config = experiment(*sizes.denoiser)
    denoiser = standardised(instantiate(config["model"])).eval()
    with torch.no_grad():
        randomise(denoiser, torch.Generator().manual_seed(0))
    return denoiser.to(device), config["features"]


def motion_rows(table: Rows, sizes: Sizes, denoiser: MotionDenoiser, peaks: Numbers) -> None:
    """A block of motion for one user and many, its commit included; the streams that keep up if nothing else runs."""

    @torch.inference_mode()
    def measured(
        precision: str, how: str, compile: dict[str, Any] | None, users: int, sampling: Mapping[str, Any]
    ) -> Numbers:
        model = for_inference(denoiser, precision)
        inputs = Inputs(model, torch.Generator().manual_seed(0), users)
        frames, sampler = model.layout.block_frames, ready(model, inputs, **sampling)
        given = inputs.block(frames)
        work = flops_of(lambda: one_block(sampler, *given))
        step: Callable[..., torch.Tensor] = partial(one_block, sampler)
        if how == "graph":
            step = CapturedSampler(sampler).step
        elif compile is not None:
            compile_denoiser(model, **compile)
        seconds = statistics.median(seconds_of(lambda: step(*given), sizes.seconds, table.device))
        share = work / seconds / 1e9 / peaks[precision]
        streams = users * frames_to_seconds(frames) / seconds
        return {"ms_per_block": 1000 * seconds, "streams": streams, "share_of_peak": share}

    graphs = [(precision, "graph", None) for precision in PRECISIONS]
    for precision, how, compile in [*graphs, *variants(sizes)]:
        for name, sampling in SAMPLING.items():
            for users in sizes.users:
                table.row(
                    partial(measured, precision, how, compile, users, sampling),
                    part="block", what=name, precision=precision, how=how, batch=users,
                )  # fmt: skip


def decode_rows(table: Rows, sizes: Sizes, configs: Mapping[int, Any], peaks: Numbers) -> None:
    """Decoded frames a second of one portrait."""

    @torch.inference_mode()
    def measured(config: Mapping[str, Any], precision: str, compile: dict[str, Any] | None) -> Numbers:
        autoencoder, images, motion = make(config, sizes.decoded, table.device)
        with torch.autocast(table.device.type, torch.bfloat16, enabled=precision == "bf16"):
            identity = autoencoder.identity(images[:1])
            work = flops_of(lambda: autoencoder.decode(identity, motion))
            if compile is not None:
                autoencoder.decoder.compile(**compile)
            measured = seconds_of(lambda: autoencoder.decode(identity, motion), sizes.seconds, table.device)
        seconds = statistics.median(measured)
        share = work / seconds / 1e9 / peaks[precision]
        return {"fps": sizes.decoded / seconds, "streams": sizes.decoded / seconds / FPS, "share_of_peak": share}

    for precision, how, compile in variants(sizes):
        for size, config in configs.items():
            table.row(
                partial(measured, config, precision, compile),
                part="decode", what=f"{size} px", precision=precision, how=how, batch=sizes.decoded,
            )  # fmt: skip


def latency_rows(table: Rows, configs: Mapping[int, Any], denoiser: MotionDenoiser, features: dict[str, Any]) -> None:
    """From a change of the user's face to the first frame that can show it: waiting, encoding, features, motion and
    decoding that frame, without a network in between.
    """
    size, config = min(configs.items())

    @torch.inference_mode()
    def measured(precision: str, block: int, sampling: Mapping[str, Any], folder: str) -> Numbers:
        autoencoder, images, _ = make(config, 1, table.device)
        layout = WindowLayout(block, denoiser.layout.look_ahead, denoiser.layout.window_frames, 2)
        model = resized(for_inference(denoiser, precision), layout, denoiser.mask)
        avatar = Avatar(autoencoder, model, speech({**features, "block_frames": block}, folder))
        identity, reference = autoencoder.identity(images), autoencoder.motion(images, check=False)
        session = live_session(avatar, reference, generator=torch.Generator().manual_seed(0), **sampling)
        rng = np.random.default_rng(0)
        face = rng.integers(0, 256, (1, size, size, 3), dtype=np.uint8)
        sound = (0.1 * rng.standard_normal(frames_to_samples(1))).astype(np.float32)
        full = -(-layout.window_frames // block)
        computing: list[float] = []
        while len(computing) < full + 5:
            start = time.perf_counter()
            for made in session.push(avatar_audio=sound, user_audio=sound, user_frames=face):
                with torch.autocast(table.device.type, torch.bfloat16, enabled=precision == "bf16"):
                    autoencoder.decode(identity, made.motion[:, :1])
                synchronize(table.device)
                computing.append(1000 * (time.perf_counter() - start))
        found = latency(block, computing[full:])
        return {"latency_ms": found.mean_ms, "worst_ms": found.worst_ms, "computing_ms": found.computing_mean_ms}

    with tempfile.TemporaryDirectory() as folder:
        for precision in PRECISIONS:
            for name, sampling in SAMPLING.items():
                for block in BLOCKS:
                    table.row(
                        partial(measured, precision, block, sampling, folder),
                        part="latency", what=f"{name}, blocks of {block}, {size} px", precision=precision, how="eager",
                        batch=1,
                    )  # fmt: skip


def speech(config: dict[str, Any], folder: str) -> SpeechFeatures:
    """The speech features of `config`; wav2vec 2.0 with random weights."""
    if "wav2vec2" in str(config.get("checkpoint")):
        from transformers import Wav2Vec2Config, Wav2Vec2Model

        if not (place := Path(folder) / "wav2vec2").is_dir():
            Wav2Vec2Model(Wav2Vec2Config()).save_pretrained(place)
        config = {**config, "checkpoint": str(place)}
    return build(config, "features", any_class=True)


def training_rows(
    table: Rows, sizes: Sizes, configs: Mapping[int, Any], denoiser: MotionDenoiser, features: int
) -> None:
    """Training steps of every stage."""
    size, config = min(configs.items())

    def of_windows(stage: str, dtype: torch.dtype, compile: dict[str, Any] | None) -> Numbers:
        model = copy.deepcopy(denoiser).train()
        speed = denoiser_speed(model, sizes.windows, features, sizes.seconds, dtype, stage, compile)
        return {"samples_per_s": speed.items_per_second, "share_of_peak": speed.share_of_matmul_peak}

    def of_images(adversarial: bool, dtype: torch.dtype, compile: dict[str, Any] | None) -> Numbers:
        autoencoder = make(config, 1, table.device)[0].train().requires_grad_(True)
        judge = Discriminator(size, channel_base=config["channel_base"]).to(table.device) if adversarial else None
        speed = autoencoder_speed(autoencoder, sizes.pairs, sizes.seconds, dtype, judge, compile)
        return {"samples_per_s": speed.items_per_second, "share_of_peak": speed.share_of_matmul_peak}

    for precision, how, compile in variants(sizes):
        dtype = PRECISIONS[precision]
        about = {"precision": precision, "how": how}
        for stage in ("denoiser", "distill", "preference"):
            table.row(
                partial(of_windows, stage, dtype, compile),
                part="training", what=stage, batch=sizes.windows, **about,
            )  # fmt: skip
        for name, adversarial in ((f"vae {size} px", False), (f"vae {size} px, discriminator", True)):
            table.row(
                partial(of_images, adversarial, dtype, compile),
                part="training", what=name, batch=2 * sizes.pairs, **about,
            )  # fmt: skip


def rank_rows(table: Rows) -> None:
    """The demo's denoiser on 2, 4, … GPUs."""
    counts = [n for n in (2, 4, 8, 16) if table.device.type == "cuda" and n <= torch.cuda.device_count()]
    if counts:
        with tempfile.TemporaryDirectory() as folder:
            latents = encoded_example(Path(folder))
            for n in counts:
                place = Path(folder) / str(n)
                table.row(
                    partial(ranks, n, latents, place, rounds=1, accelerator="gpu"),
                    part="ranks", what="demo's denoiser", precision="fp32", how="eager", batch=16 * n,
                )  # fmt: skip


def measure(device: torch.device, sizes: Sizes, minutes: float) -> dict[str, Any]:
    """All rows, with the card and versions."""
    table = Rows(device, time.monotonic() + 60 * minutes)
    peaks: Numbers = {}

    def peak(dtype: torch.dtype) -> Numbers:
        return {"tflops": matmul_gflops(dtype, sizes.peak, sizes.seconds, device) / 1e3}

    for precision, dtype in PRECISIONS.items():
        found = table.row(
            partial(peak, dtype),
            part="peak", what="square matrix product", precision=precision, how="eager", batch=1,
        )  # fmt: skip
        peaks[precision] = 1e3 * found.get("tflops", float("nan"))
    denoiser, features = denoiser_of(sizes, device)
    motion_rows(table, sizes, denoiser, peaks)
    configs = {size: experiment(*words)["model"] for size, words in sizes.autoencoders.items()}
    decode_rows(table, sizes, configs, peaks)
    latency_rows(table, configs, denoiser, features)
    training_rows(table, sizes, configs, denoiser, features["dim"])
    rank_rows(table)
    return {"card": card(device), "rows": table.rows}


def card(device: torch.device) -> dict[str, Any]:
    """The device, and the versions that its speed depends on."""
    found = {"name": machine()["processor"], "af": version("avatar-forcing"), "python": platform.python_version()}
    if device.type == "cuda":
        about = torch.cuda.get_device_properties(device)
        found |= {"name": about.name, "memory_gb": about.total_memory / 1e9, "cuda": torch.version.cuda}
        found |= {"cudnn": torch.backends.cudnn.version(), "gpus": torch.cuda.device_count()}
    return found


def markdown(result: Mapping[str, Any]) -> str:
    """The rows as a table under the card's name."""
    known = ("part", "what", "precision", "how", "batch")
    names = list(dict.fromkeys(key for row in result["rows"] for key in row if key not in (*known, "failure")))
    about = ", ".join(f"{key} {value}" for key, value in result["card"].items() if key != "name")
    lines = [
        [str(row[key]) for key in known]
        + [f"{row[key]:.3g}" if key in row else "" for key in names]
        + [row.get("failure", "").replace("|", "/")]
        for row in result["rows"]
    ]
    title = f"**{result['card']['name']}** (torch {torch.__version__}, {about})\n\n"
    return title + tables.markdown([*known, *names, "failure"], lines, (0, 1, 2, 3, 5 + len(names)))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = options("gpu", __doc__)
    parser.add_argument("--smoke", action="store_true", help="small sizes, in seconds; nothing to compare")
    parser.add_argument("--minutes", type=number(float, above=0), default=5.0, help="no row begins later (default 5)")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write the table")

    def found(args: argparse.Namespace) -> dict[str, Any]:
        result = measure(args.device, SMOKE if args.smoke else RELEASED, args.minutes)
        if args.markdown:
            write_text(args.markdown, markdown(result))
        return result

    return report(parser, found, arguments)


if __name__ == "__main__":
    sys.exit(main())
