"""Faces of a live camera: framed as ingest frames them, steady, held for a while when lost."""

from __future__ import annotations

import numpy as np
import pytest

from af.errors import UserError
from af.ingest import crops
from af.ingest.crops import FaceCropper
from af.ingest.tracks import follow, steady_crops

HEIGHT, WIDTH, FACE = 240, 320, 60.0
FRAME = np.zeros((HEIGHT, WIDTH, 3), np.uint8)


class Seeing:
    """A detector that sees what it is told: centre x, y and side of faces, one list a look."""

    def __init__(self) -> None:
        self.faces: list[tuple[float, float, float]] = []
        self.looks = 0

    def __call__(self, frame: np.ndarray) -> np.ndarray:
        self.looks += 1
        shrink = frame.shape[1] / WIDTH
        boxes = [[x - s / 2, y - s / 2, s, s, 5.0 / shrink] for x, y, s in self.faces]
        return np.array(boxes).reshape(-1, 5) * shrink


@pytest.fixture
def seeing() -> Seeing:
    return Seeing()


@pytest.fixture
def boxes(monkeypatch) -> list[np.ndarray]:
    """The boxes (x, y, side) of the crops that are made."""
    made: list[np.ndarray] = []
    crop = crops.crop

    def noting(frame, box, size):
        made.append(np.array(box))
        return crop(frame, box, size)

    monkeypatch.setattr(crops, "crop", noting)
    return made


def centres(boxes: np.ndarray) -> np.ndarray:
    return boxes[:, :2] + boxes[:, 2:] / 2


def test_it_frames_and_steadies_as_ingest_does(seeing, boxes) -> None:
    """Someone who nods and sways, found with errors of a few per cent: no smoother may know the frames to come."""
    rng, frames = np.random.default_rng(0), 400
    time = np.arange(frames) / 25
    true = np.stack([160 + 8 * np.sin(0.5 * time), 110 + 2 * np.sin(9 * time), FACE + 3 * np.sin(0.3 * time)], 1)
    seen = true + rng.normal(0, 0.03 * FACE, true.shape)
    cropper = FaceCropper(32, detector=seeing)
    for n in range(frames):
        seeing.faces = [tuple(seen[n])]
        assert cropper(FRAME).shape == (32, 32, 3)
    looks = list(range(0, frames, 5))
    found = [np.array([[x - s / 2, y - s / 2, s, s, 5.0]]) for x, y, s in seen[looks]]
    ingest = steady_crops(follow(found, [0] * len(looks)), looks, frames, [], (HEIGHT, WIDTH)).boxes
    live = np.stack(boxes)
    assert seeing.looks == pytest.approx(frames / 5, abs=1)
    assert np.hypot(*(centres(live) - centres(ingest)).T).max() < 0.2 * FACE
    assert np.abs(np.log(live[:, 2] / ingest[:, 2])).max() < 0.1
    # steady: from frame to frame the crop moves a small part of what the detector trembles from look to look
    trembling = np.abs(np.diff(seen[looks][:, :2], axis=0)).mean()
    assert np.abs(np.diff(centres(live[25:]), axis=0)).mean() < trembling / 10


def test_a_single_wrong_face_moves_nothing(seeing, boxes) -> None:
    cropper = FaceCropper(32, detector=seeing)
    for n in range(100):
        seeing.faces = [(60.0, 60.0, 1.5 * FACE)] if n == 50 else [(160.0, 120.0, FACE)]
        cropper(FRAME)
    np.testing.assert_allclose(np.stack(boxes), [[100, 60, 120]] * 100)


def test_of_several_faces_the_same_one_is_followed(seeing, boxes) -> None:
    cropper = FaceCropper(32, detector=seeing)
    for n in range(100):
        other = [] if n < 40 else [(260.0, 120.0, 1.1 * FACE)]
        seeing.faces = [*other, (100.0, 120.0, FACE)]
        cropper(FRAME)
    np.testing.assert_allclose(np.stack(boxes), [[40, 60, 120]] * 100)


def test_somebody_who_moves_away_is_followed(seeing, boxes) -> None:
    cropper = FaceCropper(32, detector=seeing)
    for n in range(150):
        seeing.faces = [(100.0 if n < 75 else 200.0, 120.0, FACE)]
        cropper(FRAME)
    x = centres(np.stack(boxes))[:, 0]
    assert abs(x[74] - 100) < 1
    assert abs(x[74 + 50] - 200) < 0.15 * FACE + 1
    assert (np.diff(x) >= 0).all()  # on the way there, and not beyond


@pytest.mark.parametrize(("fps", "hold_s"), [(25, 1.0), (50, 0.4), (25, 0.0)])
def test_a_lost_face_is_held_for_a_while(seeing, boxes, fps: float, hold_s: float) -> None:
    cropper = FaceCropper(32, detector=seeing, fps=fps, hold_s=hold_s)
    assert cropper(FRAME) is None  # nobody yet
    seeing.faces = [(160.0, 120.0, FACE)]
    for _ in range(20):
        assert cropper(FRAME) is not None
    seeing.faces = []
    held = [cropper(FRAME) is not None for _ in range(100)]
    assert held == sorted(held, reverse=True)
    assert abs(sum(held) - hold_s * fps) <= 5
    np.testing.assert_allclose(boxes[-1], boxes[19])
    before = seeing.looks
    cropper(FRAME)
    assert seeing.looks == before + 1  # looked for in every frame
    seeing.faces = [(60.0, 120.0, FACE)]
    assert cropper(FRAME) is not None  # at once, and where it is now
    np.testing.assert_allclose(boxes[-1], [0, 60, 120], atol=1e-9)


def test_another_size_of_frames_is_another_camera(seeing, boxes) -> None:
    cropper = FaceCropper(32, detector=seeing)
    seeing.faces = [(160.0, 120.0, FACE)]
    cropper(FRAME)
    large = np.zeros((2 * HEIGHT, 2 * WIDTH, 3), np.uint8)
    assert cropper(large[..., ::-1]).shape == (32, 32, 3)  # a view, as of BGR
    np.testing.assert_allclose(boxes, [[100, 60, 120], [200, 120, 240]])


@pytest.mark.parametrize(
    "frame", [None, 3, FRAME[0], FRAME[..., :2], FRAME.astype(np.float32), FRAME[:8, :8], np.zeros((0, 0, 3), np.uint8)]
)
def test_what_is_no_frame_is_refused(seeing, frame) -> None:
    with pytest.raises(UserError, match="frame: expected RGB"):
        FaceCropper(32, detector=seeing)(frame)


@pytest.mark.parametrize(
    "wrong", [{"size": 0}, {"margin": -1}, {"fps": 0}, {"detect_every": 0}, {"hold_s": -1}, {"smoothing_s": 0}]
)
def test_settings_out_of_range_are_refused(seeing, wrong: dict) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        FaceCropper(**{"size": 32, "detector": seeing, **wrong})
