"""The shipped tracker of synthetic faces: accurate on people it never saw, at any size, also on blurred frames."""

import numpy as np
import pytest
import torch

from af.data.codecs import decode_video, encode_video
from af.errors import UserError
from af.metrics.arrays import r_squared
from af.models.tracker import FaceTracker, load_tracker, shipped_weights
from af.synth.appearance import Appearance
from af.synth.face import FACE_INDEX, FACE_NAMES, FACE_SPEC
from af.synth.render import render
from af.synth.session import simulate
from af.training.tracker import degrade, wide_faces

GOOD = ("mouth_open", "smile", "roll", "pitch", "yaw", "blink")


@pytest.fixture(scope="module")
def tracker():
    return load_tracker()


@pytest.fixture(scope="module")
def held_out():
    """(face, person) of people and conversations that no training run draws (its seeds have another length)."""
    pairs = []
    for n in range(24):
        session = simulate((99, 99, n), voices=False)
        pairs.append((session.a.face[::20], session.a.appearance))
    return pairs


def scores(tracker, pairs, pictures):
    found = np.concatenate([tracker.track(pictures(face, person)) for face, person in pairs])
    return dict(zip(FACE_NAMES, r_squared(np.concatenate([face for face, _ in pairs]), found), strict=True))


def test_weights_are_small_and_say_what_they_are(tracker):
    assert shipped_weights().stat().st_size <= 1_000_000
    assert tracker.face_spec.tracker == "synthetic-tracker/1"
    assert tracker.face_spec.names == FACE_SPEC.names
    assert tracker.face_spec.expression == FACE_SPEC.expression


def test_parameters_of_unseen_people(tracker, held_out):
    found = scores(tracker, held_out, lambda face, person: render(face, person, 64))
    for name in GOOD:
        assert found[name] > 0.88, (name, found)


@pytest.mark.parametrize("size", [128, 96])
def test_other_sizes(tracker, held_out, size):
    found = scores(tracker, held_out[:8], lambda face, person: render(face, person, size))
    for name in GOOD:
        assert found[name] > 0.8, (name, found)


def test_compressed_and_degraded_frames(tracker, held_out):
    video = scores(tracker, held_out, lambda face, person: decode_video(encode_video(render(face, person, 64), crf=20)))
    generator = torch.Generator().manual_seed(0)

    def spoiled(face, person):
        images = torch.from_numpy(render(face, person, 64)).permute(0, 3, 1, 2).float() / 127.5 - 1
        return ((degrade(images, generator) + 1) * 127.5).byte().permute(0, 2, 3, 1).numpy()

    blurred = scores(tracker, held_out, spoiled)
    for name in GOOD:
        assert video[name] > 0.78, (name, video)
        assert blurred[name] > 0.75, (name, blurred)


def test_one_frame_or_many_the_same(tracker):
    rng = np.random.default_rng(0)
    frames = render(wide_faces(rng, 70), Appearance.sample(rng), 64)
    together = tracker.track(frames)
    assert together.shape == (70, 13)
    assert together.dtype == np.float32
    assert np.abs(tracker.track(frames[66:67])[0] - together[66]).max() < 1e-3
    assert tracker.track(frames[:0]).shape == (0, 13)


def test_opening_the_mouth_moves_that_parameter_and_hardly_another(tracker):
    face = np.zeros((2, 13), np.float32)
    face[1, FACE_INDEX["mouth_open"]] = 0.8
    changes = []
    for seed in range(10):
        low, high = tracker.track(render(face, Appearance.sample(np.random.default_rng([5, seed])), 64))
        changes.append(high - low)
    mean = dict(zip(FACE_NAMES, np.mean(changes, axis=0), strict=True))
    assert mean.pop("mouth_open") == pytest.approx(0.8, abs=0.12)
    assert max(map(abs, mean.values())) < 0.15, mean


def test_fusing_and_saving_keep_the_function(tmp_path):
    torch.manual_seed(0)
    model = FaceTracker(("one", "two"), 1, "7")
    images = torch.rand(4, 3, 64, 64) * 2 - 1
    model.train()
    for _ in range(3):
        model(images * torch.rand(1))
    model.eval()
    with torch.no_grad():
        assert torch.allclose(model.fused()(images), model(images), atol=1e-4)
        model.save(tmp_path / "t.safetensors")
        loaded = load_tracker(tmp_path / "t.safetensors")
        assert loaded.face_spec.tracker == "synthetic-tracker/7"
        assert torch.allclose(loaded(images), model(images), atol=2e-2)
    assert not list(tmp_path.glob(".*"))


def test_bad_weights_and_bad_frames_are_named(tmp_path, tracker):
    with pytest.raises(UserError, match=r"none\.safetensors.*no such file"):
        load_tracker(tmp_path / "none.safetensors")
    (tmp_path / "x.safetensors").write_bytes(b"not weights at all")
    with pytest.raises(UserError, match="cannot be read"):
        load_tracker(tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="uint8"):
        tracker.track(np.zeros((1, 64, 64, 3), np.float32))


@pytest.mark.slow
def test_training_learns(tmp_path, capsys):
    from af.cli.main import main

    def unexplained(steps):
        path = tmp_path / f"{steps}.safetensors"
        assert main(["tracker", "train", "--out", str(path), "--steps", str(steps), "--seed", "1"]) == 0
        assert main(["tracker", "check", "--weights", str(path), "--people", "10"]) == 0
        roll = next(line for line in capsys.readouterr().out.splitlines() if "roll" in line)
        return 1 - float(roll.split("│")[2])

    assert unexplained(150) < unexplained(1) / 2
