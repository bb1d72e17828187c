"""A denoiser for inference: the same function with packed weights, in fp32 or with bf16 products in the blocks."""

from __future__ import annotations

import copy

from torch import nn

from af.models.denoiser import MotionDenoiser
from af.nn.packed import PackedLinear
from af.nn.precision import choose
from af.nn.transformer import ForcingBlock


def for_inference(denoiser: MotionDenoiser, precision: str = "fp32") -> MotionDenoiser:
    """A copy of `denoiser` for roll-outs: without gradients, with packed weights in the blocks (`af.nn.packed`).

    `precision` "fp32" only changes rounding; "bf16" multiplies in bf16, with norms, softmax, residual stream, flow time
    and condition encoder in fp32; "auto" is the faster one on the weights' device (`af.nn.precision`). The copy shares
    unchanged weights with the original. Raises UserError for other precisions.
    """
    dtype = choose(precision, denoiser.input.weight.device).dtype
    shared: dict[int, object] = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in denoiser.parameters()}
    packed = copy.deepcopy(denoiser, shared)
    for block in packed.blocks:
        assert isinstance(block, ForcingBlock)
        for name, linear in list(block.named_modules()):
            if isinstance(linear, nn.Linear):
                block.set_submodule(name, PackedLinear(linear, dtype, gelu=name == "mlp.fc1"))
        block.set_submodule("mlp.activation", nn.Identity())  # now part of fc1
    return packed.eval()
