"""Extractors with stand-in network files: names and versions in the tags, and errors that say what to fetch."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from af.errors import UserError
from af.evaluation.extractors import (
    Extractor,
    i3d,
    inception,
    thumbnail,
    torch_module,
    tracked,
    windows_of,
)
from af.evaluation.settings import Tools
from af.evaluation.syncnet import SyncNet, lip_crops, load_syncnet, lse, mfcc, offset_curve
from af.files import sha256_of
from af.types import FaceSpec


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (20, 24, 24, 3), dtype=np.uint8)


class Mean(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(2).mean(-1)


class Detector(torch.nn.Module):
    """Stands in for the I3D file: the same call, four features."""

    def forward(self, x: torch.Tensor, rescale: bool = True, resize: bool = True, return_features: bool = True):
        return torch.cat([x.mean((2, 3, 4)), x.std((1, 2, 3, 4)).unsqueeze(1)], 1)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("networks")
    torch.jit.save(torch.jit.script(Mean()), folder / "mean.pt")
    torch.jit.save(torch.jit.script(Detector()), folder / "i3d.pt")
    torch.manual_seed(0)
    torch.save(SyncNet().state_dict(), folder / "syncnet.model")
    (folder / "text.pt").write_text("not a network")
    return folder


def test_thumbnail_is_the_mean_colour(frames):
    assert_allclose(thumbnail(1)(frames), frames.mean((1, 2)) / 255, atol=0.003)
    assert thumbnail(8).tag == "thumbnail8-1"


def test_torchscript_file_carries_its_hash(frames, files):
    extractor = torch_module(files / "mean.pt", "mine", size=24)
    assert extractor.tag == f"mine-{sha256_of(files / 'mean.pt')[:8]}"
    assert_allclose(extractor(frames), frames.mean((1, 2)) / 127.5 - 1, atol=1e-5)
    video = torch_module(files / "mean.pt", "mine", "video", size=24, window=8, stride=4)
    assert video(frames).shape == (4, 3)
    assert torch_module(files / "mean.pt", "mine", "video", size=24, window=64)(frames).shape[0] == 0
    kept = {
        Tools(networks={"mine": torch_module(files / "mean.pt", "mine", **how)}).signature()
        for how in ({"size": 24}, {"size": 32}, {"low": 0.0}, {"kind": "video"}, {"kind": "video", "stride": 4})
    }
    assert len(kept) == 5  # what was measured in one way is not taken for another


def test_windows_never_run_over_the_end():
    clip = torch.arange(10.0)[:, None, None, None].expand(10, 3, 1, 1)
    windows = windows_of(clip, 4, 3)
    assert windows.shape == (3, 3, 4, 1, 1)
    assert windows[:, 0, :, 0, 0].tolist() == [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8, 9]]


def test_fvd_is_called_so_only_for_a_file_somebody_vouches_for(frames, files):
    path = files / "i3d.pt"
    assert i3d(path).metric is None
    extractor = i3d(path, sha256_of(path), stride=2)
    assert extractor.metric == "fvd_i3d/16f-s2"
    assert extractor(frames).shape == (3, 4)
    with pytest.raises(UserError, match="SHA-256 is"):
        i3d(path, "0" * 64)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: inception(None), "weights-inception-2015-12-05-6726825d.pth"),
        (lambda: i3d("/nowhere/i3d.pt"), "/nowhere/i3d.pt: no such file"),
        (lambda: load_syncnet(None), "syncnet_v2.model"),
        (lambda: torch_module("/nowhere/net.pt", "mine"), "TorchScript"),
    ],
)
def test_missing_weights_say_what_to_fetch_and_where_to_put_it(make, words):
    with pytest.raises(UserError, match=words) as error:
        make()
    assert "path" in str(error.value)


def test_a_file_that_is_no_network_is_named(files):
    for make in (lambda p: torch_module(p, "mine"), i3d, load_syncnet):
        with pytest.raises(UserError, match=r"text\.pt: not"):
            make(files / "text.pt")
    torch.save({"x": torch.zeros(1)}, files / "other.model")
    with pytest.raises(UserError, match="not SyncNet weights"):
        load_syncnet(files / "other.model")


def test_a_tracker_or_extractor_that_returns_another_shape_is_refused(frames):
    tracker = SimpleNamespace(face_spec=FaceSpec(("a", "b"), 1, "mine/3"), track=lambda clip: np.zeros((len(clip), 2)))
    assert tracked(tracker, frames).shape == (20, 2)
    tracker.track = lambda clip: np.zeros((len(clip), 3))
    with pytest.raises(ValueError, match="mine/3 returned shape"):
        tracked(tracker, frames)
    with pytest.raises(ValueError, match="mine-3 returned shape"):
        Extractor("mine", "3", "image", lambda clip: np.zeros(3))(frames)


def test_inception_through_torch_fidelity(frames, tmp_path):
    pytest.importorskip("torch_fidelity")
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    blank = FeatureExtractorInceptionV3.__new__(FeatureExtractorInceptionV3)
    torch.nn.Module.__init__(blank)
    with contextlib.suppress(FileNotFoundError):  # the layers are made before the weights are read: keep them
        FeatureExtractorInceptionV3.__init__(blank, "x", ["2048"], feature_extractor_weights_path="/nowhere")
    torch.save(blank.state_dict(), tmp_path / "weights.pth")
    extractor = inception(tmp_path / "weights.pth")
    assert extractor.metric is None  # not the real weights: never called FID
    assert extractor(frames[:3]).shape == (3, 2048)


def test_mfcc_shape_and_scale():
    """Against values of python_speech_features 0.6 (mfcc of the same 16-bit samples), made once."""
    audio = np.sin(2 * np.pi * 440 * np.arange(1600) / 16000) * 0.5
    values = mfcc(audio)
    assert values.shape == (9, 13)
    assert_allclose(values[3], MFCC_REFERENCE, atol=5e-4)


MFCC_REFERENCE = [
    20.4996,
    26.0436,
    9.4326,
    -7.5629,
    -21.881,
    -29.1958,
    -25.879,
    -15.1937,
    -0.21,
    12.4969,
    19.968,
    19.1201,
    12.2692,
]


def test_offset_curve_finds_the_offset():
    rng = torch.Generator().manual_seed(0)
    sound = torch.randn(60, 16, generator=rng)
    lips = sound.roll(3, 0)  # the picture is 3 frames late
    curve = offset_curve(lips, sound)
    assert 15 - curve.argmin() == 3
    assert curve.shape == (31,)


@pytest.mark.slow
def test_lse_of_a_stand_in_network(files):
    network = load_syncnet(files / "syncnet.model", sha256_of(files / "syncnet.model"))
    rng = np.random.default_rng(0)
    result = lse(network, rng.integers(0, 256, (12, 32, 32, 3), dtype=np.uint8), 0.1 * rng.normal(size=12 * 640))
    assert result.distance == pytest.approx(result.curve.min())
    assert result.confidence == pytest.approx(np.median(result.curve) - result.distance)
    with pytest.warns(UserWarning, match="lse"):
        assert np.isnan(lse(network, np.zeros((5, 32, 32, 3), np.uint8), np.zeros(3200)).distance)


def test_lip_crops_follow_the_face_and_show_the_mouth_whole():
    frames = np.zeros((20, 100, 200, 3), np.uint8)
    boxes = np.tile([80.0, 20.0, 120.0, 70.0], (20, 1))  # half the longer side is 25, the centre (100, 45)
    frames[:, 66:70, 98:102] = 255  # a mark 23 below the centre
    boxes[4] = np.nan
    boxes[9] += 60  # an outlier of one frame, which the median passes over
    crops = lip_crops(frames, boxes)
    assert crops.shape == (20, 224, 224, 3)
    assert (crops == crops[:1]).all()
    row, column = (np.flatnonzero(crops[0, ..., 0].mean(axis) > 5) for axis in (1, 0))
    assert_allclose(row.mean(), (23 + 25) * 224 / 70, atol=1)
    assert_allclose(column.mean(), 111.5, atol=1)
    near_edge = lip_crops(frames, boxes - [70, 0, 70, 0])
    assert (near_edge[0, 100, :5] == 110).all()  # beyond the frame
    assert lip_crops(frames, np.full((20, 4), np.nan)) is frames
