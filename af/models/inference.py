"""A denoiser for inference: the same function with packed weights, in fp32 or with the blocks' products in bf16."""

from __future__ import annotations

import copy

from torch import nn

from af.models.denoiser import MotionDenoiser
from af.nn.packed import PackedLinear
from af.nn.precision import choose
from af.nn.transformer import ForcingBlock


def for_inference(denoiser: MotionDenoiser, precision: str = "fp32") -> MotionDenoiser:
    """A copy of `denoiser` to roll out with: no gradients, weights of the blocks packed (`af.nn.packed`).

    `precision` "fp32" changes rounding only; "bf16" multiplies in bf16, with norms, softmax, residual stream, flow time
    and condition encoder in fp32; "auto" is the one that the weights' device is fast in (`af.nn.precision`). The copy
    shares the weights that stay as they are with the original. UserError for another precision.
    """
    dtype = choose(precision, denoiser.input.weight.device).dtype
    shared: dict[int, object] = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in denoiser.parameters()}
    packed = copy.deepcopy(denoiser, shared)
    for block in packed.blocks:
        assert isinstance(block, ForcingBlock)
        for name, linear in list(block.named_modules()):
            if isinstance(linear, nn.Linear):
                block.set_submodule(name, PackedLinear(linear, dtype, gelu=name == "mlp.fc1"))
        block.set_submodule("mlp.activation", nn.Identity())  # it is a part of fc1 now
    return packed.eval()
