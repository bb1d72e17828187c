"""Paths of faces through a video, crops along them, and the clips that they allow."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from af.ingest.tracks import crop, find_clips, follow, steady_crops


def test_the_path_ignores_a_false_face():
    rng = np.random.default_rng(0)
    candidates = []
    for t in range(40):
        boxes = [[100 + t + rng.normal(), 80 + rng.normal(), 50, 50, 3.0]]
        if t % 7 == 3:
            boxes.append([300, 20, 55, 55, 4.0])  # larger and surer, but elsewhere
        candidates.append(np.array(boxes[:: (-1 if t % 2 else 1)]))
    path = follow(candidates, [0] * 40)
    assert np.abs(path[:, 0] - (125 + np.arange(40))).max() < 5
    assert np.isnan(follow([np.zeros((0, 5))] * 3, [0] * 3)).all()


def test_a_scene_cut_lets_the_path_jump():
    candidates = [np.array([[10.0, 10, 40, 40, 1]])] * 10
    candidates += [np.array([[10.0, 10, 20, 20, 1], [200, 100, 60, 60, 1]])] * 10
    path = follow(candidates, [0] * 10 + [1] * 10)
    assert path[9, 0] == 30
    assert path[10, 0] == 230


def test_gaps_are_bridged_marked_and_cut():
    path = np.array([[100.0, 90, 40]] * 40)
    at = np.arange(0, 200, 5)
    path[10:14] = np.nan  # 45..70: 25 frames between faces
    path[25:34] = np.nan  # 120..170: 50 frames
    path[17] = [300, 20, 40]  # one look elsewhere
    track = steady_crops(path, at, 200, [], (200, 320), trusted_gap_s=0.4, bridged_gap_s=1.0)
    assert track.valid[:46].all()
    assert not track.valid[46:70].any()
    assert track.present[:121].all()
    assert not track.present[121:170].any()
    assert track.present[170:].all()
    np.testing.assert_allclose(track.boxes[track.present], [[60, 50, 80]] * int(track.present.sum()), atol=1e-6)


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.5, 8))
def test_crops_lie_inside_the_frame(seed, margin):
    rng = np.random.default_rng(seed)
    height, width = int(rng.integers(40, 400)), int(rng.integers(40, 400))
    path = np.stack([rng.uniform(0, width, 9), rng.uniform(0, height, 9), rng.uniform(5, 200, 9)], 1)
    track = steady_crops(path, list(range(0, 36, 4)), 36, [11], (height, width), margin=margin)
    x, y, side = track.boxes.T
    assert (x >= 0).all()
    assert (y >= 0).all()
    assert (x + side <= width + 1e-9).all()
    assert (y + side <= height + 1e-9).all()


def test_smoothing_follows_drift_but_not_nods():
    t = np.arange(0, 500, 5)
    nod = 8 * np.sin(2 * np.pi * t / 20)
    path = np.stack([100 + 0.2 * t, 100 + nod, np.full(len(t), 40.0)], 1)
    boxes = steady_crops(path, t, 500, [], (400, 400)).boxes
    assert np.ptp(boxes[100:400, 1]) < 1.0
    np.testing.assert_allclose(np.diff(boxes[100:400, 0]), 0.2, atol=0.02)


@pytest.mark.parametrize("side", [20.0, 64.0, 200.0, 333.3])
def test_crop_is_centred_to_a_fraction_of_a_pixel(side):
    """A soft blob at the crop's centre comes out at the centre, whatever the scale and the fraction of a pixel."""
    y, x = np.mgrid[:400, :400]
    for cx, cy in ((200.0, 190.0), (200.37, 190.81)):
        blob = np.exp(-((x + 0.5 - cx) ** 2 + (y + 0.5 - cy) ** 2) / (2 * (side / 8) ** 2))
        frame = np.repeat((blob * 255).round().astype(np.uint8)[..., None], 3, 2)
        out = crop(frame, np.array([cx - side / 2, cy - side / 2, side]), 64)[..., 0].astype(float)
        assert out.shape == (64, 64)
        centre = [(out.sum(axis) * (np.arange(64) + 0.5)).sum() / out.sum() for axis in (0, 1)]
        np.testing.assert_allclose(centre, [32, 32], atol=0.15)


@settings(deadline=None)
@given(
    st.lists(st.booleans(), max_size=120),
    st.sets(st.integers(0, 119), max_size=4),
    st.integers(1, 9),
    st.integers(0, 9),
)
def test_clips_are_long_enough_and_whole(present, cuts, minimum, more):
    mask = np.array(present, bool)
    clips = find_clips(mask, sorted(cuts), minimum=minimum, maximum=minimum + more)
    covered = np.zeros(len(mask), int)
    for start, stop in clips:
        assert minimum <= stop - start <= minimum + more
        assert mask[start:stop].all()
        assert not any(start < c < stop for c in cuts)
        covered[start:stop] += 1
    assert (covered <= 1).all()
    # what is left of a run is shorter than a clip may be
    left = mask & (covered == 0)
    borders = sorted({0, len(mask), *(c for c in cuts if c < len(mask))})
    for start, stop in itertools.pairwise(borders):
        runs = "".join("x" if v else " " for v in left[start:stop]).split()
        assert all(len(run) < minimum + more for run in runs)
        if more >= minimum:
            assert all(len(run) < minimum for run in runs)
