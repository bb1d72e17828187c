"""Properties of the motion autoencoder: motion lives on K directions, portraits are encoded once, chunks do not show."""

from __future__ import annotations

import importlib.util
import json
from functools import cache

import pytest
import torch
from safetensors.torch import load_file, save_file

from af.errors import UserError
from af.models.autoencoder import MotionAutoencoder
from af.models.decoder import LightDecoder
from af.models.discriminator import Discriminator
from af.models.perceptual import VggFeatures
from af.models.released.autoencoder import PREFIX, read_autoencoder, released_names, unused_names

SIZE, LATENT, DIRECTIONS = 16, 12, 4


def _build(**options) -> MotionAutoencoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MotionAutoencoder(SIZE, LATENT, DIRECTIONS, channel_base=64, max_channels=8, **options)
        for level in model.decoder.levels.values():  # flows start at zero: nothing would move yet
            torch.nn.init.normal_(level.flow.weight)
        return model


def normal(seed: int, rows: int = 3) -> torch.Tensor:
    return torch.randn(rows, DIRECTIONS, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=[None, 64], ids=["full", "light"])
def model(request) -> MotionAutoencoder:
    return _build(light=request.param)


@pytest.fixture
def images(generator):
    return torch.rand(3, 3, SIZE, SIZE, generator=generator) * 2 - 1


def test_shapes(model, images):
    identity = model.identity(images)
    assert identity.code.shape == (3, LATENT)
    at_full_size = 3 if isinstance(model.decoder, LightDecoder) else 4  # colours in place of features
    assert [tuple(f.shape[1:]) for f in identity.features] == [(8, 8, 8), (at_full_size, 16, 16)]
    assert model.coefficients(images).shape == (3, DIRECTIONS)
    assert model.decode(identity, torch.zeros(3, 2, LATENT)).shape == (3, 2, 3, SIZE, SIZE)
    assert model(images, images).image.shape == images.shape


def test_motion_is_the_coefficients_on_orthonormal_directions(model, images):
    directions = model.directions()
    torch.testing.assert_close(directions.T @ directions, torch.eye(DIRECTIONS), rtol=0, atol=1e-6)
    motion = model.motion(images)
    torch.testing.assert_close(motion, model.coefficients(images) @ directions.T)
    torch.testing.assert_close(motion @ directions @ directions.T, motion)  # nothing outside their span


def test_directions_stay_fp32_and_orthonormal_under_bfloat16_autocast(model, images):
    with torch.autocast("cpu", torch.bfloat16):
        directions, output = model.directions(), model(images, images)
        motions = [output.motion, model.motion(images), model.reference_motion(model.identity(images))]
    assert directions.dtype == output.motion.dtype == output.image.dtype == torch.float32
    torch.testing.assert_close(directions, model.directions(), rtol=0, atol=0)
    for motion in motions:
        assert motion.dtype == torch.float32
        torch.testing.assert_close(motion @ directions @ directions.T, motion, rtol=0, atol=1e-6)


def test_the_driving_image_reaches_the_picture_through_the_directions_only(model, images):
    """Rank of d image / d (code of the driving image) is at most K: there is no other way in."""
    identity = model.identity(images[:1])

    def picture(code):
        return model.decode(identity, (model.motion_head(code) @ model.directions().T)[None])[0, 0]

    code = model.identity(images[1:2]).code.detach()
    jacobian = torch.autograd.functional.jacobian(picture, code).flatten(0, -2)
    values = torch.linalg.svdvals(jacobian)
    assert values[DIRECTIONS - 1] > 1e-4 * values[0]
    assert values[DIRECTIONS] < 1e-5 * values[0]


def test_gradients_reach_every_parameter(images):
    model = _build(variational=True)
    output = model(images, images.flip(0), normal(0))
    (output.image.square().sum() + output.log_variance.sum()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_portrait_encoded_once_gives_what_encoding_per_frame_gives(model, images):
    motion = model.motion(images)
    once = model.decode(model.identity(images[:1]), motion[None])[0]
    copies = images[:1].expand(3, -1, -1, -1)
    torch.testing.assert_close(once, model.decode(model.identity(copies), motion[:, None])[:, 0])


def test_forward_is_identity_motion_decode(model, images):
    driving = images.flip(0)
    expected = model.decode(model.identity(images), model.motion(driving)[:, None])[:, 0]
    torch.testing.assert_close(model(images, driving).image, expected)


def test_exchange_is_forward_both_ways(generator):
    model = _build(variational=True)
    first, second = torch.rand(2, 2, 3, SIZE, SIZE, generator=generator) * 2 - 1
    images, driving = torch.cat((first, second)), torch.cat((second, first))
    apart = model(images, driving, normal(1, 4))
    together = model(images, noise=normal(1, 4))
    for name, value in vars(apart).items():
        torch.testing.assert_close(getattr(together, name), value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 2, 5])
