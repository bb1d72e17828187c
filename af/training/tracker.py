"""Training and testing the tracker of synthetic faces, on new people, wide ranges and degraded images."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor
from torch.nn import functional as F

from af.images import image_array, image_tensor, to_bytes, to_float
from af.metrics.arrays import r_squared
from af.models.tracker import IMAGE_SIZE, FaceTracker
from af.nn.precision import choose
from af.synth.appearance import Appearance
from af.synth.face import FACE_INDEX, FACE_NAMES, FACE_RANGES, FACE_SPEC
from af.synth.render import render
from af.synth.session import simulate

_FRAMES_A_PERSON = 32
_BUFFER = 16_384  # rendered frames to sample from; one person's frames are replaced per step
_BATCH = 128
_RATE = 3e-3
_LOW = np.array([FACE_RANGES[name][0] for name in FACE_NAMES], np.float32)
_HIGH = np.array([FACE_RANGES[name][1] for name in FACE_NAMES], np.float32)
# Typical movement of each parameter in conversations, as the unit of errors.
_SPREAD = np.array([0.25, 0.3, 0.3, 0.3, 0.3, 0.4, 0.4, 0.15, 0.1, 0.12, 0.02, 0.02, 0.05], np.float32)


def wide_faces(rng: np.random.Generator, frames: int) -> Float32[np.ndarray, "T P"]:
    """Independent parameters over their full ranges; many faces have open eyes, shut mouths or no smile."""
    face = rng.uniform(_LOW, _HIGH, (frames, len(FACE_NAMES))).astype(np.float32)
    for name, rate in (("blink", 0.5), ("mouth_open", 0.25), ("smile", 0.3), ("mouth_width", 0.2)):
        face[rng.uniform(size=frames) < rate, FACE_INDEX[name]] = 0
    return face


def conversation_faces(rng: np.random.Generator, frames: int) -> Float32[np.ndarray, "T P"]:
    """Parameters as in a conversation, slightly spread out."""
    session = simulate(int(rng.integers(1 << 40)), voices=False)
    face = session.side("ab"[int(rng.integers(2))]).face
    chosen = face[rng.integers(len(face), size=frames)]
    moved = chosen + rng.normal(0, 0.25, chosen.shape).astype(np.float32) * _SPREAD
    moved[:, FACE_INDEX["blink"]] = chosen[:, FACE_INDEX["blink"]]
    return np.clip(moved, _LOW, _HIGH)


def draw(rng: np.random.Generator) -> tuple[UInt8[np.ndarray, "T Y X 3"], Float32[np.ndarray, "T P"]]:
    """Frames of a new person and their parameters, half from `wide_faces`, half from a conversation."""
    half = _FRAMES_A_PERSON // 2
    face = np.concatenate([wide_faces(rng, half), conversation_faces(rng, half)])
    return render(face, Appearance.sample(rng), IMAGE_SIZE), face


def degrade(images: Float[Tensor, "B 3 Y X"], generator: torch.Generator) -> Float[Tensor, "B 3 Y X"]:
    """Degrade images like generation or compression: colour shift, blur, lost detail, block artefacts, noise.

    Images in [-1, 1]; each is degraded independently, some hardly at all.
    """
    count = len(images)

    def uniform(low: float, high: float, *shape: int, n: int = count) -> Tensor:
        return torch.rand(n, *shape, generator=generator) * (high - low) + low

    def some(probability: float) -> Tensor:
        return torch.nonzero(torch.rand(count, generator=generator) < probability).flatten()

    images = images * uniform(0.9, 1.1, 3, 1, 1) * uniform(0.88, 1.12, 1, 1, 1) + uniform(-0.08, 0.08, 3, 1, 1)
    if len(chosen := some(0.6)):
        sharp = smooth = images[chosen]
        for _ in range(2):
            smooth = F.avg_pool2d(F.pad(smooth, (1, 1, 1, 1), mode="replicate"), 3, 1)
        images[chosen] = torch.lerp(sharp, smooth, uniform(0, 0.9, 1, 1, 1, n=len(chosen)))
    if len(chosen := some(0.3)):
        sharp = images[chosen]
        small = F.interpolate(sharp, scale_factor=0.5, mode="area")
        small = F.interpolate(small, sharp.shape[-2:], mode="bilinear", align_corners=False)
        images[chosen] = torch.lerp(sharp, small, uniform(0.2, 0.9, 1, 1, 1, n=len(chosen)))
    if len(chosen := some(0.2)):
        images[chosen] = _requantised(images[chosen], uniform(0.02, 0.15, 1, 1, 1, n=len(chosen)))
    if len(chosen := some(0.25)):
        noise = torch.randn(images[chosen].shape, generator=generator)
        images[chosen] += uniform(0, 0.04, 1, 1, 1, n=len(chosen)) * noise
    return images.clamp(-1, 1)


def _requantised(images: Tensor, step: Tensor) -> Tensor:
    """Images after rounding the cosine transform of their 8×8 blocks, coarser for higher frequencies."""
    n = torch.arange(8, dtype=torch.float32)
    basis = torch.cos(torch.pi / 8 * (n + 0.5) * n[:, None]) * 0.5
    basis[0] /= 2**0.5
    count, channels, height, width = images.shape
    blocks = images.reshape(count, channels, height // 8, 8, width // 8, 8).transpose(3, 4)
    step = step.reshape(-1, 1, 1, 1, 1, 1) * (0.5 + 0.25 * (n[:, None] + n))
    spectrum = basis @ blocks @ basis.T
    rounded = torch.round(spectrum / step) * step
    return (basis.T @ rounded @ basis).transpose(3, 4).reshape(count, channels, height, width)


def train_tracker(
    out: Path,
    *,
    steps: int = 4000,
    seed: int = 0,
    version: str = "1",
    device: torch.device | str = "cpu",
    advance: Callable[[Tensor], None] = lambda loss: None,
) -> None:
    """Train on `device` and write the weights to `out`. `advance` is called at every step with the loss tensor.

    Images are drawn and degraded during training; each is used a few times before it is replaced.
    """
    rng = np.random.default_rng([seed, 1])
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = FaceTracker(FACE_SPEC.names, FACE_SPEC.expression, version).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.spread.copy_(torch.from_numpy(_SPREAD))
    model.centre.copy_(torch.tensor([0.0 if low < 0 else 0.2 for low in _LOW]))
    model.to(device)
    spread = model.spread.clone()  # a generator for the data, independent of the model's
    optimizer = torch.optim.AdamW(model.parameters(), lr=_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: min(1.0, (i + 1) / (0.05 * steps + 1)) * (0.5 + 0.5 * math.cos(math.pi * i / steps))
    )
    dtype = choose("auto", device).dtype
    images = torch.empty((_BUFFER, 3, IMAGE_SIZE, IMAGE_SIZE), dtype=torch.uint8, memory_format=torch.channels_last)
    faces = torch.empty((_BUFFER, len(FACE_NAMES)))
    place = held = 0
    for _ in range(steps):
        for _ in range(1 if held else 1 + _BATCH // _FRAMES_A_PERSON):
            frames, face = draw(rng)
            here = slice(place, place + _FRAMES_A_PERSON)
            images[here] = to_bytes(degrade(image_tensor(frames), generator))
            faces[here] = torch.from_numpy(face)
            place = here.stop % _BUFFER
            held = min(held + _FRAMES_A_PERSON, _BUFFER)
        rows = torch.from_numpy(rng.integers(held, size=_BATCH))
        seen, true = (kept[rows].to(device, non_blocking=True) for kept in (images, faces))
        with torch.autocast(torch.device(device).type, dtype, enabled=dtype != torch.float32):
            predicted = model(to_float(seen).contiguous(memory_format=torch.channels_last))
        loss = tracking_loss(predicted, true, spread)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        advance(loss.detach())
    model.eval().cpu().save(out)


def tracking_loss(
    predicted: Float[Tensor, "B P"], true: Float[Tensor, "B P"], spread: Float[Tensor, " P"]
) -> Float[Tensor, ""]:
    """Huber loss of the errors in units of the usual movement (`spread`), without the invisible gaze of shut eyes."""
    error = (predicted - true) / spread
    weight = torch.ones_like(error)
    seen = (1 - 1.4 * true[:, FACE_INDEX["blink"]]).clamp(min=0)
    weight[:, FACE_INDEX["gaze_x"]] = seen
    weight[:, FACE_INDEX["gaze_y"]] = seen
    return (weight * F.huber_loss(error, torch.zeros_like(error), reduction="none", delta=0.5)).mean()


def check_tracker(
    tracker: FaceTracker, *, people: int = 100, frames_each: int = 20, seed: int = 0
) -> dict[str, Float[np.ndarray, " P"]]:
    """R² per parameter on held-out people (with other seeds than training), from `frames_each` frames per person.

    Keys are "clean" and "degraded" (conversations as rendered and after `degrade`) and "wide" (full ranges, clean).
    """
    rng = np.random.default_rng([seed, 2])
    generator = torch.Generator().manual_seed(seed)
    true, found = defaultdict[str, list[np.ndarray]](list), defaultdict[str, list[np.ndarray]](list)
    for _ in range(people):
        person = Appearance.sample(rng)
        session = simulate(int(rng.integers(1 << 40)), voices=False)
        face = session.a.face[np.sort(rng.choice(session.frames, frames_each, replace=False))]
        images = render(face, person, IMAGE_SIZE)
        wide = wide_faces(rng, frames_each)
        for kind, shown, faces in (
            ("clean", images, face),
            ("degraded", image_array(degrade(image_tensor(images), generator)), face),
            ("wide", render(wide, person, IMAGE_SIZE), wide),
        ):
            true[kind].append(faces)
            found[kind].append(tracker.track(shown))
    return {k: r_squared(*(np.concatenate(s[k]).astype(np.float64) for s in (true, found))) for k in found}
