"""Probes and transfer: what is known to be there is found, what is not there is not."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from af.cli.main import main
from af.data.index import Index
from af.errors import UserError
from af.evaluation import probe, transfer
from af.metrics.arrays import r_squared
from af.synth.appearance import Appearance
from af.synth.face import FACE_INDEX, FACE_NAMES
from af.synth.render import render


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    """Four conversations of 1 s, 32 px."""
    folder = tmp_path_factory.mktemp("probed")
    sizes = ["--train", "0", "--val", "0", "--test", "4", "--seconds", "4", "--size", "32", "--workers", "1"]
    assert main(["synth", "--out", str(folder), *sizes]) == 0
    return folder / "test"


def test_changes_of_the_person_are_found_and_those_of_the_face_are_not():
    person, spread = Appearance.sample(np.random.default_rng(3)), transfer.appearance_spread()
    face = np.zeros(len(FACE_NAMES), np.float32)
    face[FACE_INDEX["yaw"]] = 0.1

    def errors(other: Appearance, other_face: np.ndarray) -> dict[str, np.ndarray]:
        return transfer.appearance_error(render(other_face[None], other, 64)[0], face, person, spread)

    assert max(np.abs(e).max() for e in errors(person, face).values()) == 0
    darker = tuple(c - 0.5 * s for c, s in zip(person.clothes, spread["clothes"], strict=True))
    wider = replace(person, clothes=darker, face_width=person.face_width + 0.5 * spread["face_width"][0])
    found = errors(wider, face)
    np.testing.assert_allclose(found["clothes"], -0.5, atol=0.1)
    np.testing.assert_allclose(found["face_width"], 0.5, atol=0.2)
    assert max(np.abs(found[name]).max() for name in ("skin", "background")) < 0.1
    smiling = face.copy()
    smiling[FACE_INDEX["mouth_open"]] = 0.1
    values = np.concatenate(list(errors(person, smiling).values()))
    assert np.sqrt(np.mean(values**2)) < 0.15


def test_pairs_are_of_different_people_and_the_right_picture_is_theirs(split):
    pairs = transfer.draw_pairs(Index.load(split), 10, seed=1)
    drawn = zip(pairs.portrait_faces, pairs.people, strict=True)
    own = np.concatenate([render(face[None], person, 32) for face, person in drawn])
    assert np.abs(own.astype(int) - pairs.portraits).mean() < 3  # the videos are compressed
    assert np.abs(pairs.truth.astype(int) - pairs.driving).mean() > 10
    assert (pairs.portraits[: transfer.DRIVEN] == pairs.portraits[0]).all()  # a portrait several times, then the next
    assert (pairs.portraits[transfer.DRIVEN] != pairs.portraits[0]).any()
    again = transfer.draw_pairs(Index.load(split), 10, seed=1)
    np.testing.assert_array_equal(again.driving_faces, pairs.driving_faces)


def test_the_floor_shows_the_right_people_with_faces_a_little_off(split):
    pairs = transfer.draw_pairs(Index.load(split), 10, seed=1)
    off = transfer.with_faces_off(pairs, seed=3).astype(int)
    assert 0.2 < np.abs(off - pairs.truth).mean() < 0.3 * np.abs(pairs.driving.astype(int) - pairs.truth).mean()
    np.testing.assert_array_equal(off, transfer.with_faces_off(pairs, seed=3))


def test_identity_errors_are_what_persists_from_picture_to_picture():
    rng, spread = np.random.default_rng(5), transfer.appearance_spread()
    person = Appearance.sample(rng)
    faces = rng.uniform(-0.1, 0.1, (transfer.DRIVEN, len(FACE_NAMES))).astype(np.float32)
    pictures = np.zeros((transfer.DRIVEN, 32, 32, 3), np.uint8)
    pairs = transfer.Pairs(pictures, faces, (person,) * transfer.DRIVEN, pictures, faces)
    darker = tuple(c - 0.5 * s for c, s in zip(person.clothes, spread["clothes"], strict=True))
    shown = transfer.with_faces_off(replace(pairs, people=(replace(person, clothes=darker),) * transfer.DRIVEN))

    found = transfer.identity_error(shown, pairs, spread)
    assert all(len(values) == 1 for values in found.values())  # one portrait
    np.testing.assert_allclose(found["clothes"][0], -0.5, atol=0.1)
    single = transfer.appearance_error(shown[0], faces[0], person, spread)
    wrong, once = (np.concatenate([np.ravel(side[name]) for name in transfer.SHAPES]) for side in (found, single))
    assert np.abs(wrong).mean() < 0.7 * np.abs(once).mean()  # that of faces a little off does not


def test_r2_by_hand():
    truth, found = np.array([[0.0, 1.0], [2.0, 1.0]]), np.array([[1.0, 1.0], [2.0, 1.0]])
    first, constant = r_squared(truth, found)
    assert first == 0.5
    assert np.isnan(constant)


def test_probes_find_a_linear_link_and_nothing_else():
    rng = np.random.default_rng(0)
    inputs = [rng.normal(size=(50, 5)) for _ in range(12)]
    weights = rng.normal(size=(5, 3))
    assert probe.probe_r2(inputs, [x @ weights + 1 for x in inputs]).min() > 0.999
    assert probe.probe_r2(inputs, [rng.normal(size=(50, 3)) for _ in inputs]).max() < 0.05
    places = rng.normal(size=(12, 30)) * 5
    assert probe.recognised([rng.normal(size=(40, 30)) + place for place in places]) == 1


def test_roughness_of_a_line_is_zero_and_of_a_zigzag_two():
    assert probe.roughness([np.arange(20.0)[:, None]]) == pytest.approx(0, abs=1e-9)
    assert probe.roughness([(np.arange(20.0) % 2)[:, None]]) == pytest.approx(2)


def test_the_command_writes_numbers_and_pictures(split, autoencoder_folder, tmp_path, capsys):
    arguments = ["--autoencoder", str(autoencoder_folder), "--data", str(split), "--out", str(tmp_path)]
    assert main(["probe", *arguments, "--pairs", "4", "--conversations", "4", "--frames", "40"]) == 0
    found = json.loads((tmp_path / "metrics.json").read_text())
    tags = {
        "psnr", "psnr/null", "transfer/psnr", "transfer/r2/expression", "transfer/r2/smile", "transfer/identity/colours",
        "probe/face_from_motion/yaw", "probe/identity_from_motion/true", "probe/motion_from_code/null",
        "smoothness/roughness/true",
    }  # fmt: skip
    assert tags <= found.keys()
    assert found["transfer/agreement/smile/true"] == 1
    assert (tmp_path / "directions.png").is_file()
    assert (tmp_path / "transfer.png").is_file()
    assert "- 5: " in (tmp_path / "metrics.md").read_text()  # six directions


def test_what_cannot_be_probed_is_said(dyads, latents, autoencoder_folder, denoiser_folder, tmp_path, capsys):
    for model, data, message in (
        (autoencoder_folder, dyads / "test", "at least 4 conversations, found 2"),
        (denoiser_folder, dyads / "test", "not a motion autoencoder"),
    ):
        assert main(["probe", "--autoencoder", str(model), "--data", str(data), "--out", str(tmp_path)]) == 1
        assert message in capsys.readouterr().err
    with pytest.raises(UserError, match="two conversations"):
        transfer.draw_pairs(Index.load(dyads / "val"), 2)
