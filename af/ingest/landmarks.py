"""MediaPipe's FaceLandmarker: one tracker of real faces for ingest, portraits, live video and evaluation."""

from __future__ import annotations

import contextlib
import os
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Float, Float32, Float64, UInt8

from af.clock import FRAME_MS
from af.data.model_files import FACE_LANDMARKER
from af.errors import UserError
from af.files import sha256_of
from af.specs import FaceSpec

#: With its dependencies, opencv-contrib-python overwrites the cv2 of opencv-python-headless; it runs without.
INSTALL: Final = "pip install --no-deps mediapipe==1.2.3"

_BLENDSHAPES = """
    _neutral browDownLeft browDownRight browInnerUp browOuterUpLeft browOuterUpRight cheekPuff cheekSquintLeft
    cheekSquintRight eyeBlinkLeft eyeBlinkRight eyeLookDownLeft eyeLookDownRight eyeLookInLeft eyeLookInRight
    eyeLookOutLeft eyeLookOutRight eyeLookUpLeft eyeLookUpRight eyeSquintLeft eyeSquintRight eyeWideLeft eyeWideRight
    jawForward jawLeft jawOpen jawRight mouthClose mouthDimpleLeft mouthDimpleRight mouthFrownLeft mouthFrownRight
    mouthFunnel mouthLeft mouthLowerDownLeft mouthLowerDownRight mouthPressLeft mouthPressRight mouthPucker mouthRight
    mouthRollLower mouthRollUpper mouthShrugLower mouthShrugUpper mouthSmileLeft mouthSmileRight mouthStretchLeft
    mouthStretchRight mouthUpperUpLeft mouthUpperUpRight noseSneerLeft noseSneerRight
"""
#: FaceLandmarker's own order of categories.
MEDIAPIPE_BLENDSHAPES: Final = tuple(_BLENDSHAPES.split())
MEDIAPIPE_POSE: Final = ("yaw", "pitch", "roll", "translate_x", "translate_y", "translate_z")

_MOST = 4  # faces looked for in a frame
#: Corners (rows, columns) of overlapping tiles of half a frame's height and width, in frame sizes.
_TILES: Final = tuple((row / 4, column / 4) for row in range(3) for column in range(3))

Frame = UInt8[np.ndarray, "Y X 3"]


@dataclass(frozen=True)
class Face:
    """A face in a frame: landmarks in pixels (z on the same scale, towards the back), blendshape scores, and pose (see
    `FaceLandmarker`).
    """

    landmarks: Float32[np.ndarray, "478 3"]
    expression: Float32[np.ndarray, " 52"]
    pose: Float32[np.ndarray, " 6"]


