"""A small network that reads face parameters from images of synthetic faces, shipped with its weights."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Final

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from af.errors import UserError
from af.files import atomic_path
from af.images import image_tensor
from af.models.artifact import require_finite
from af.nn.precision import without_autocast
from af.types import FaceSpec

TRACKER_NAME: Final = "synthetic-tracker"
IMAGE_SIZE: Final = 64
_CHANNELS: Final = (16, 32, 64, 96, 96, 96)
_STRIDES: Final = (2, 2, 1, 2, 1, 2)
_HIDDEN: Final = 96
_CHUNK: Final = 64  # frames per pass: limits memory for activations


class FaceTracker(nn.Module):
    """Images (B,3,64,64) in [-1, 1] -> face parameters (B,P) in the units of `face_spec`.

    `centre` and `spread` convert the network's output to these units. `version` distinguishes weights.
    """

    def __init__(self, names: tuple[str, ...], expression: int, version: str, *, normalised: bool = True) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for i, (width, stride) in enumerate(zip(_CHANNELS, _STRIDES, strict=True)):
            size = 5 if i == 0 else 3
            layers.append(nn.Conv2d(channels, width, size, stride, size // 2, bias=not normalised))
            if normalised:
                layers.append(nn.BatchNorm2d(width))
            layers.append(nn.ReLU())
            channels = width
        self.layers = nn.Sequential(*layers)
        self.hidden = nn.Linear(channels * 16, _HIDDEN)
        self.head = nn.Linear(_HIDDEN, len(names))
        self.centre: Tensor
        self.spread: Tensor
        self.register_buffer("centre", torch.zeros(len(names)))
        self.register_buffer("spread", torch.ones(len(names)))
        self.version = version
        self.face_spec = FaceSpec(tuple(names), expression, f"{TRACKER_NAME}/{version}")

    def forward(self, images: Float[Tensor, "B 3 64 64"]) -> Float[Tensor, "B P"]:
        """Face parameters of each image."""
        features = self.layers(images).flatten(1)
        with without_autocast(features.device):
            return self.head(F.relu(self.hidden(features.float()))) * self.spread + self.centre

    @torch.inference_mode()
    def track(self, frames: UInt8[np.ndarray, "T Y X 3"]) -> Float32[np.ndarray, "T P"]:
        """Face parameters of each frame; frames are square crops of any size, framed like the synthetic videos.

        Raises ValueError unless frames are uint8 RGB.
        """
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
            raise ValueError(f"frames are uint8 (T,Y,X,3), got {frames.dtype} {frames.shape}")
        device = self.centre.device
        out = np.empty((len(frames), len(self.face_spec.names)), np.float32)
        for start in range(0, len(frames), _CHUNK):
            images = image_tensor(frames[start : start + _CHUNK], device)
            if images.shape[-2:] != (IMAGE_SIZE, IMAGE_SIZE):
                images = F.interpolate(images, (IMAGE_SIZE, IMAGE_SIZE), mode="bilinear", antialias=True)
            out[start : start + len(images)] = self(images.contiguous(memory_format=torch.channels_last)).cpu().numpy()
        return out

    def fused(self) -> FaceTracker:
        """The same function with batch normalisation folded into the convolutions."""
        plain = FaceTracker(self.face_spec.names, self.face_spec.expression, self.version, normalised=False).eval()
        pairs = list(zip(self.layers, list(self.layers)[1:], strict=False))
        convolutions = [
            fuse_conv_bn_eval(a.eval(), b.eval())
            for a, b in pairs
            if isinstance(a, nn.Conv2d) and isinstance(b, nn.BatchNorm2d)
        ]
        targets = [layer for layer in plain.layers if isinstance(layer, nn.Conv2d)]
        for target, source in zip(targets, convolutions, strict=True):
            target.load_state_dict(source.state_dict())
        for name in ("hidden", "head"):
            getattr(plain, name).load_state_dict(getattr(self, name).state_dict())
        plain.centre.copy_(self.centre)
        plain.spread.copy_(self.spread)
        return plain

    def save(self, path: Path) -> None:
        """Write the fused network in half precision with its names and version, atomically."""
        state = {name: value.detach().half().contiguous() for name, value in self.fused().state_dict().items()}
        metadata = {
            "format": f"{TRACKER_NAME}/1",
            "version": self.version,
            "names": json.dumps(list(self.face_spec.names)),
            "expression": str(self.face_spec.expression),
        }
        with atomic_path(path) as temporary:
            save_file(state, temporary, metadata)


def shipped_weights() -> Path:
    """Path of the shipped weights."""
    return Path(str(files("af.models"))) / "assets" / "synthetic_tracker.safetensors"


def load_tracker(path: Path | None = None, device: torch.device | str = "cpu") -> FaceTracker:
    """Load a tracker written by `af tracker train`, by default the shipped one.

    Raises UserError when the file is missing or is not a tracker.
    """
    path = shipped_weights() if path is None else Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; `af tracker train --out {path}` makes it")
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            state = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read as safetensors: {error}") from error
    if about.get("format") != f"{TRACKER_NAME}/1":
        raise UserError(f"{path} does not hold a {TRACKER_NAME} (format {about.get('format')!r})")
    require_finite(state, str(path))
    try:
        names = tuple(json.loads(about["names"]))
        tracker = FaceTracker(names, int(about["expression"]), about["version"], normalised=False)
        tracker.load_state_dict(state)
    except (RuntimeError, ValueError, TypeError, KeyError, UserError) as error:
        raise UserError(f"{path} does not fit this version's tracker: {error}") from error
    return tracker.requires_grad_(False).eval().to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