def test_chunks_do_not_show(model, images, generator, chunk):
    identity, motion = model.identity(images), torch.randn(3, 5, LATENT, generator=generator)
    torch.testing.assert_close(model.decode(identity, motion, chunk_frames=chunk), model.decode(identity, motion))


def test_each_frame_is_its_own(model, images, generator):
    identity, motion = model.identity(images[:2]), torch.randn(2, 3, LATENT, generator=generator)
    before = model.decode(identity, motion)
    motion[1, 2] += 1
    changed = (model.decode(identity, motion) != before).flatten(2).any(2)
    assert changed.tolist() == [[False] * 3, [False, False, True]]


def test_reference_motion_needs_no_second_encoding(model, images):
    torch.testing.assert_close(model.reference_motion(model.identity(images)), model.motion(images))


def test_the_plain_autoencoder_is_deterministic_and_has_no_variance(model, images):
    output = model(images, images, normal(0))
    assert output.log_variance is None
    torch.testing.assert_close(output.image, model(images, images).image, rtol=0, atol=0)


def test_the_posterior_is_sampled_by_the_noise_alone(images):
    model = _build(variational=True)
    first, again = (model(images, images, normal(1)) for _ in range(2))
    torch.testing.assert_close(first.motion, again.motion, rtol=0, atol=0)
    mean = model(images, images)
    torch.testing.assert_close(mean.motion, mean.coefficients @ model.directions().T)
    # σ = e^-2 at the start: the samples' spread around the mean is that
    samples = torch.cat([model(images, images, normal(i)).motion @ model.directions() for i in range(200)])
    spread = (samples - mean.coefficients.repeat(200, 1)).std().item()
    assert spread == pytest.approx(0.1353, rel=0.05)


def test_painting_lets_new_colours_in_at_the_last_level(images):
    """Without `paint` the last level shows the portrait's own features only: with an empty mask it adds nothing."""
    for paint in (False, True):
        model = _build(paint=paint)
        level = model.decoder.levels[str(SIZE)]
        with torch.no_grad():
            level.flow.bias[2] = -1e4  # mask 0: nothing is copied from the portrait
            level.conv.bias.fill_(1.0)
            before = model.decode(model.identity(images), torch.zeros(3, 1, LATENT))
            level.conv.bias.fill_(2.0)
            after = model.decode(model.identity(images), torch.zeros(3, 1, LATENT))
        assert torch.equal(before, after) is not paint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x[:, :1], r"\(batch, 3, 16, 16\), got \(3, 1, 16, 16\)"),
        (lambda x: x[:, :, :8, :8], r"got \(3, 3, 8, 8\)"),
        (lambda x: x[0], r"got \(3, 16, 16\)"),
        (lambda x: (x + 1) * 127.5, r"must lie in \[-1, 1\], got values from"),
        (lambda x: x * float("nan"), r"must lie in \[-1, 1\]"),
        (lambda x: (x * 100).byte(), "floating point"),
    ],
)
def test_wrong_images_are_refused(model, images, change, message):
    with pytest.raises(ValueError, match=message):
        model.identity(change(images))


def test_wrong_motion_is_refused(model, images):
    identity = model.identity(images)
    with pytest.raises(ValueError, match=r"motion must be \(3, frames, 12\), got \(1, 2, 12\)"):
        model.decode(identity, torch.zeros(1, 2, LATENT))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"image_size": 48}, "power of two"), ({"image_size": 8}, "power of two"), ({"directions": 600}, "directions")],
)
def test_impossible_sizes_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MotionAutoencoder(**{"image_size": 64, "latent_dim": 16, "directions": 4, "channel_base": 64, **options})