class FaceLandmarker:
    """MediaPipe's FaceLandmarker as detector (called with a frame) and tracker (`track`) of real faces.

    52 blendshape scores in [0, 1] and the head's pose: yaw (positive to the image's right), pitch (positive down) and
    roll (positive clockwise as seen) in radians, and the place in centimetres before a camera with a vertical field of
    view of 63 degrees. `path`: another version of the model. Raises UserError when package or model are missing.
    """

    #: Detection needs frames of this size: small faces are lost in smaller ones.
    look_side: Final = 720

    def __init__(self, path: Path | str | None = None) -> None:
        self.path = FACE_LANDMARKER.require(path)
        _require_package()
        self.face_spec = FaceSpec(
            (*MEDIAPIPE_BLENDSHAPES, *MEDIAPIPE_POSE), 52, f"mediapipe/{sha256_of(self.path)[:8]}"
        )
        self._detector: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_detector": None}  # it cannot be pickled, so it is made where used

    def __call__(self, frame: Frame) -> Float64[np.ndarray, "N 5"]:
        """Boxes (x, y, width, height, 1) around the faces in a frame, see `face_square`.

        Where there is none, nine overlapping parts of the frame are searched: the model misses faces below about an
        eighth of its input.
        """
        if self._detector is None:
            self._detector = self._landmarker("IMAGE", num_faces=_MOST)
            weakref.finalize(self, _end, self._detector)
        squares = [face_square(face) for face in self._landmarks(frame)]
        if not squares:
            height, width = frame.shape[:2]
            for row, column in _TILES:
                y, x = int(row * height), int(column * width)
                for face in self._landmarks(frame[y : y + height // 2, x : x + width // 2]):
                    square = face_square(face + np.array([x, y, 0]))
                    if all(np.hypot(*(square - other)[:2]) > other[2] / 2 for other in squares):
                        squares.append(square)
        return np.array([[x - side / 2, y - side / 2, side, side, 1.0] for x, y, side in squares]).reshape(-1, 5)

    def track(self, frames: UInt8[np.ndarray, "T Y X 3"]) -> Float32[np.ndarray, "T 58"]:
        """Parameters in each frame of a video at 25 fps; NaN where no face is found."""
        return parameters_of(list(self.follow(frames)))

    def boxes(self, frames: UInt8[np.ndarray, "T Y X 3"]) -> Float64[np.ndarray, "T 4"]:
        """Left, top, right and bottom of all landmarks in each frame of a video; NaN where no face is found."""
        rows = np.full((len(frames), 4), np.nan)
        for row, face in zip(rows, self.follow(frames), strict=True):
            if face is not None:
                row[:] = *face.landmarks[:, :2].min(0), *face.landmarks[:, :2].max(0)
        return rows

    def follow(self, frames: Iterable[Frame]) -> Iterator[Face | None]:
        """The most prominent face in each frame of a video at 25 fps, None where there is none."""
        with self.reading() as read:
            for frame in frames:
                yield read(frame)

    @contextlib.contextmanager
    def reading(self) -> Iterator[Callable[[Frame], Face | None]]:
        """A function that is called with the frames of one video, in order, as in `follow`."""
        time_ms = -FRAME_MS
        landmarker = self._landmarker(
            "VIDEO", num_faces=1, output_face_blendshapes=True, output_facial_transformation_matrixes=True
        )

        def read(frame: Frame) -> Face | None:
            nonlocal time_ms
            time_ms += FRAME_MS
            image = _image(frame)
            result = landmarker.detect_for_video(image, int(time_ms))
            if not result.face_blendshapes:  # a face that moved too far is lost: the second call looks anew
                result = landmarker.detect_for_video(image, int(time_ms) + 1)
            if not result.face_blendshapes:
                return None
            scores = np.array([category.score for category in result.face_blendshapes[0]], np.float32)
            pose = pose_of_matrix(np.asarray(result.facial_transformation_matrixes[0])).astype(np.float32)
            return Face(_pixels(result.face_landmarks[0], frame), scores, pose)

        try:
            yield read
        finally:
            landmarker.close()

    def _landmarks(self, frame: Frame) -> list[Float32[np.ndarray, "478 3"]]:
        return [_pixels(face, frame) for face in self._detector.detect(_image(frame)).face_landmarks]

    def _landmarker(self, mode: str, **options: Any) -> Any:
        from mediapipe.tasks.python import BaseOptions, vision

        base = BaseOptions(model_asset_path=str(self.path))
        running = getattr(vision.RunningMode, mode)
        try:
            with _quiet():
                return vision.FaceLandmarker.create_from_options(
                    vision.FaceLandmarkerOptions(base_options=base, running_mode=running, **options)
                )
        except (RuntimeError, ValueError, OSError) as error:
            raise UserError(f"{self.path}: MediaPipe cannot load this model ({error})") from None


def _end(landmarker: Any) -> None:
    try:
        landmarker.close()
    except RuntimeError:  # the process ends, and the library's threads have ended: keep its destructor quiet
        landmarker.close = lambda: None


def parameters_of(faces: Sequence[Face | None]) -> Float32[np.ndarray, "T 58"]:
    """Expression and pose of each face, as in `face.npy`; NaN where there is none."""
    rows = np.full((len(faces), len(MEDIAPIPE_BLENDSHAPES) + len(MEDIAPIPE_POSE)), np.nan, np.float32)
    for row, face in zip(rows, faces, strict=True):
        if face is not None:
            row[:] = *face.expression, *face.pose
    return rows


def filled(rows: Float[np.ndarray, "T P"]) -> Float[np.ndarray, "T P"]:
    """Values with the frames without a face (NaN) interpolated; zeros if there is none with one."""
    missing = ~np.isfinite(rows).all(axis=1)
    if missing.all():
        return np.zeros_like(rows)
    times, known = np.arange(len(rows)), np.flatnonzero(~missing)
    return np.stack([np.interp(times, known, column[known]) for column in rows.T], axis=1).astype(rows.dtype)


def _require_package() -> None:
    try:
        import mediapipe  # noqa: F401
    except ImportError as error:
        raise UserError(f"tracking real faces needs MediaPipe: {INSTALL} ({error})") from None


def landmarker_is_there(path: Path | str | None = None) -> bool:
    """Whether package and model file are found."""
    if path is None and FACE_LANDMARKER.find() is None:
        return False
    with contextlib.suppress(UserError):
        _require_package()
        return True
    return False


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's log on stderr, which no setting turns off."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _image(frame: Frame) -> Any:
    import mediapipe

    return mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=np.ascontiguousarray(frame))


def _pixels(landmarks: Any, frame: Frame) -> Float32[np.ndarray, "478 3"]:
    height, width = frame.shape[:2]
    return np.array([(p.x * width, p.y * height, p.z * width) for p in landmarks], np.float32)


def face_square(landmarks: Float32[np.ndarray, "478 3"]) -> Float64[np.ndarray, " 3"]:
    """Centre x, y and side of the square around a face, from mid-forehead to chin.

    It is computed from points that neither blinks nor speech move (outer corners of the eyes, bridge and base of the
    nose), with distances in space, which turns of the head don't shorten. The factors make it the box of OpenCV's
    frontal cascade, so that crops are framed alike by either: medians over 210 images of people, half of them within 5 %.
    """
    right, left, bridge, base = landmarks[[33, 263, 168, 2]].astype(np.float64)
    side = np.linalg.norm(left - right) + 1.7 * np.linalg.norm(base - bridge)
    x, y = ((right + left) / 2 + 0.36 * (base - bridge))[:2]
    return np.array([x, y, side])


def pose_of_matrix(matrix: Float64[np.ndarray, "4 4"]) -> Float64[np.ndarray, " 6"]:
    """Yaw, pitch, roll (radians) and translation of a 4x4 face transform (x right, y up, z towards the viewer).

    The rotation is Rz(−roll) · Ry(yaw) · Rx(pitch), scale removed; signs as in `FaceLandmarker`.
    """
    rotation = matrix[:3, :3] / np.linalg.norm(matrix[:3, :3], axis=0)
    yaw = np.arcsin(np.clip(-rotation[2, 0], -1.0, 1.0))
    pitch = np.arctan2(rotation[2, 1], rotation[2, 2])
    roll = -np.arctan2(rotation[1, 0], rotation[0, 0])
    return np.array([yaw, pitch, roll, *matrix[:3, 3]])


def matrix_of_pose(pose: Float64[np.ndarray, " 6"]) -> Float64[np.ndarray, "4 4"]:
    """The face transform with this pose: the inverse of `pose_of_matrix`."""
    yaw, pitch, roll = (float(angle) for angle in pose[:3])
    matrix = np.eye(4)
    around_z = np.array([[np.cos(roll), np.sin(roll), 0], [-np.sin(roll), np.cos(roll), 0], [0, 0, 1]])
    around_y = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
    around_x = np.array([[1, 0, 0], [0, np.cos(pitch), -np.sin(pitch)], [0, np.sin(pitch), np.cos(pitch)]])
    matrix[:3, :3], matrix[:3, 3] = around_z @ around_y @ around_x, pose[3:]
    return matrix


#: Right eye, left eye and mouth of MediaPipe's canonical face: centre, and half the width and height of the region (cm).
_REGIONS: Final = (((-3.1, 2.7, 3.6), 2.2, 1.7), ((3.1, 2.7, 3.6), 2.2, 1.7), ((0.0, -4.1, 4.4), 3.2, 2.0))
_FOCAL: Final = 1 / np.tan(np.radians(63) / 2)
_JAW_OPEN: Final = MEDIAPIPE_BLENDSHAPES.index("jawOpen")


def eyes_and_mouth(face: Float32[np.ndarray, " 58"], size: int) -> Float32[np.ndarray, "3 Y X"]:
    """Soft masks in [0, 1] of right eye, left eye (with the brows) and mouth in a square frame of `size` pixels, from
    the parameters of its face.

    The pose places the canonical face before the camera. On 210 images of people the landmarks of eyes and mouth were
    within 4 and 8 % of the distance between the eyes from these places in 95 of 100.
    """
    matrix = matrix_of_pose(face[52:].astype(np.float64))
    place = np.arange(size) + 0.5
    masks = np.empty((len(_REGIONS), size, size), np.float32)
    for mask, (centre, width, height) in zip(masks, _REGIONS, strict=True):
        if centre[1] < 0:  # the mouth
            height += 2 * float(face[_JAW_OPEN])
        corners = np.array([centre, np.add(centre, (width, 0, 0)), np.add(centre, (0, height, 0))])
        x, y, z = matrix[:3, :3] @ corners.T + matrix[:3, 3:]
        shown = size / 2 * (1 + _FOCAL * np.stack([x, -y]) / np.maximum(-z, 1e-3))
        middle, axes = shown[:, :1], shown[:, 1:] - shown[:, :1]
        offset = np.stack(np.meshgrid(place, place)).reshape(2, -1) - middle
        away = np.square(np.linalg.pinv(axes) @ offset).sum(0)
        mask[:] = np.exp(-np.square(away)).reshape(size, size)
    return masks


@dataclass(frozen=True)
class EyesAndMouth:
    """Pixel weights that emphasise eyes and mouth of real people: 1 + weight·mask (`eyes_and_mouth`)."""

    weight: float = 4.0

    def __call__(self, face: Float32[np.ndarray, " 58"] | None, size: int) -> Float32[np.ndarray, "Y X"] | None:
        """Pixel weights for a frame of `size` pixels; None for an unknown face."""
        return None if face is None else 1 + self.weight * eyes_and_mouth(face, size).max(0)
