"""Decoding and encoding speed of the motion autoencoder, against per-sample weights in grouped convolutions.

The baseline computes the same function the way StyleGAN2-style decoders are usually written: it modulates and
demodulates a weight for every frame, convolves all frames at once with one group a frame, blurs channel by channel and
gives every frame its own copy of the portrait's features. It lives here only, to be compared with.

  python -m benchmarks.vae                              the demo's autoencoder
  python -m benchmarks.vae --size released --threads 2  the released one, 45 M parameters at 512 px: about a minute

Measured on the CPU. The memory figures are what the work adds to a loaded model, in MiB.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import psutil
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from af.cli.kinds import number
from af.models.artifact import build
from af.models.autoencoder import MotionAutoencoder
from af.models.decoder import DecoderLevel
from af.nn.equalized import GAIN, SLOPE
from af.nn.modulated import StyledConv
from af.nn.resample import blur_kernel
from af.nn.warp import base_grid
from af.training.flops import seconds_of
from af.types import Identity
from benchmarks.common import experiment, options, report

#: Names of model/autoencoder.
SIZES: Final = {"small": "demo", "released": "released512"}


def measure(
    model: Mapping[str, Any], frames: int = 10, precision: str = "fp32", seconds: float = 10.0
) -> dict[str, Any]:
    """Frames a second and peak memory of the autoencoder described by `model` (`{"_target_": ..., sizes}`).

    Each form runs in a process of its own, so that its peak memory is its own. `precision` is fp32 or bf16 (autocast);
    the baseline is always fp32.
    """
    ours = _apart(_speeds, model, frames, precision, seconds, False)
    baseline = _apart(_speeds, model, frames, "fp32", seconds, True)
    return {
        "frames": frames,
        "image_size": model["image_size"],
        "precision": precision,
        **ours,
        **{f"baseline_{name}": value for name, value in baseline.items()},
        "decode_speedup": ours["decode_frames_per_s"] / baseline["decode_frames_per_s"],
        "decode_memory_ratio": ours["decode_peak_mib"] / baseline["decode_peak_mib"],
        "difference_from_baseline": _apart(_difference, model, min(frames, 2)),
    }


def _apart(function: Callable[..., Any], *arguments: Any) -> Any:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, (*arguments, torch.get_num_threads()))


def _make(model: Mapping[str, Any], frames: int, threads: int) -> tuple[MotionAutoencoder, Tensor, Tensor]:
    torch.set_num_threads(threads)
    torch.manual_seed(0)  # a process of its own
    return make(model, frames)


def make(
    model: Mapping[str, Any], frames: int, device: torch.device | str = "cpu"
) -> tuple[MotionAutoencoder, Tensor, Tensor]:
    """An autoencoder with random weights, images and motion."""
    autoencoder: MotionAutoencoder = build(model).eval().requires_grad_(False).to(device)
    for level in _levels(autoencoder):
        level.flow.weight.normal_(std=0.05)  # so that the warp moves something
    size = autoencoder.image_size
    images = torch.rand(frames, 3, size, size, device=device) * 2 - 1
    return autoencoder, images, torch.randn(1, frames, autoencoder.latent_dim, device=device)


def _levels(model: MotionAutoencoder) -> list[DecoderLevel]:
    return list(model.decoder.levels.values())  # type: ignore[arg-type]


def _speeds(
    model: Mapping[str, Any], frames: int, precision: str, seconds: float, baseline: bool, threads: int
) -> dict[str, float]:
    autoencoder, images, motion = _make(model, frames, threads)
    decode = per_sample_decode if baseline else MotionAutoencoder.decode
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        identity = autoencoder.identity(images[:1])
        per_decode, peak = _time(lambda: decode(autoencoder, identity, motion), seconds)
        result = {"decode_frames_per_s": frames / per_decode, "decode_peak_mib": peak}
        if not baseline:
            per_encode, peak = _time(lambda: autoencoder.coefficients(images), seconds)
            result |= {"encode_frames_per_s": frames / per_encode, "encode_peak_mib": peak}
    return result


def _difference(model: Mapping[str, Any], frames: int, threads: int) -> float:
    autoencoder, images, motion = _make(model, frames, threads)
    with torch.inference_mode():
        identity = autoencoder.identity(images[:1])
        ours, theirs = autoencoder.decode(identity, motion), per_sample_decode(autoencoder, identity, motion)
        return (ours - theirs).abs().mean().item()


def _time(work: Callable[[], object], seconds: float) -> tuple[float, float]:
    """(best seconds a call, MiB of resident memory added at the peak)."""
    process, stop, peak = psutil.Process(), threading.Event(), [0]
    before = process.memory_info().rss

    def watch() -> None:
        while not stop.wait(0.005):
            peak[0] = max(peak[0], process.memory_info().rss - before)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    best = min(seconds_of(work, seconds))
    stop.set()
    watcher.join()
    return best, peak[0] / 2**20


def per_sample_decode(
    model: MotionAutoencoder, identity: Identity, motion: Float[Tensor, "1 T D"]
) -> Float[Tensor, "1 T 3 Y X"]:
    """`MotionAutoencoder.decode` of one portrait in the baseline form: all frames at once, a weight for each."""
    code = identity.code + motion[0]
    features = [maps.contiguous().repeat_interleave(len(code), 0) for maps in identity.features]
    x = _styled(model.decoder.conv, model.decoder.constant.contiguous().expand(len(code), -1, -1, -1), code)
    flow = rgb = None
    for level, maps in zip(_levels(model), features, strict=True):
        x = _styled(level.conv, _styled(level.up, x, code), code)
        weight = level.flow.weight * level.flow.modulation(code)[:, None]  # (T, 3, I)
        raw = _grouped(x, weight[..., None, None]) + level.flow.bias[:, None, None]
        flow = raw if flow is None else raw + _up(flow)
        grid = base_grid(x.shape[-1]) + torch.tanh(flow[:, :2]).permute(0, 2, 3, 1)
        mask = torch.sigmoid(flow[:, 2:])
        warped = F.grid_sample(maps, grid, align_corners=False) * mask
        x = warped + x * (1 - mask)
        colours = F.conv2d(x if level.paint else warped, level.rgb.weight * level.rgb.scale / GAIN)
        colours = F.leaky_relu(colours + level.rgb_inner_bias[:, None, None], SLOPE) * GAIN
        colours = colours + level.rgb_bias[:, None, None]
        rgb = colours if rgb is None else colours + _up(rgb)
    return rgb[None]  # type: ignore[index]


def _styled(layer: StyledConv, x: Tensor, code: Tensor) -> Tensor:
    style = layer.style(code)
    weight = (layer.weight.transpose(0, 1) if layer.up else layer.weight)[None] * layer.scale
    weight = weight * style[:, None, :, None, None]  # (T, O, I, 3, 3)
    weight = weight * torch.rsqrt(weight.square().sum((2, 3, 4), keepdim=True) + layer.eps)
    if layer.up:
        count, outputs, inputs = weight.shape[:3]
        weight = weight.transpose(1, 2).reshape(count * inputs, outputs, 3, 3)
        y = F.conv_transpose2d(x.reshape(1, -1, *x.shape[2:]), weight, stride=2, groups=count)
        y = _filter(y.view(count, outputs, *y.shape[2:]), (1, 1), 4.0)
    else:
        y = _grouped(x, weight, padding=1)
    return F.leaky_relu(y + layer.bias[:, None, None], SLOPE) * GAIN


def _grouped(x: Tensor, weight: Float[Tensor, "T O I k k"], padding: int = 0) -> Tensor:
    count, outputs = weight.shape[:2]
    y = F.conv2d(x.reshape(1, -1, *x.shape[2:]), weight.flatten(0, 1), padding=padding, groups=count)
    return y.view(count, outputs, *y.shape[2:])


def _filter(x: Tensor, padding: tuple[int, int], gain: float) -> Tensor:
    planes = F.pad(x.reshape(-1, 1, *x.shape[2:]), (*padding, *padding))
    y = F.conv2d(planes, blur_kernel(gain))
    return y.view(*x.shape[:2], *y.shape[2:])


def _up(x: Tensor) -> Tensor:
    inserted = x.new_zeros(*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3])
    inserted[:, :, ::2, ::2] = x
    return _filter(inserted, (2, 1), 4.0)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = options("vae", __doc__, accelerator=False)
    parser.add_argument("--size", default="small", choices=SIZES, help="small (default) or released")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"), help="of our form (default fp32)")
    parser.add_argument(
        "--seconds", type=number(float, above=0), default=10.0, help="how long each form is measured (default 10)"
    )

    def found(args: argparse.Namespace) -> dict[str, Any]:
        model = experiment("vae_demo", f"model/autoencoder@model={SIZES[args.size]}")["model"]
        return {"size": args.size, **measure(model, precision=args.precision, seconds=args.seconds)}

    return report(parser, found, arguments)


if __name__ == "__main__":
    sys.exit(main())
