"""Equalised and modulated convolutions, resampling and warping against direct, slow forms of the same functions."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from af.nn.equalized import EqualConv2d, EqualLinear, ResidualDown
from af.nn.modulated import ModulatedProjection, StyledConv
from af.nn.resample import blur, blur_kernel, upsample2
from af.nn.warp import base_grid, warp


@pytest.fixture
def image(generator):
    return torch.randn(2, 3, 8, 8, generator=generator, dtype=torch.float64)


def _filter(x: torch.Tensor, before: int, after: int, gain: float = 1.0) -> torch.Tensor:
    """outer([1,3,3,1]) / 64 * gain on the zero-padded image, channel by channel."""
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=x.dtype)
    kernel = torch.outer(taps, taps)[None, None] / 64 * gain
    padded = F.pad(x, (before, after, before, after))
    return torch.cat([F.conv2d(padded[:, i : i + 1], kernel) for i in range(x.shape[1])], 1)


def _fill(module: torch.nn.Module, generator: torch.Generator) -> torch.nn.Module:
    """Random parameters everywhere, so that no bias or style is trivially zero or one."""
    module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return module


def test_linear_scales_the_weight_and_not_the_bias(generator):
    layer = _fill(EqualLinear(9, 4), generator)
    x = torch.randn(2, 9, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(layer(x), x @ (layer.weight / 3).T + layer.bias)


@pytest.mark.parametrize("padding", [0, 1, 2, 3])
def test_blur_is_the_fixed_filter(image, padding):
    torch.testing.assert_close(blur(image, blur_kernel(4.0), padding), _filter(image, padding, padding, 4.0))


def test_blur_has_first_and_second_derivatives(generator):
    x = torch.randn(1, 2, 6, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: blur(x, blur_kernel(), 1), x)
    assert torch.autograd.gradgradcheck(lambda x: blur(x, blur_kernel(), 2), x)


def test_doubling_is_zero_insertion_and_the_filter(image):
    inserted = torch.zeros(2, 3, 16, 16, dtype=image.dtype)
    inserted[:, :, ::2, ::2] = image
    torch.testing.assert_close(upsample2(image), _filter(inserted, 2, 1, gain=4.0))


def test_activation_is_leaky_relu_of_biased_input_times_root_two(image, generator):
    layer = _fill(EqualConv2d(3, 5, 3, padding=1, activate=True), generator)
    plain = F.conv2d(image, layer.weight / math.sqrt(27), padding=1) + layer.bias[:, None, None]
    torch.testing.assert_close(layer(image), F.leaky_relu(plain, 0.2) * math.sqrt(2))


def test_residual_block_halves_and_keeps_the_definition(image, generator):
    block = _fill(ResidualDown(3, 4), generator)
    x = F.leaky_relu(
        F.conv2d(image, block.conv1.weight / math.sqrt(27), padding=1) + block.conv1.bias[:, None, None], 0.2
    )
    x = _filter(x * math.sqrt(2), 2, 2)
    x = F.leaky_relu(F.conv2d(x, block.conv2.weight / math.sqrt(27), stride=2) + block.conv2.bias[:, None, None], 0.2)
    skip = F.conv2d(_filter(image, 1, 1), block.skip.weight / math.sqrt(3), stride=2)
    torch.testing.assert_close(block(image), (x * math.sqrt(2) + skip) / math.sqrt(2))


@pytest.mark.parametrize("up", [False, True])
def test_modulating_activations_is_modulating_weights(image, generator, up):
    layer = _fill(StyledConv(3, 4, 6, up=up), generator)
    code = torch.randn(2, 6, generator=generator, dtype=torch.float64)
    style = code @ (layer.style.weight / math.sqrt(6)).T + layer.style.bias
    expected = []
    for sample, factors in zip(image, style, strict=True):
        weight = layer.weight.transpose(0, 1) if up else layer.weight
        weight = weight / math.sqrt(27) * factors[None, :, None, None]
        weight = weight * torch.rsqrt(weight.square().sum((1, 2, 3), keepdim=True) + 1e-8)
        if up:
            y = _filter(F.conv_transpose2d(sample[None], weight.transpose(0, 1), stride=2), 1, 1, gain=4.0)
        else:
            y = F.conv2d(sample[None], weight, padding=1)
        expected.append(F.leaky_relu(y + layer.bias[None, :, None, None], 0.2) * math.sqrt(2))
    torch.testing.assert_close(layer(image, layer.modulation(code)), torch.cat(expected))


def test_projection_is_a_modulated_convolution_without_demodulation(image, generator):
    layer = _fill(ModulatedProjection(3, 2, 6), generator)
    code = torch.randn(2, 6, generator=generator, dtype=torch.float64)
    style = code @ (layer.style.weight / math.sqrt(6)).T + layer.style.bias
    weight = layer.weight[None] / math.sqrt(3) * style[:, None]
    expected = torch.einsum("boi,biyx->boyx", weight, image) + layer.bias[:, None, None]
    torch.testing.assert_close(layer(image, layer.modulation(code)), expected)
    factors = layer.modulation(code).float()
    with torch.autocast("cpu", torch.bfloat16):  # flows are positions: a fraction of a pixel counts
        rounded = layer.float()(image.float(), factors)
    bound = 16 * torch.finfo(torch.float32).eps * torch.einsum("boi,biyx->boyx", weight.abs(), image.abs())
    assert ((rounded - expected).abs() <= bound + torch.finfo(torch.float32).eps * layer.bias.abs().max()).all()


def test_modulation_of_some_samples_is_the_modulation_of_those(generator):
    layer = StyledConv(3, 4, 6)
    code = torch.randn(5, 6, generator=generator)
    some, alone = layer.modulation(code).at(slice(1, 3)), layer.modulation(code[1:3])
    torch.testing.assert_close(some.inputs, alone.inputs)
    torch.testing.assert_close(some.outputs, alone.outputs)


def test_warp_of_many_frames_is_grid_sample_of_each(generator):
    features = torch.randn(2, 3, 8, 8, generator=generator)
    grid = base_grid(8) + 0.5 * torch.randn(6, 8, 8, 2, generator=generator)
    expected = F.grid_sample(features.repeat_interleave(3, 0), grid, align_corners=False)
    torch.testing.assert_close(warp(features, grid), expected)


def test_warp_gradient_of_features_sums_over_their_frames(generator):
    features = torch.randn(1, 2, 8, 8, generator=generator, requires_grad=True)
    grid = base_grid(8).expand(3, -1, -1, -1)
    warp(features, grid).sum().backward()
    together = features.grad.clone()
    features.grad = None
    warp(features, grid[:1]).sum().backward()
    torch.testing.assert_close(together, 3 * features.grad)


def test_warp_refuses_frames_that_do_not_divide(generator):
    with pytest.raises(ValueError, match=r"5 frames .* 2 portraits"):
        warp(torch.zeros(2, 3, 8, 8), torch.zeros(5, 8, 8, 2))
