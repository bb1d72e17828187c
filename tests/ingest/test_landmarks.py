"""The tracker of real faces: geometry that needs no model, what is missing, and real faces where both are there."""

from __future__ import annotations

import pickle
import sys
import types
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from numpy.testing import assert_allclose

from af.data.shards import ShardReader
from af.data.vary import cropped, moved
from af.data.video import read_video
from af.data.video_writer import write_video
from af.errors import UserError
from af.ingest.crops import FaceCropper, face_frames, read_portrait
from af.ingest.detection import HaarDetector, make_detector
from af.ingest.landmarks import (
    MEDIAPIPE_BLENDSHAPES,
    EyesAndMouth,
    FaceLandmarker,
    eyes_and_mouth,
    face_square,
    filled,
    matrix_of_pose,
    pose_of_matrix,
)
from af.ingest.options import IngestOptions
from af.ingest.run import run_ingest
from af.ingest.sources import Source

# ------------------------------------------------------------------------------------------------------- geometry


def rotation(axis: int, angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    a, b = [(1, 2), (2, 0), (0, 1)][axis]
    matrix = np.eye(4)
    matrix[[a, a, b, b], [a, b, a, b]] = c, -s, s, c
    return matrix


def test_pose_signs():
    nose = np.array([0, 0, 1, 0])
    assert (rotation(1, 0.3) @ nose)[0] > 0  # turns to the image's right: yaw positive
    assert (rotation(0, 0.2) @ nose)[1] < 0  # turns down: pitch positive
    matrix = rotation(2, -0.1) @ rotation(1, 0.3) @ rotation(0, 0.2)
    matrix[:3, 3] = 1, 2, 3
    assert_allclose(pose_of_matrix(matrix), [0.3, 0.2, 0.1, 1, 2, 3])
    assert_allclose(matrix_of_pose(pose_of_matrix(matrix)), matrix, atol=1e-12)
    scaled = matrix.copy()
    scaled[:3, :3] *= 2.5
    assert_allclose(pose_of_matrix(scaled)[:3], [0.3, 0.2, 0.1])


@pytest.fixture
def landmarks() -> np.ndarray:
    """Random points, with eyes and nose where faces have them, in pixels."""
    points = np.random.default_rng(0).normal((100, 120, 0), 20, (478, 3))
    points[[33, 263, 168, 2]] = [[70, 100, 10], [130, 100, 10], [100, 100, -5], [100, 135, -12]]
    return points.astype(np.float32)


def test_the_square_of_a_face_ignores_lids_lips_and_turns(landmarks):
    x, y, side = face_square(landmarks)
    assert x == pytest.approx(100)
    assert 100 < y < 135
    moved = np.random.default_rng(1).permutation(landmarks)
    moved[[33, 263, 168, 2]] = landmarks[[33, 263, 168, 2]]
    assert_allclose(face_square(moved), (x, y, side))
    assert_allclose(face_square(2 * landmarks + np.array([5, -7, 3])), (2 * x + 5, 2 * y - 7, 2 * side), rtol=1e-6)
    turned = landmarks @ rotation(1, 0.6)[:3, :3].T  # as far as a cascade sees half a face
    assert face_square(turned)[2] == pytest.approx(side)


def test_gaps_are_interpolated():
    rows = np.arange(12, dtype=np.float32).reshape(6, 2)
    gap = rows.copy()
    gap[2:4] = np.nan
    assert_allclose(filled(gap), rows)
    assert not filled(np.full_like(rows, np.nan)).any()


def middle(mask: np.ndarray) -> tuple[float, float]:
    y, x = np.indices(mask.shape)
    return float((mask * x).sum() / mask.sum()), float((mask * y).sum() / mask.sum())


def face_at(*, jaw: float = 0.0, pose: tuple[float, ...] = (0, 0, 0, 0, 0, -40)) -> np.ndarray:
    face = np.zeros(58, np.float32)
    face[MEDIAPIPE_BLENDSHAPES.index("jawOpen")], face[52:] = jaw, pose
    return face


def test_masks_lie_on_eyes_and_mouth_as_the_head_moves():
    right, left, mouth = map(middle, eyes_and_mouth(face_at(), 64))
    assert mouth[0] == pytest.approx(31.5, abs=0.1)
    assert right[0] < mouth[0] < left[0]
    assert right[1] == pytest.approx(left[1], abs=0.1)
    assert left[1] < 31.5 < mouth[1]
    masks = eyes_and_mouth(face_at(), 64)
    assert masks.min() >= 0
    assert 0.9 < masks.max() <= 1
    lifted = middle(eyes_and_mouth(face_at(pose=(0, 0, 0, 3, 2, -40)), 64)[2])
    assert lifted[0] > mouth[0] + 2
    assert lifted[1] < mouth[1] - 2
    rolled = [middle(m) for m in eyes_and_mouth(face_at(pose=(0, 0, 0.4, 0, 0, -40)), 64)]
    assert rolled[0][1] < right[1] < rolled[1][1]  # clockwise as seen: the eye on the image's left goes up
    assert middle(eyes_and_mouth(face_at(pose=(0.4, 0, 0, 0, 0, -40)), 64)[2])[0] > mouth[0]  # turned to the right
    assert eyes_and_mouth(face_at(jaw=0.8), 64)[2].sum() > 1.2 * masks[2].sum()
    weights = EyesAndMouth(weight=3.0)(face_at(), 64)
    assert_allclose(weights, 1 + 3 * masks.max(0))
    assert EyesAndMouth()(None, 64) is None


# ------------------------------------------------------------------------------------------------ what is missing


@pytest.fixture
def nothing_there(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("AF_MODELS", raising=False)
    monkeypatch.setitem(sys.modules, "mediapipe", None)


def test_what_is_missing_is_said(tmp_path, nothing_there):
    assert isinstance(make_detector(), HaarDetector)
    with pytest.raises(UserError, match="`af fetch face-landmarker` gets it"):
        make_detector("mediapipe")
    with pytest.raises(UserError, match=r"model\.task: no such file"):
        make_detector("mediapipe", tmp_path / "model.task")
    (tmp_path / "model.task").touch()
    with pytest.raises(UserError, match=r"pip install --no-deps mediapipe=="):
        make_detector("mediapipe", tmp_path / "model.task")
    assert isinstance(make_detector("auto", tmp_path / "model.task"), HaarDetector)
    with pytest.raises(UserError, match="auto, mediapipe, haar"):
        make_detector("other")


@pytest.fixture
def fake_mediapipe(monkeypatch):
    """The names of MediaPipe that are used; every third frame shows no face."""
    modules = {n: types.ModuleType(n) for n in ("mediapipe", "mediapipe.tasks", "mediapipe.tasks.python")}

    class Landmarker:
        create_from_options = classmethod(lambda cls, options: cls())
        close = lambda self: None  # noqa: E731

        def detect_for_video(self, image, milliseconds):
            if milliseconds // 40 % 3 == 2:
                return SimpleNamespace(face_blendshapes=[], facial_transformation_matrixes=[], face_landmarks=[])
            scores = [SimpleNamespace(score=i / 100) for i in range(52)]
            points = [SimpleNamespace(x=i / 478, y=0.5, z=0.1) for i in range(478)]
            return SimpleNamespace(
                face_blendshapes=[scores], facial_transformation_matrixes=[np.eye(4)], face_landmarks=[points]
            )

    modules["mediapipe"].Image = lambda image_format, data: data
    modules["mediapipe"].ImageFormat = SimpleNamespace(SRGB=1)
    modules["mediapipe.tasks.python"].BaseOptions = lambda model_asset_path: None
    modules["mediapipe.tasks.python"].vision = SimpleNamespace(
        FaceLandmarker=Landmarker, FaceLandmarkerOptions=lambda **k: k, RunningMode=SimpleNamespace(VIDEO=1)
    )
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)


def test_layout_and_frames_without_a_face(tmp_path, fake_mediapipe):
    (tmp_path / "face_landmarker.task").write_bytes(b"model")
    tracker = pickle.loads(pickle.dumps(FaceLandmarker(tmp_path / "face_landmarker.task")))
    frames = np.zeros((20, 30, 60, 3), np.uint8)
    values = tracker.track(frames)
    assert values.shape == (20, 58)
    assert np.isnan(values[2::3]).all()
    assert np.isfinite(np.delete(values, np.s_[2::3], 0)).all()
    assert tracker.face_spec.names[tracker.face_spec.expression :][0] == "yaw"
    assert values[0, tracker.face_spec.names.index("jawOpen")] == pytest.approx(0.25)
    assert len(set(MEDIAPIPE_BLENDSHAPES)) == 52
    assert_allclose(next(tracker.follow(frames)).landmarks[239], (30, 15, 6))  # pixels, depth as the width
    assert tracker.track(frames[:0]).shape == (0, 58)


# ------------------------------------------------------------------------------------------------------ real faces


@pytest.fixture(scope="module")
def tracker(shared_folder) -> FaceLandmarker:
    pytest.importorskip("mediapipe")
    if not (shared_folder / "people" / "face_landmarker.task").is_file():
        pytest.skip("no model of the face landmarker beside the checkout")
    return FaceLandmarker(shared_folder / "people" / "face_landmarker.task")


@pytest.fixture(scope="module")
def speech(shared_folder) -> np.ndarray:
    """Two seconds of a talking person."""
    return read_video(shared_folder / "real" / "user.mp4", start=100, stop=150, max_side=256)


def square(boxes: np.ndarray) -> np.ndarray:
    x, y, side, _, _ = boxes[0]
    return np.array([x + side / 2, y + side / 2, side])


def test_boxes_are_steady_framed_like_the_cascade_and_found_when_small(tracker, speech):
    found = np.stack([square(tracker(frame)) for frame in speech[::5]])
    cascade = np.stack([square(HaarDetector()(frame)) for frame in speech[::5]])
    side = found[:, 2].mean()
    assert found[:, 2].std() < 0.02 * side < 0.5 * cascade[:, 2].std() + 0.02 * side
    assert np.abs(found - cascade).mean(0).max() < 0.1 * side
    canvas = np.full((405, 720, 3), 90, np.uint8)
    canvas[40:140, 600:700] = cv2.resize(speech[0], (100, 100), interpolation=cv2.INTER_AREA)
    expected = np.array([600, 40, 0]) + found[0] * 100 / 256
    assert np.abs(square(tracker(canvas)) - expected).max() < 4
    assert tracker(canvas[:, :400]).shape == (0, 5)


def test_varied_crops_move_the_readings_as_computed(tracker, speech):
    change = (1.1, 0.12, (0.05, -0.08))
    expected = moved(tracker.track(speech[:20]), tracker.face_spec, *change)
    seen = tracker.track(np.stack([cropped(frame, *change) for frame in speech[:20]]))
    difference = np.abs(seen - expected).mean(0)
    assert difference[:52].mean() < 0.02
    assert (difference[52:] < [0.05, 0.05, 0.02, 0.3, 0.5, 0.8]).all()  # unchanged: roll 0.12 off, x 1.2, y 2, z 2.5 cm


def test_one_framing_for_portraits_videos_and_cameras(tracker, speech, tmp_path):
    wide = np.full((256, 400, 3), 128, np.uint8)
    wide[:, 100:356] = speech[0]
    cv2.imwrite(str(tmp_path / "portrait.png"), wide[..., ::-1])
    portrait = read_portrait(tmp_path / "portrait.png", 64, detector=tracker)
    camera = FaceCropper(64, detector=tracker)(wide)
    assert np.abs(portrait.astype(int) - camera).mean() < 3
    write_video(tmp_path / "still.mp4", np.stack([wide] * 10), crf=5)
    video = next(face_frames(tmp_path / "still.mp4", 64, detector=tracker))
    assert np.abs(portrait.astype(int) - video).mean() < 6


def test_ingest_writes_what_the_tracker_reads(tracker, speech, shared_folder, tmp_path):
    write_video(tmp_path / "a.mp4", speech, crf=12)
    write_video(tmp_path / "b.mp4", speech[:, :, ::-1], crf=12)
    source = Source(a=str(tmp_path / "a.mp4"), b=str(tmp_path / "b.mp4"), audio_a="silence", audio_b="silence")
    report = run_ingest([source], tmp_path / "out", IngestOptions(size=128), detector=tracker)
    assert report.failed == ()
    reader = ShardReader(tmp_path / "out" / "train")
    meta, clip = reader.read_meta(0), reader.read(0, {"video", "face"})
    assert meta.face_spec == tracker.face_spec
    assert meta.valid_mask("a").all()
    again = tracker.track(clip.a.video)
    jaw = MEDIAPIPE_BLENDSHAPES.index("jawOpen")
    assert clip.a.face[:, jaw].std() > 0.02  # the person talks
    assert np.corrcoef(clip.a.face[:, jaw], again[:, jaw])[0, 1] > 0.95
    assert_allclose(clip.a.face[:, 52:55], again[:, 52:55], atol=0.05)
    _, _, mouth = eyes_and_mouth(clip.a.face[0], 128)
    lips = next(tracker.follow(clip.a.video)).landmarks[[61, 291, 13, 14], :2].mean(0)
    assert np.hypot(*(np.array(middle(mouth)) - lips)) < 8