def test_a_smaller_stage_fits_into_a_larger_one():
    """Channels go by resolution, so all but the outermost layers of a 32 px model are those of the 16 px one."""
    small = {name: p.shape for name, p in _build().named_parameters()}
    large = {name: p.shape for name, p in MotionAutoencoder(32, LATENT, DIRECTIONS, 64, 8).named_parameters()}
    assert {name for name in small if small[name] != large.get(name)} == {
        "encoder.from_rgb.weight",
        "encoder.from_rgb.bias",
    }


def test_discriminator_sees_two_scales(generator):
    discriminator = Discriminator(16, channel_base=64, max_channels=8)
    logits = discriminator(torch.randn(3, 3, 16, 16, generator=generator))
    assert [tuple(scale.shape) for scale in logits] == [(3,), (3,)]
    with pytest.raises(ValueError, match="power of two"):
        Discriminator(8)


def test_vgg_without_its_weights_says_where_to_get_them(tmp_path):
    with pytest.raises(UserError, match=r"vgg19-dcbb9e9d\.pth"):
        VggFeatures(tmp_path / "none.pth")
    torch.save({"features.0.weight": torch.zeros(64, 3, 3, 3)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="not VGG19"):
        VggFeatures(tmp_path / "other.pth")


# The released checkpoint


@cache
def _released_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the released file, from our own module: only their order of dimensions differs."""
    model = MotionAutoencoder()
    shapes = {}
    for ours, theirs in released_names().items():
        shape = tuple(model.get_parameter(ours).shape)
        if ".up.weight" in ours:
            shape = (1, shape[1], shape[0], 3, 3)
        shapes[PREFIX + theirs] = shape
    return shapes | {PREFIX + name: (1,) for name in unused_names()}


def test_import_names_every_key_that_is_wrong():
    state = {name: torch.zeros(shape) for name, shape in _released_shapes().items()}
    del state["motion_autoencoder.enc.fc.0.weight"]
    state["motion_autoencoder.extra"] = torch.zeros(1)
    state["motion_autoencoder.dec.direction.weight"] = torch.zeros(512, 10)
    with pytest.raises(UserError) as error:
        read_autoencoder(state)
    assert "missing: motion_autoencoder.enc.fc.0.weight" in str(error.value)
    assert "unexpected: motion_autoencoder.extra" in str(error.value)
    assert "shape: motion_autoencoder.dec.direction.weight is (512, 10), expected (512, 20)" in str(error.value)


def test_import_refuses_what_is_no_checkpoint(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_autoencoder(tmp_path / "none.pth")
    (tmp_path / "cut.pth").write_bytes(b"PK\x03\x04")
    with pytest.raises(UserError, match=r"cut\.pth: cannot be read safely as a checkpoint"):
        read_autoencoder(tmp_path / "cut.pth")
    torch.save([1], tmp_path / "list.pth")
    with pytest.raises(UserError, match="flat state dict"):
        read_autoencoder(tmp_path / "list.pth")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="missing"):
        read_autoencoder(tmp_path / "other.safetensors")


def test_released_golden_tensors(shared_folder):
    folder = shared_folder / "released"
    keys = json.loads((folder / "keys.json").read_text())["motion_autoencoder.pth"]
    spec = importlib.util.spec_from_file_location("released_weights", folder / "weights.py")
    weights = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(weights)
    golden = load_file(folder / "golden.safetensors")
    model = read_autoencoder(weights.state_dict(keys, 0))

    def relative(value, expected):
        return ((value - expected).norm() / expected.norm()).item()

    with torch.no_grad():
        identity = model.identity(golden["ae_source"])
        motion = model.motion(golden["ae_driving"])
        image = model.decode(identity, motion[:, None])[:, 0]
        assert relative(identity.code, golden["ae_identity"]) <= 1e-5
        assert relative(model.coefficients(golden["ae_source"]), golden["ae_coeff_source"]) <= 1e-5
        assert relative(model.coefficients(golden["ae_driving"]), golden["ae_coeff_driving"]) <= 1e-5
        assert relative(motion, golden["ae_motion_driving"]) <= 1e-5
    assert (image[..., ::8, ::8] - golden["ae_image_every8"]).abs().mean().item() <= 5e-5
    assert abs(image.mean().item() - golden["ae_image_mean"].item()) <= 1e-5
    assert abs(image.std().item() - golden["ae_image_std"].item()) <= 1e-5
