"""Whose face an image shows is told by what stays, not by what moves, and a driver's face on the portrait is found."""

from __future__ import annotations

import numpy as np
import pytest

from af.cli.main import main
from af.data.video import read_video
from af.evaluation.driven import next_people
from af.evaluation.identity import RIGID, LandmarkLook, colours, geometry, identity_rows, recognised
from af.ingest.landmarks import Face, FaceLandmarker, matrix_of_pose

PEOPLE = ["ann", "ben", "ann", "cleo"]


def face(points: np.ndarray, pose: tuple[float, float, float], scale: float) -> Face:
    """A head of these points (x right, y up, z to the viewer) in that pose, in pixels."""
    placed = np.array([*pose, 1.0, 2.0, -40.0])
    turned = points @ matrix_of_pose(placed)[:3, :3].T
    pixels = turned * [scale, -scale, -scale] + [70, 60, 5]
    return Face(pixels.astype(np.float32), np.zeros(52, np.float32), placed.astype(np.float32))


def test_geometry_is_that_of_the_head_and_not_of_its_pose_place_and_size():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(478, 3)) * [6, 8, 4]
    front = geometry(face(points, (0.0, 0.0, 0.0), 5.0))
    np.testing.assert_allclose(geometry(face(points, (0.5, -0.3, 0.2), 9.0)), front, atol=1e-4)
    mouth = points.copy()
    mouth[[13, 14, 17, 152]] += 3  # lips and chin move with what is said
    np.testing.assert_allclose(geometry(face(mouth, (0.5, -0.3, 0.2), 9.0)), front, atol=1e-4)
    points[RIGID[0]] += 1
    assert np.abs(geometry(face(points, (0.5, -0.3, 0.2), 9.0)) - front).max() > 0.05


def test_colours_are_of_skin_and_hair():
    landmarks = np.full((478, 3), [32.0, 30.0, 0.0], np.float32)
    landmarks[168, 1], landmarks[10, 1] = 34, 18  # the hair above is read at y = 10
    landmarks[[103, 332], 1] = 18
    frame = np.full((64, 64, 3), [200, 150, 120], np.uint8)
    frame[:14] = [40, 30, 20]
    found = colours(frame, landmarks).reshape(8, 3)
    np.testing.assert_array_equal(found[:5], [[200, 150, 120]] * 5)
    np.testing.assert_array_equal(found[5:], [[40, 30, 20]] * 3)
    landmarks[:, :2] += 500  # beyond the frame: its border
    assert (colours(frame, landmarks).reshape(8, 3) == [200, 150, 120]).all()


def test_shares_by_hand():
    apart = [np.array([[1.0, 2.0, 3.0], [2.0, 1.0, 3.0], [2.0, 3.0, 1.0], [1.0, 1.0, 1.0]]), np.zeros((0, 3))]
    found = recognised(apart, [0, 1], [1, 0])
    assert found["rank1"] == 1 / 4  # a tie is not nearer
    assert found["auc"] == (1 + 1 / 2 + 1 / 2 + 1 / 2) / 4
    assert found["not_driver"] == 2 / 4


def test_the_next_person_is_another_one():
    assert next_people(PEOPLE) == [1, 2, 3, 0]
    assert next_people(["ann", "ann", "ben"]) == [2, 2, 0]
    assert next_people(["ann", "ann"]) == [1, 0]


def rows(own, across):
    """Rows of made-up vectors: the first numbers tell the person, the last one moves more than people differ."""
    rng = np.random.default_rng(0)
    places = {"ann": [1.0, 0.0, 0.0], "ben": [0.0, 1.0, 0.0], "cleo": [0.0, 0.0, 1.0]}

    def vectors(who: np.ndarray, frames: int = 40) -> dict[str, np.ndarray]:
        moves = np.concatenate([0.05 * rng.normal(size=(frames, 3)), 5 * rng.normal(size=(frames, 1))], 1)
        return {"geometry": np.concatenate([np.asarray(who), [0.0]]) + moves}

    drivers = next_people(PEOPLE)
    right = [np.array(places[name]) for name in PEOPLE]
    known, true = ([vectors(who) for who in right] for _ in range(2))
    known[0]["geometry"][:5] = np.nan  # frames without a face
    made = [vectors(own(who, right[n])) for who, n in zip(right, drivers, strict=True)]
    driven = [vectors(across(who, right[n])) for who, n in zip(right, drivers, strict=True)]
    found = identity_rows(PEOPLE, drivers, known, true, made, driven)
    return {row.tag.removeprefix("driven/identity/geometry/"): row for row in found}


def test_a_portrait_that_takes_its_drivers_face_is_told_from_one_that_keeps_its_own():
    kept, taken = rows(lambda who, _: who, lambda who, _: who), rows(lambda who, _: who, lambda _, driver: driver)
    assert set(kept) == {"own/rank1", "own/auc", "across/rank1", "across/auc", "across/not_driver"}
    for row in kept.values():
        assert row.value == row.ground_truth == 1  # what moves does not count, however much it does
    assert (kept["own/rank1"].null, kept["own/auc"].null) == (1 / 3, 0.5)
    for name in ("rank1", "auc", "not_driver"):
        row = taken[f"across/{name}"]
        assert row.value == pytest.approx(row.null, abs=0.1)  # the driver's true frames
        assert row.value < 0.5
    assert taken["across/not_driver"].value == taken["across/rank1"].value == 0
    halfway = rows(lambda who, _: who, lambda who, driver: 0.45 * who + 0.55 * driver)
    assert 0 < halfway["across/not_driver"].value < 0.5


def test_one_person_is_compared_with_nobody():
    vectors = [{"geometry": np.zeros((4, 3))}] * 2
    assert identity_rows(["ann", "ann"], [1, 0], vectors, vectors, vectors, vectors) == []


def test_an_embedder_without_real_people_is_refused(tmp_path, capsys):
    words = ["--autoencoder", "none", "--data", "none", "--out", str(tmp_path / "out"), "--embedder", "id.pt"]
    assert main(["probe", *words]) != 0
    assert "give --real" in capsys.readouterr().err


def test_two_real_people_are_told_apart_by_geometry_and_colour(shared_folder):
    pytest.importorskip("mediapipe")
    look = LandmarkLook(FaceLandmarker(shared_folder / "people" / "face_landmarker.task"))
    known, true = [], []
    for name in ("user", "avatar"):
        video = read_video(shared_folder / "real" / f"{name}.mp4")
        known.append(look(video[:20])[1])
        true.append(look(video[-20:])[1])
    found = {row.tag: row for row in identity_rows(["user", "avatar"], [1, 0], known, true, true, true)}
    assert len(found) == 10
    for measure in ("geometry", "colour"):
        assert found[f"driven/identity/{measure}/own/rank1"].value > 0.9
        assert found[f"driven/identity/{measure}/across/rank1"].null < 0.1
