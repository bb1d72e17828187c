"""Networks and trackers that turn frames into numbers, as plug-ins whose name and version land in the tag.

An extractor takes uint8 RGB frames (T, Y, X, 3) of one clip. "face": (T, P) face parameters; "picture" and "identity":
(T, F) features; "video": (windows, F) features. Nothing is ever replaced silently: a missing file is an error that says
what to fetch and where to put it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from af.errors import UserError
from af.files import sha256_of
from af.types import FaceSpec

Frames = UInt8[np.ndarray, "T Y X 3"]
Kind = Literal["face", "picture", "video", "identity"]


@dataclass(frozen=True)
class Extractor:
    """A function from frames to vectors with the name and version that its numbers carry.

    `metric` is the tag its distance gets: "fd_img/<name>-<version>", or "fid_inception" and "fvd_i3d" for the real
    networks alone.
    """

    name: str
    version: str
    kind: Kind
    function: Callable[[Frames], np.ndarray]
    face: FaceSpec | None = None
    metric: str | None = None

    @property
    def tag(self) -> str:
        """Name and version as they stand in tags."""
        return f"{self.name}-{self.version}"

    def __call__(self, frames: Frames) -> Float[np.ndarray, "N F"]:
        """Vectors of a clip, float64. Raises ValueError when the function returns another shape."""
        values = np.asarray(self.function(frames), np.float64)
        if values.ndim != 2 or (self.kind != "video" and len(values) != len(frames)):
            raise ValueError(f"extractor {self.tag} returned shape {values.shape} for {len(frames)} frames")
        return values


def require_file(path: Path | str | None, what: str, fetch: str, option: str, sha256: str | None = None) -> Path:
    """The path, or UserError saying what to fetch and where to put it; also when its SHA-256 is not the one given."""
    if path is None:
        raise UserError(f"{what} needs its weights, which are not shipped: {fetch}; then pass {option} FILE")
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file. {what} needs it: {fetch}; put it there, or pass another {option} FILE")
    if sha256 is not None and sha256_of(path) != sha256.lower():
        raise UserError(f"{path}: SHA-256 is {sha256_of(path)}, expected {sha256.lower()}: another file, or damaged")
    return path


def require_state_dict(path: Path, what: str) -> dict[str, Tensor]:
    """A file of tensors by name, loaded without unpickling code. Raises UserError naming the file."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{path}: not {what} ({first})") from error


def callable_face(face: FaceSpec, function: Callable[[Frames], np.ndarray]) -> Extractor:
    """A tracker given as a function; its name and version are those of `face.tracker` ("name/version")."""
    name, _, version = face.tracker.partition("/")
    return Extractor(name, version or "0", "face", function, face)


def thumbnail(side: int = 8) -> Extractor:
    """Weight-free picture features: the mean colour of side x side cells, RGB in [0, 1]. Coarse, but always there."""

    def function(frames: Frames) -> np.ndarray:
        import cv2

        small = [cv2.resize(f, (side, side), interpolation=cv2.INTER_AREA).ravel() for f in frames]
        return np.stack(small).astype(np.float64) / 255

    return Extractor(f"thumbnail{side}", "1", "picture", function)


