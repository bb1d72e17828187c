from __future__ import annotations

import copy

import pytest
import torch

from af.errors import UserError
from af.forcing.rollout import rollout
from af.models.denoiser import MotionDenoiser, for_inference
from af.models.motion_space import MotionSpace
from af.nn.packed import PackedLinear
from af.types import Condition

DIM, AUDIO, FRAMES = 6, 16, 20


@pytest.fixture
def denoiser(generator: torch.Generator) -> MotionDenoiser:
    made = MotionDenoiser(
        MotionSpace("identity", DIM, DIM), hidden=64, depth=3, heads=2, block_frames=5, look_ahead=1, window_frames=20,
        condition_dim=AUDIO, condition_heads=2, audio_feature_dim=8,
    )  # fmt: skip
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5)
    return made.eval()


@pytest.fixture
def inputs(generator: torch.Generator) -> tuple[Condition, torch.Tensor, torch.Tensor]:
    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    condition = Condition(normal(2, FRAMES, AUDIO), normal(2, FRAMES, AUDIO), normal(2, FRAMES, DIM))
    return condition, normal(2, DIM), normal(2, FRAMES, DIM)


@pytest.mark.parametrize(("precision", "bound"), [("fp32", 1e-5), ("bf16", 2e-2)])
def test_rolls_out_the_same_motion(denoiser, inputs, precision: str, bound: float) -> None:
    condition, reference, noise = inputs
    expected = rollout(denoiser, condition, reference, steps=4, noise=noise)
    fast = for_inference(denoiser, precision)
    with torch.inference_mode():
        got = rollout(fast, condition, reference, steps=4, noise=noise)
    assert got.dtype == torch.float32
    assert (got - expected).norm() < bound * expected.norm()


def test_bf16_is_meant_for_the_blocks_alone(denoiser) -> None:
    fast = for_inference(denoiser, "bf16")
    packed = {name: module for name, module in fast.named_modules() if isinstance(module, PackedLinear)}
    assert len(packed) == 7 * denoiser.depth
    assert all(
        name.startswith("blocks.") and m(torch.ones(1, m.in_features)).dtype == torch.bfloat16
        for name, m in packed.items()
    )
    assert {p.dtype for p in fast.parameters()} == {torch.float32}


def test_the_original_is_left_as_it_was_and_shares_what_stays(denoiser) -> None:
    before = copy.deepcopy(denoiser.state_dict())
    fast = for_inference(denoiser)
    assert all(torch.equal(value, before[name]) for name, value in denoiser.state_dict().items())
    assert all(p.requires_grad for p in denoiser.parameters())
    assert not any(p.requires_grad for p in fast.parameters())
    assert fast.input.weight.data_ptr() == denoiser.input.weight.data_ptr()


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_packed_linear_is_the_linear(generator: torch.Generator, gelu: bool, packed: bool) -> None:
    linear = torch.nn.Linear(24, 40)
    x = torch.randn(2, 3, 24, generator=generator)
    expected = torch.nn.functional.gelu(linear(x), approximate="tanh") if gelu else linear(x)
    layer = PackedLinear(linear, torch.float32, gelu)
    if not packed:
        layer.packed, layer.weight = False, linear.weight
    torch.testing.assert_close(layer(x), expected)


def test_an_unknown_precision_is_named(denoiser) -> None:
    with pytest.raises(UserError, match="'fp8'; allowed: auto, fp32, bf16"):
        for_inference(denoiser, "fp8")
