"""Networks and trackers that turn frames into numbers; their names and versions are part of every tag.

Frames are uint8 RGB (T, Y, X, 3) of one clip. A tracker is any object with `face_spec` and `track(frames)` -> (T, P);
an `Extractor` returns (T, F) for "image" and "identity", (windows, F) for "video". Users supply the weights: a missing
file is an error that says what to fetch, and there is no substitute.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from af.errors import UserError
from af.files import sha256_of
from af.types import FaceSpec

Frames = UInt8[np.ndarray, "T Y X 3"]
Kind = Literal["image", "video", "identity"]


class Tracker(Protocol):
    """Reads face parameters. All sides of a table use one tracker: results of two are never mixed."""

    face_spec: FaceSpec

    def track(self, frames: Frames) -> Float[np.ndarray, "T P"]:
        """Parameters of each frame in the units of `face_spec`; NaN where no face is found."""
        ...


def tracked(tracker: Tracker, frames: Frames) -> Float[np.ndarray, "T P"]:
    """The tracker's parameters. Raises ValueError when their shape differs from its `face_spec`."""
    values, shape = np.asarray(tracker.track(frames)), (len(frames), len(tracker.face_spec.names))
    if values.shape != shape:
        raise ValueError(f"tracker {tracker.face_spec.tracker} returned shape {values.shape}, expected {shape}")
    return values


@dataclass(frozen=True)
class Extractor:
    """A function from frames to vectors, with a name and version for the tags.

    `metric` is the tag of its distance: "fd_img/<name>-<version>", or "fid_inception" and "fvd_i3d" for the standard
    networks only. `network` is the module that `function` runs, on its current device; `inputs` is how frames are prepared
    for it, where that can be chosen.
    """

    name: str
    version: str
    kind: Kind
    function: Callable[[Frames], np.ndarray]
    metric: str | None = None
    network: nn.Module | None = None
    inputs: tuple[float, ...] = ()

    @property
    def tag(self) -> str:
        """Name and version, as in tags."""
        return f"{self.name}-{self.version}"

    def __call__(self, frames: Frames) -> Float[np.ndarray, "N F"]:
        """Vectors of a clip, float64. Raises ValueError when the function returns another shape."""
        values = np.asarray(self.function(frames), np.float64)
        if values.ndim != 2 or (self.kind != "video" and len(values) != len(frames)):
            raise ValueError(f"extractor {self.tag} returned shape {values.shape} for {len(frames)} frames")
        return values


def require_file(path: Path | str | None, what: str, fetch: str, sha256: str | None = None) -> Path:
    """Return `path`. Raises UserError, saying what to fetch, when it is missing or its SHA-256 differs."""
    if path is None:
        raise UserError(f"{what} needs its weights, which are not shipped: {fetch}; then give its path")
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file. {what} needs it: {fetch}; put it there, or give another path")
    if sha256 is not None and sha256_of(path) != sha256.lower():
        raise UserError(f"{path}: SHA-256 is {sha256_of(path)}, expected {sha256.lower()}: another file, or damaged")
    return path