def load_torchscript(path: Path) -> torch.nn.Module:
    """A TorchScript file on the CPU in eval mode. Raises UserError naming the file when it is none."""
    try:
        return torch.jit.load(str(path), map_location="cpu").eval()
    except (RuntimeError, ValueError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{path}: not a TorchScript file ({first}); save one with torch.jit.save") from error


def torch_module(
    module: torch.nn.Module | Path | str,
    name: str,
    kind: Kind = "picture",
    *,
    version: str | None = None,
    size: int = 224,
    low: float = -1.0,
    high: float = 1.0,
    window: int = 16,
    stride: int = 16,
    batch: int = 16,
    face: FaceSpec | None = None,
    device: torch.device | str = "cpu",
) -> Extractor:
    """Any torch module or TorchScript file as an extractor; version = first 8 digits of the file's SHA-256.

    It gets RGB float (N, 3, size, size) scaled to [low, high], for "video" (N, 3, window, size, size) windows every
    `stride` frames, on `device`, and returns (N, F) (a tuple or dict: its first tensor).
    """
    if not isinstance(module, torch.nn.Module):
        path = require_file(module, f"extractor {name}", "export the network as TorchScript", f"the {name} extractor's")
        version = version or sha256_of(path)[:8]
        module = load_torchscript(path)
    network = module.eval().to(device)

    def function(frames: Frames) -> np.ndarray:
        inputs = to_tensor(frames, size) * ((high - low) / 255) + low
        if kind == "video":
            inputs = windows_of(inputs, window, stride)
        with torch.no_grad():
            parts = [
                _first_tensor(network(inputs[i : i + batch].to(device))).cpu() for i in range(0, len(inputs), batch)
            ]
        return torch.cat(parts).flatten(1).double().numpy() if parts else np.zeros((0, 0))

    return Extractor(name, version or "0", kind, function, face)


def _first_tensor(output: Any) -> Tensor:
    while not isinstance(output, Tensor):
        output = next(iter(output.values())) if isinstance(output, dict) else output[0]
    return output


def to_tensor(frames: Frames, size: int) -> Float[Tensor, "T 3 size size"]:
    """Frames as float RGB 0 … 255, resized (area when shrinking, else bilinear) to squares."""
    import cv2

    shrink = min(frames.shape[1:3]) >= size
    method = cv2.INTER_AREA if shrink else cv2.INTER_LINEAR
    resized = np.stack([cv2.resize(f, (size, size), interpolation=method) for f in frames])
    return torch.from_numpy(resized).permute(0, 3, 1, 2).float()


def windows_of(frames: Float[Tensor, "T 3 Y X"], window: int, stride: int) -> Float[Tensor, "N 3 window Y X"]:
    """Windows of `window` frames every `stride`, none running over the end (none at all for shorter clips)."""
    if len(frames) < window:
        return frames.new_zeros(0, 3, window, *frames.shape[2:])
    return torch.stack([frames[i : i + window] for i in range(0, len(frames) - window + 1, stride)]).transpose(1, 2)


_INCEPTION_PREFIX = "6726825d"  # the released file's name carries the first digits of its SHA-256


def inception(path: Path | str | None, batch: int = 16, device: torch.device | str = "cpu") -> Extractor:
    """InceptionV3 pool features (2048) through torch-fidelity (extra `fidelity`), weights by path.

    Tag `fid_inception` only for the real weights (SHA-256 6726825d…), else `fd_img/inception-<hash>`. Frames stay
    uint8: nothing to clamp.
    """
    fetch = "fetch weights-inception-2015-12-05-6726825d.pth from the releases of toshas/torch-fidelity on GitHub"
    weights = require_file(path, "FID", fetch, "--inception")
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError as error:
        raise UserError("FID needs torch-fidelity: pip install 'avatar-forcing[fidelity]'") from error
    version = sha256_of(weights)[:8]
    require_state_dict(weights, "InceptionV3 weights")  # torch-fidelity itself would unpickle anything
    network = (
        FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=str(weights))
        .eval()
        .to(device)
    )

    def function(frames: Frames) -> np.ndarray:
        pictures = torch.from_numpy(np.ascontiguousarray(frames.transpose(0, 3, 1, 2)))
        with torch.no_grad():
            parts = [network(pictures[i : i + batch].to(device))[0].cpu() for i in range(0, len(pictures), batch)]
        return torch.cat(parts).double().numpy()

    real = version == _INCEPTION_PREFIX
    return Extractor("inception", version, "picture", function, metric="fid_inception" if real else None)


def i3d(
    path: Path | str | None,
    sha256: str | None = None,
    window: int = 16,
    stride: int = 16,
    batch: int = 4,
    device: torch.device | str = "cpu",
) -> Extractor:
    """I3D features (StyleGAN-V's TorchScript file), 16-frame windows at 224 px.

    Tag `fvd_i3d` only when `sha256` vouches for the file, else `fd_vid/i3d-<hash>`.
    """
    fetch = (
        "fetch i3d_torchscript.pt, the detector named in universome/stylegan-v, src/metrics/frechet_video_distance.py"
    )
    weights = require_file(path, "FVD", fetch, "--i3d", sha256)
    network = load_torchscript(weights).to(device)

    def function(frames: Frames) -> np.ndarray:
        inputs = windows_of(to_tensor(frames, 224), window, stride)
        with torch.no_grad():
            parts = [
                network(inputs[i : i + batch].to(device), rescale=True, resize=False, return_features=True).cpu()
                for i in range(0, len(inputs), batch)
            ]
        return torch.cat(parts).double().numpy() if parts else np.zeros((0, 400))

    vouched = f"fvd_i3d/{window}f-s{stride}" if sha256 else None
    return Extractor("i3d", sha256_of(weights)[:8], "video", function, metric=vouched)


MEDIAPIPE_POSE = ("yaw", "pitch", "roll", "translate_x", "translate_y", "translate_z")


