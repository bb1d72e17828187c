"""Muon: steps of equal size in every direction of a convolution's weight, Adam for everything else.

The singular values of a momentum differ by orders of magnitude, which Adam corrects only along the weight's axes. After
orthogonalisation (all singular values near 1) rare directions, such as lips and lids, move as fast as common ones.
Source: Jordan et al. 2024 (kellerjordan.github.io/posts/muon); the scale is for equalised weights of unit variance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from af.values import require_number

_SMALLEST = 8  # smaller weights have no directions worth balancing
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # coefficients of the quintic iteration, chosen for speed near zero


def orthogonalised(matrix: Float[Tensor, "M N"], steps: int = 5) -> Float[Tensor, "M N"]:
    """Approximate U Vᵀ of the singular value decomposition (singular values 0.7 … 1.2).

    Every step multiplies by a polynomial in X Xᵀ, and these commute: they are gathered on that square side, in two
    products of X in place of two a step.
    """
    a, b, c = _COEFFICIENTS
    x = matrix / (matrix.norm() + 1e-7)
    if tall := x.shape[0] > x.shape[1]:
        x = x.T
    gram, whole = x @ x.T, None
    for _ in range(steps):
        step = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        step.diagonal().add_(a)
        whole, gram = step if whole is None else step @ whole, step @ gram @ step
    x = x if whole is None else whole @ x
    return x.T if tall else x


def is_matrix(parameter: Tensor) -> bool:
    """Whether a parameter is a convolution weight large enough to be balanced."""
    return parameter.ndim == 4 and min(parameter.shape[0], parameter[0].numel()) >= _SMALLEST


class Muon(torch.optim.Optimizer):
    """Balanced steps of root mean square `lr` for convolution weights, Adam with `adam_lr` and `betas` for the others.

    `momentum` is Nesterov's. Learning-rate schedules apply to both kinds.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float,
        *,
        adam_lr: float,
        betas: tuple[float, float] = (0.9, 0.99),
        momentum: float = 0.95,
        eps: float = 1e-8,
    ) -> None:
        found = list(parameters)
        others = [p for p in found if not is_matrix(p)]
        groups = [
            {"params": others, "lr": adam_lr, "balanced": False},  # first, because the first rate is logged
            {"params": [p for p in found if is_matrix(p)], "lr": lr, "balanced": True},
        ]
        require_number("adam_lr", adam_lr, above=0)
        require_number("lr", lr, above=0)
        for beta in (*betas, momentum):
            require_number("betas and momentum", beta, least=0, below=1)
        super().__init__(groups, {"betas": betas, "momentum": momentum, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Take one step; returns the closure's result."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            found = [parameter for parameter in group["params"] if parameter.grad is not None]
            if group["balanced"]:
                for parameter in found:
                    self._balanced(parameter, group)
            elif found:
                self._adam(found, group)
        return loss

    def _balanced(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state, gradient = self.state[parameter], parameter.grad
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        state["momentum"].mul_(group["momentum"]).add_(gradient)
        update = gradient.add(state["momentum"], alpha=group["momentum"])  # type: ignore[union-attr]
        rows = update.flatten(1)
        balanced = orthogonalised(rows)
        balanced *= (rows.numel() / min(rows.shape)) ** 0.5  # root mean square about 1
        balanced *= max(1.0, rows.shape[0] / rows.shape[1]) ** 0.5
        parameter.sub_(balanced.view(parameter.shape), alpha=group["lr"])

    def _adam(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """All parameters in a few operations: on a GPU each costs a launch."""
        for parameter in parameters:
            if not self.state[parameter]:
                zero = torch.zeros_like(parameter)
                self.state[parameter] |= {"step": torch.tensor(0.0), "mean": zero, "square": zero.clone()}
        (first, second), states = group["betas"], [self.state[parameter] for parameter in parameters]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        means, squares = ([state[name] for state in states] for name in ("mean", "square"))
        torch._foreach_add_([state["step"] for state in states], 1)  # on the host
        steps = [state["step"].item() for state in states]
        torch._foreach_lerp_(means, gradients, 1 - first)
        torch._foreach_mul_(squares, second)
        torch._foreach_addcmul_(squares, gradients, gradients, value=1 - second)
        roots = torch._foreach_div(squares, [1 - second**step for step in steps])
        torch._foreach_sqrt_(roots)
        torch._foreach_add_(roots, group["eps"])
        torch._foreach_addcdiv_(parameters, means, roots, [-group["lr"] / (1 - first**step) for step in steps])
