"""A larger stage begins as the smaller one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from af.errors import UserError
from af.models.artifact import save_model
from af.models.autoencoder import MotionAutoencoder
from af.models.progressive import start_as_copy, start_from

SIZES = {"latent_dim": 12, "directions": 4, "channel_base": 256, "max_channels": 8}


def _saved(folder, size=16, **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MotionAutoencoder(size, **SIZES, **options).eval()
        for level in model.decoder.levels.values():
            torch.nn.init.normal_(level.flow.weight, std=0.3)
    target = "af.models.autoencoder.MotionAutoencoder"
    save_model(folder, model, {"_target_": target, "image_size": size, **SIZES, **options}, {})
    return model


@pytest.mark.parametrize("normalised", [False, True])
def test_the_larger_model_begins_with_the_smaller_ones_motion_and_pictures(tmp_path, generator, normalised):
    small = _saved(tmp_path, normalised=normalised)
    large = MotionAutoencoder(32, **SIZES, normalised=normalised).eval()
    start_from(large, tmp_path)
    # away from the borders nothing is lost when smooth images are halved
    images = F.interpolate(torch.rand(4, 3, 3, 3, generator=generator) * 2 - 1, (32, 32), mode="bicubic").clamp(-1, 1)
    halves = F.avg_pool2d(images, 2)
    with torch.no_grad():
        mine, theirs = large(images, images.flip(0)), small(halves, halves.flip(0))
    inside = (..., slice(2, -2), slice(2, -2))
    pictures = (F.avg_pool2d(mine.image, 2)[inside], theirs.image[inside])
    for a, b in ((mine.coefficients, theirs.coefficients), pictures):
        error = (a - b).square().mean().sqrt()
        assert error < 0.1 * (b - b.mean(0)).square().mean().sqrt()
    fresh = MotionAutoencoder(32, **SIZES, normalised=normalised).eval()(images, images.flip(0)).coefficients
    assert (fresh - theirs.coefficients).norm() > 5 * (mine.coefficients - theirs.coefficients).norm()


def test_the_new_layers_learn(tmp_path, generator):
    _saved(tmp_path)
    large = MotionAutoencoder(32, **SIZES)
    start_from(large, tmp_path)
    optimizer = torch.optim.SGD(large.parameters(), lr=0.1)
    images = torch.rand(2, 3, 32, 32, generator=generator) * 2 - 1
    for _ in range(3):  # what feeds a layer of zeros gets its gradient one step later
        optimizer.zero_grad()
        (large(images, images.flip(0)).image - images.flip(0)).square().mean().backward()
        optimizer.step()
    assert [name for name, p in large.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_the_same_size_is_copied(tmp_path):
    small = _saved(tmp_path)
    other = MotionAutoencoder(16, **SIZES)
    start_from(other, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(small.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize(
    ("size", "change", "message"),
    [
        (64, {}, "go by doubling"),
        (32, {"latent_dim": 16}, "must agree"),
        (32, {"normalised": True}, "must agree"),
        (16, {"paint": True}, "paint=False, the model to start True"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, size, change, message):
    _saved(tmp_path)
    with pytest.raises(UserError, match=message):
        start_from(MotionAutoencoder(size, **{**SIZES, **change}), tmp_path)


def test_the_copying_machine_shows_the_portrait_whoever_drives(generator):
    model = MotionAutoencoder(32, **SIZES, paint=True)
    portraits = F.interpolate(torch.rand(4, 3, 4, 4, generator=generator) * 2 - 1, (32, 32), mode="bilinear")
    spread = (portraits - portraits.mean(0)).abs().mean()
    with torch.no_grad():
        untrained = model(portraits, portraits.flip(0)).image
        start_as_copy(model)
        copied = model(portraits, portraits.flip(0)).image
    assert (untrained - portraits).abs().mean() > spread
    # without its border, beyond which there are zeros; a mask of 95 % lets a little of the level itself through
    assert (copied - portraits)[..., 2:-2, 2:-2].abs().mean() < 0.15 * spread


def test_copying_needs_paint_and_channels_for_the_colours():
    with pytest.raises(UserError, match="paint"):
        start_as_copy(MotionAutoencoder(16, **SIZES))
    with pytest.raises(UserError, match="takes 6"):
        start_as_copy(MotionAutoencoder(16, **{**SIZES, "max_channels": 4}, paint=True))
