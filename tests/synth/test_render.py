"""Synthetic faces: what each parameter must show, edges, sizes, people."""

import numpy as np
import pytest

from af.synth.appearance import Appearance
from af.synth.face import FACE_INDEX, FACE_NAMES, FACE_RANGES
from af.synth.render import regions, render

PERSON = Appearance.sample(np.random.default_rng(0))


def faces(**values):
    """One frame a value; parameters not named are neutral."""
    length = max(np.size(v) for v in values.values()) if values else 1
    face = np.zeros((length, len(FACE_NAMES)), np.float32)
    for name, value in values.items():
        face[:, FACE_INDEX[name]] = value
    return face


def centre_of(mask):
    rows, columns = np.mgrid[: mask.shape[-2], : mask.shape[-1]]
    return np.array([(mask * columns).sum(), (mask * rows).sum()]) / mask.sum()


@pytest.mark.parametrize("size", [16, 33, 64, 128])
def test_any_size_gives_the_same_picture_at_another_resolution(size):
    frames = render(faces(smile=[0, 1], mouth_open=[0, 0.7]), PERSON, size)
    assert frames.shape == (2, size, size, 3)
    assert frames.dtype == np.uint8
    large = render(faces(smile=[0, 1], mouth_open=[0, 0.7]), PERSON, size * 4)
    small = large.reshape(2, size, 4, size, 4, 3).mean((2, 4))
    assert np.abs(small - frames).mean() < (2.5 if size >= 33 else 6)


def test_frames_do_not_depend_on_their_neighbours():
    """Drawn together or one by one, the same bytes: windows shared by a stack cut nothing off."""
    rng = np.random.default_rng(1)
    low, high = np.array([FACE_RANGES[n] for n in FACE_NAMES]).T
    face = rng.uniform(low, high, (40, len(FACE_NAMES))).astype(np.float32)
    for seed in range(6):
        person = Appearance.sample(np.random.default_rng(seed))
        together = render(face, person, 48)
        alone = np.concatenate([render(face[i : i + 1], person, 48) for i in range(len(face))])
        difference = np.abs(together.astype(int) - alone)
        assert difference.max() <= 1, f"person {seed}: frame {difference.max((1, 2, 3)).argmax()}"


def test_edges_are_anti_aliased_and_move_by_less_than_a_pixel():
    """A hundredth of a pixel of movement changes the picture, by little: nothing snaps to pixels."""
    steps = np.linspace(0, 1 / 64, 9)  # one pixel at 64
    frames = render(faces(shift_x=steps), PERSON, 64).astype(float)
    changes = np.abs(np.diff(frames, axis=0))
    assert (changes.mean((1, 2, 3)) > 0.02).all()
    total = np.abs(frames[-1] - frames[0]).mean()
    assert changes.mean((1, 2, 3)).max() < 0.3 * total
    assert changes.max() < 100


@pytest.mark.parametrize(
    ("name", "value", "top", "bottom"),
    [
        ("mouth_open", 0.8, 0.5, 0.95),
        ("mouth_width", 0.9, 0.5, 0.9),
        ("smile", 0.9, 0.3, 0.9),
        ("brow", 0.9, 0.2, 0.6),
        ("blink", 1.0, 0.3, 0.65),
        ("gaze_x", 0.8, 0.3, 0.65),
        ("gaze_y", 0.8, 0.3, 0.65),
    ],
)
def test_each_expression_changes_its_part_of_the_face(name, value, top, bottom):
    for seed in range(4):
        person = Appearance.sample(np.random.default_rng(seed))
        neutral, moved = render(np.concatenate([faces(), faces(**{name: value})]), person, 64).astype(float)
        change = np.abs(moved - neutral).sum(-1)
        assert change.sum() > 300, seed
        inside = change[int(64 * top) : int(64 * bottom)].sum() / change.sum()
        assert inside > 0.8, (seed, inside)


def test_the_head_moves_as_its_pose_says():
    def eyes_and_mouth(**values):
        return centre_of(regions(faces(**values), PERSON, 64)[0])

    rest = eyes_and_mouth()
    right, down = eyes_and_mouth(yaw=0.4) - rest, eyes_and_mouth(pitch=0.3) - rest
    assert right[0] > 3
    assert down[1] > 3
    assert eyes_and_mouth(shift_x=0.05) - rest == pytest.approx([0.05 * 64, 0], abs=0.3)
    clockwise = eyes_and_mouth(roll=0.3) - rest  # about the neck: the face goes to the right
    assert clockwise[0] > 2
    assert regions(faces(scale=0.15), PERSON, 64).sum() > 1.15 * regions(faces(), PERSON, 64).sum()


def test_turning_the_head_moves_the_nose_more_than_the_hair():
    """Parallax: what is in front moves further than the outline."""
    frames = render(faces(yaw=[0, 0.25]), PERSON, 128).astype(float)
    background = render(faces(scale=-0.15, shift_y=0.08), PERSON, 128)[0, 2, 2].astype(float)
    outline = [centre_of((np.abs(f - background).sum(-1) > 60)[:70].astype(float))[0] for f in frames]
    face = [centre_of(m)[0] for m in regions(faces(yaw=[0, 0.25]), PERSON, 128)]
    assert face[1] - face[0] > 3 * abs(outline[1] - outline[0])


def test_people_differ_and_are_the_same_again():
    frames = [render(faces(), Appearance.sample(np.random.default_rng(seed)), 48)[0] for seed in range(12)]
    again = render(faces(), Appearance.sample(np.random.default_rng(3)), 48)[0]
    assert np.array_equal(frames[3], again)
    differences = [np.abs(a.astype(int) - b).mean() for i, a in enumerate(frames) for b in frames[:i]]
    assert min(differences) > 8


def test_regions_cover_eyes_and_mouth_only():
    masks = regions(faces(mouth_open=[0, 1]), PERSON, 64)
    assert masks.shape == (2, 64, 64)
    assert masks.min() >= 0
    assert masks.max() <= 1
    changed = np.abs(np.diff(render(faces(blink=[0, 1], mouth_open=[0, 1]), PERSON, 64).astype(float), axis=0)).sum(-1)
    assert (changed[0] * (masks[1] > 0.1)).sum() > 0.85 * changed.sum()
    assert masks[:, :8].max() == 0
    assert 0.05 < masks.mean() < 0.35


@pytest.mark.parametrize(
    ("face", "size"), [(np.zeros((2, 5)), 64), (np.full((1, 13), np.nan), 64), (np.zeros((1, 13)), 4)]
)
def test_bad_input_is_refused(face, size):
    with pytest.raises(ValueError, match="face"):
        render(face, PERSON, size)
