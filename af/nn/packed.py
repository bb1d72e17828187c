"""Linear layers for inference on CPU: weights packed once into the layout of the matrix kernels, optionally in bf16.

An ordinary linear layer repacks its weights in every call, which for a few dozen rows costs as much as the product
itself. On other devices, and without oneDNN, these layers compute the same from unpacked weights. Processors that
cannot multiply in bf16 round to bf16 and multiply in fp32: the same result at fp32's speed.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from af.nn.precision import packs_bf16


class PackedLinear(nn.Module):
    """The function of `linear` without gradients, with weights in `dtype`; `gelu` appends a tanh-GELU.

    Takes any floating-point input and returns `dtype`.
    """

    def __init__(self, linear: nn.Linear, dtype: torch.dtype, gelu: bool = False) -> None:
        super().__init__()
        self.in_features, self.out_features, self.gelu = linear.in_features, linear.out_features, gelu
        self.dtype = dtype
        on_cpu = linear.weight.device.type == "cpu"
        product = torch.float32 if on_cpu and dtype == torch.bfloat16 and not packs_bf16() else dtype
        weight = linear.weight.detach().to(dtype).to(product)
        self.packed = on_cpu and torch.backends.mkldnn.is_available()
        self.bias = None if linear.bias is None else linear.bias.detach().to(dtype).to(product)
        # not part of the state dict: the layout belongs to this machine
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight) if self.packed else weight

    def forward(self, x: Float[Tensor, "*rest C"]) -> Float[Tensor, "*rest D"]:
        """x Wᵀ + b, followed by GELU if `gelu` was set."""
        return self._product(x.to(self.dtype).to(self.weight.dtype)).to(self.dtype)

    def _product(self, x: Tensor) -> Tensor:
        if self.packed:
            kind, how = ("gelu", "tanh") if self.gelu else ("none", "")
            return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, kind, [], how)
        y = F.linear(x, self.weight, self.bias)
        return F.gelu(y, approximate="tanh") if self.gelu else y

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PackedLinear:
        here = self.weight.device
        if fn(torch.empty(0, device=here)).device != here:
            raise RuntimeError("packed weights stay where they were packed: move the network before `for_inference`")
        return super()._apply(fn, recurse)

    def __deepcopy__(self, memo: dict) -> PackedLinear:
        return self  # never written to; its layout cannot be copied