def mediapipe_face(path: Path | str | None) -> Extractor:
    """MediaPipe FaceLandmarker (extra `mediapipe`, Apache-2.0): 52 blendshape scores and pose from its 4x4 matrix.

    Angles in radians (yaw positive to the image's right, pitch positive down, roll positive clockwise as seen),
    translation in centimetres of the canonical face. Frames without a face are NaN.
    """
    fetch = "fetch face_landmarker.task (float16) from Google's MediaPipe models page"
    model = require_file(path, "the MediaPipe tracker", fetch, "--mediapipe")
    try:
        import mediapipe
        from mediapipe.tasks.python import BaseOptions, vision
    except ImportError as error:
        raise UserError("the MediaPipe tracker needs mediapipe: pip install 'avatar-forcing[mediapipe]'") from error
    version = sha256_of(model)[:8]

    def make() -> Any:
        return vision.FaceLandmarker.create_from_options(
            vision.FaceLandmarkerOptions(
                base_options=BaseOptions(model_asset_path=str(model)),
                running_mode=vision.RunningMode.VIDEO,
                output_face_blendshapes=True,
                output_facial_transformation_matrixes=True,
                num_faces=1,
            )
        )

    def function(frames: Frames) -> np.ndarray:
        rows = np.full((len(frames), 52 + 6), np.nan)
        with make() as landmarker:  # a new one for each clip: video mode carries state from frame to frame
            for t, frame in enumerate(frames):
                image = mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=np.ascontiguousarray(frame))
                result = landmarker.detect_for_video(image, t * 40)
                if result.face_blendshapes:
                    rows[t, :52] = [category.score for category in result.face_blendshapes[0]]
                    rows[t, 52:] = pose_of_matrix(np.asarray(result.facial_transformation_matrixes[0]))
        return rows

    names = (*MEDIAPIPE_BLENDSHAPES, *MEDIAPIPE_POSE)
    return Extractor("mediapipe", version, "face", function, FaceSpec(names, 52, f"mediapipe/{version}"))


def pose_of_matrix(matrix: Float[np.ndarray, "4 4"]) -> Float[np.ndarray, " 6"]:
    """Yaw, pitch, roll (radians) and translation of a 4x4 face transform (x right, y up, z towards the viewer).

    The rotation is Rz(−roll) · Ry(yaw) · Rx(pitch), scale removed; signs as in `mediapipe_face`.
    """
    rotation = matrix[:3, :3] / np.linalg.norm(matrix[:3, :3], axis=0)
    yaw = np.arcsin(np.clip(-rotation[2, 0], -1.0, 1.0))
    pitch = np.arctan2(rotation[2, 1], rotation[2, 2])
    roll = -np.arctan2(rotation[1, 0], rotation[0, 0])
    return np.array([yaw, pitch, roll, *matrix[:3, 3]])


#: FaceLandmarker's own order of categories.
MEDIAPIPE_BLENDSHAPES = (
    "_neutral",
    "browDownLeft",
    "browDownRight",
    "browInnerUp",
    "browOuterUpLeft",
    "browOuterUpRight",
    "cheekPuff",
    "cheekSquintLeft",
    "cheekSquintRight",
    "eyeBlinkLeft",
    "eyeBlinkRight",
    "eyeLookDownLeft",
    "eyeLookDownRight",
    "eyeLookInLeft",
    "eyeLookInRight",
    "eyeLookOutLeft",
    "eyeLookOutRight",
    "eyeLookUpLeft",
    "eyeLookUpRight",
    "eyeSquintLeft",
    "eyeSquintRight",
    "eyeWideLeft",
    "eyeWideRight",
    "jawForward",
    "jawLeft",
    "jawOpen",
    "jawRight",
    "mouthClose",
    "mouthDimpleLeft",
    "mouthDimpleRight",
    "mouthFrownLeft",
    "mouthFrownRight",
    "mouthFunnel",
    "mouthLeft",
    "mouthLowerDownLeft",
    "mouthLowerDownRight",
    "mouthPressLeft",
    "mouthPressRight",
    "mouthPucker",
    "mouthRight",
    "mouthRollLower",
    "mouthRollUpper",
    "mouthShrugLower",
    "mouthShrugUpper",
    "mouthSmileLeft",
    "mouthSmileRight",
    "mouthStretchLeft",
    "mouthStretchRight",
    "mouthUpperUpLeft",
    "mouthUpperUpRight",
    "noseSneerLeft",
    "noseSneerRight",
)