def require_state_dict(path: Path, what: str) -> dict[str, Tensor]:
    """A file of tensors by name, loaded without unpickling code. Raises UserError naming the file."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{path}: not {what} ({_first_line(error)})") from error


def _load_torchscript(path: Path) -> nn.Module:
    try:
        return torch.jit.load(str(path), map_location="cpu").eval()
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"{path}: not a TorchScript file ({_first_line(error)}); save one with torch.jit.save"
        ) from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _in_batches(network: nn.Module, inputs: Tensor, batch: int, width: int = 0, **options: Any) -> np.ndarray:
    """Run a network in batches on its own device: (N, F), or (0, `width`) without inputs."""
    weights = next((t for t in (*network.parameters(), *network.buffers())), inputs)
    with torch.no_grad():
        parts = [
            _first_tensor(network(inputs[i : i + batch].to(weights.device), **options)).cpu()
            for i in range(0, len(inputs), batch)
        ]
    return torch.cat(parts).flatten(1).double().numpy() if parts else np.zeros((0, width))


def _first_tensor(output: Any) -> Tensor:
    while not isinstance(output, Tensor):
        output = next(iter(output.values())) if isinstance(output, dict) else output[0]
    return output


def thumbnail(side: int = 8) -> Extractor:
    """Image features without weights: mean RGB colours in [0, 1] of side x side cells. Coarse, but always available."""

    def function(frames: Frames) -> np.ndarray:
        return to_tensor(frames, side).permute(0, 2, 3, 1).flatten(1).double().numpy() / 255

    return Extractor(f"thumbnail{side}", "1", "image", function)


def torch_module(
    path: nn.Module | Path | str | None,
    name: str,
    kind: Kind = "image",
    *,
    version: str | None = None,
    size: int = 224,
    low: float = -1.0,
    high: float = 1.0,
    window: int = 16,
    stride: int = 16,
    batch: int = 16,
) -> Extractor:
    """Any TorchScript file (or torch module) as an extractor; version = first 8 digits of the file's SHA-256.

    Its input is float RGB (N, 3, size, size) scaled to [low, high], for "video" windows (N, 3, window, size, size)
    every `stride` frames; its output (N, F), or a tuple or dict with this as first tensor.
    """
    if isinstance(path, nn.Module):
        network = path.eval()
    else:
        file = require_file(path, f"extractor {name}", "export the network as TorchScript")
        version, network = version or sha256_of(file)[:8], _load_torchscript(file)

    def function(frames: Frames) -> np.ndarray:
        inputs = to_tensor(frames, size) * ((high - low) / 255) + low
        return _in_batches(network, windows_of(inputs, window, stride) if kind == "video" else inputs, batch)

    inputs = (size, low, high, *((window, stride) if kind == "video" else ()))
    return Extractor(name, version or "0", kind, function, network=network, inputs=inputs)


def to_tensor(frames: Frames, size: int) -> Float[Tensor, "T 3 size size"]:
    """Frames as float RGB 0 … 255, resized (area when shrinking, else bilinear) to squares."""
    import cv2

    method = cv2.INTER_AREA if min(frames.shape[1:3]) >= size else cv2.INTER_LINEAR
    resized = np.stack([cv2.resize(f, (size, size), interpolation=method) for f in frames])
    return torch.from_numpy(resized).permute(0, 3, 1, 2).float()


def windows_of(frames: Float[Tensor, "T 3 Y X"], window: int, stride: int) -> Float[Tensor, "N 3 window Y X"]:
    """Windows of `window` frames every `stride` frames, all within the clip (none for shorter clips)."""
    if len(frames) < window:
        return frames.new_zeros(0, 3, window, *frames.shape[2:])
    return torch.stack([frames[i : i + window] for i in range(0, len(frames) - window + 1, stride)]).transpose(1, 2)


_INCEPTION_PREFIX = "6726825d"  # the released file's name contains the first digits of its SHA-256


def inception(path: Path | str | None, batch: int = 16) -> Extractor:
    """InceptionV3 pool features (2048) through torch-fidelity (extra `fidelity`), weights by path.

    The tag is `fid_inception` only for the standard weights (SHA-256 6726825d…), else `fd_img/inception-<hash>`. Frames
    stay uint8, so nothing needs clamping.
    """
    fetch = "fetch weights-inception-2015-12-05-6726825d.pth from the releases of toshas/torch-fidelity on GitHub"
    weights = require_file(path, "FID", fetch)
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError as error:
        raise UserError("FID needs torch-fidelity: pip install 'avatar-forcing[fidelity]'") from error
    version = sha256_of(weights)[:8]
    require_state_dict(weights, "InceptionV3 weights")  # torch-fidelity's own loader unpickles anything
    network = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=str(weights)).eval()

    def function(frames: Frames) -> np.ndarray:
        return _in_batches(network, torch.from_numpy(np.ascontiguousarray(frames.transpose(0, 3, 1, 2))), batch)

    metric = "fid_inception" if version == _INCEPTION_PREFIX else None
    return Extractor("inception", version, "image", function, metric, network)


def i3d(
    path: Path | str | None, sha256: str | None = None, window: int = 16, stride: int = 16, batch: int = 4
) -> Extractor:
    """I3D features (StyleGAN-V's TorchScript file), 16-frame windows at 224 px.

    The tag is `fvd_i3d` only if `sha256` confirms the file, else `fd_vid/i3d-<hash>`.
    """
    fetch = (
        "fetch i3d_torchscript.pt, the detector named in universome/stylegan-v, src/metrics/frechet_video_distance.py"
    )
    weights = require_file(path, "FVD", fetch, sha256)
    network = _load_torchscript(weights)
    how = {"rescale": True, "resize": False, "return_features": True}

    def function(frames: Frames) -> np.ndarray:
        return _in_batches(network, windows_of(to_tensor(frames, 224), window, stride), batch, width=400, **how)

    vouched = f"fvd_i3d/{window}f-s{stride}" if sha256 else None
    return Extractor("i3d", sha256_of(weights)[:8], "video", function, vouched, network, (window, stride))
