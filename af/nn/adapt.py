"""Adapting a trained network by few numbers: low-rank changes of weights, or some parameters alone; the rest is frozen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

from af.errors import UserError
from af.nn.precision import without_autocast
from af.values import require_number

Network = TypeVar("Network", bound=nn.Module)
_SHOWN: Final = 6


class LowRank(nn.Module):
    """weight + scale · (up @ down): a change of a given rank, zero at first.

    A weight of any shape is a matrix with a row for each index of its first dimension. `scale` is its root mean square,
    so that a learning rate is a share of the weights, whatever their size. Source: LoRA, arXiv 2106.09685.
    """

    scale: Tensor

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        rows, columns = weight.flatten(1).shape
        self.down = nn.Parameter(torch.randn(rank, columns).to(weight) * rank**-0.5)
        self.up = nn.Parameter(torch.zeros(rows, rank).to(weight))
        self.register_buffer("scale", weight.detach().square().mean().sqrt())

    def forward(self, weight: Float[Tensor, "O ..."]) -> Float[Tensor, "O ..."]:
        """The changed weight, in its own precision."""
        with without_autocast(weight.device):
            return weight + (self.scale * (self.up @ self.down)).view(weight.shape)


@dataclass(frozen=True)
class Adaptation:
    """Which parameters of a network may change, and how.

    `layers` are patterns of their names (`*` is any text). A parameter changes by a product of two factors of `rank`
    (`LowRank`); where that takes as many numbers as the parameter has, and with `rank` None, it is trained itself.
    Raises ValueError for a rank below 1, and for no pattern.
    """

    layers: Sequence[str]
    rank: int | None = None

    def __post_init__(self) -> None:
        require_number("rank", self.rank, least=1, whole=True, optional=True)
        if (
            not isinstance(self.layers, list | tuple)
            or not self.layers
            or not all(isinstance(p, str) for p in self.layers)
        ):
            raise ValueError(f"layers: give a list of patterns of parameters' names, got {self.layers!r}")

    def __call__(self, network: Network) -> Network:
        """`network`, in evaluation mode, where only what may change requires gradients; it still computes the same.

        Raises UserError for a pattern that no parameter has.
        """
        names = [name for name, _ in network.named_parameters()]
        for pattern in self.layers:
            if not any(fnmatchcase(name, pattern) for name in names):
                parts = sorted({".".join(name.split(".")[:2]) for name in names})
                more = " …" * (len(parts) > _SHOWN)
                raise UserError(
                    f"layers: no parameter of {type(network).__name__} is called {pattern!r}; it has "
                    f"{', '.join(parts[:_SHOWN])}{more}"
                )
        network.requires_grad_(False).eval()  # statistics of normalisations are the trained network's
        for name in names:
            if not any(fnmatchcase(name, pattern) for pattern in self.layers):
                continue
            owner, _, own = name.rpartition(".")
            module, weight = network.get_submodule(owner), network.get_parameter(name)
            if self._factors(weight) < weight.numel():
                assert self.rank is not None
                parametrize.register_parametrization(module, own, LowRank(weight, self.rank))
            else:
                weight.requires_grad_(True)
        return network

    def _factors(self, weight: Tensor) -> float:
        if self.rank is None or weight.ndim < 2:
            return float("inf")
        return self.rank * sum(weight.flatten(1).shape)


def changes(network: nn.Module) -> dict[str, Tensor]:
    """What an adapted network has that the trained one has not, by name in its state: parameters and scales."""
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    trained |= {f"{name}.scale" for name, module in network.named_modules() if isinstance(module, LowRank)}
    return {name: value for name, value in network.state_dict().items() if name in trained}


def merge(network: Network) -> Network:
    """`network` as an ordinary one, with the changed weights in place of their parts."""
    for module in list(network.modules()):
        for name in list(module.parametrizations) if parametrize.is_parametrized(module) else ():  # type: ignore[arg-type]
            parametrize.remove_parametrizations(module, name)
    return network.requires_grad_(True)
