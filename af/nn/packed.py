"""Linear layers for inference on CPU: weights laid out once the way the matrix kernels want them, optionally in bf16.

An ordinary linear layer brings its weights into that layout in every call, which for a few dozen rows costs as much as
the product itself. On other devices, and where oneDNN is missing, these layers compute the same without the layout.
Processors that cannot multiply in bf16 multiply numbers rounded to bf16 in fp32, which gives the same at fp32's speed.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from af.nn.precision import packs_bf16


class PackedLinear(nn.Module):
    """The function of `linear` without gradients, its weights in `dtype`; `gelu` puts the tanh-GELU behind it.

    Takes any floating-point input and gives `dtype`.
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
        # kept out of the state: nothing but this machine can read it
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight) if self.packed else weight

    def forward(self, x: Float[Tensor, "*rest C"]) -> Float[Tensor, "*rest D"]:
        """x Wᵀ + b, and its GELU if asked for."""
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
