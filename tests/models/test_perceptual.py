"""An autoencoder's own encoder as the judge of images."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from af.errors import UserError
from af.losses.reconstruction import ReconstructionLoss, feature_pyramid_l1
from af.models.artifact import load_as
from af.models.autoencoder import MotionAutoencoder
from af.models.perceptual import EncoderFeatures
from af.types import PairBatch


def test_the_judge_sees_motion_and_gives_images_a_gradient(autoencoder_folder, generator):
    features = EncoderFeatures(autoencoder_folder)
    image = torch.rand(2, 3, 32, 32, generator=generator) * 2 - 1
    *maps, coefficients = features(image)
    assert [m.shape[-1] for m in maps] == [8, 16]  # the outermost one knows only colours
    model, _ = load_as(autoencoder_folder, MotionAutoencoder)
    torch.testing.assert_close(coefficients, model.eval().coefficients(image))
    moved = image.clone().requires_grad_(True)
    feature_pyramid_l1(moved + 0.1, image, features=features, scales=[1.0]).backward()
    assert moved.grad.any()


def test_the_judge_is_no_part_of_what_is_trained(autoencoder_folder):
    features = EncoderFeatures(autoencoder_folder)
    loss = ReconstructionLoss(perceptual=0.1, distance=partial(feature_pyramid_l1, features=features, scales=[1.0]))
    assert list(loss.parameters()) == []
    assert not any(p.requires_grad for p in features.network.parameters())
    image = torch.zeros(1, 3, 32, 32)
    batch = PairBatch(image, image)
    assert loss(image, batch, coefficients=torch.zeros(1, 6))[0].item() == 0


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(UserError, match=tmp_path.name):
        EncoderFeatures(tmp_path)
