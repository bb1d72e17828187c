"""Building a model from its description, if it has the layout of the weights that are there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as registration

from af.errors import UserError
from af.models.registry import build
from af.nn.adapt import Adaptation


def built(
    config: Mapping[str, Any], shapes: Mapping[str, torch.Size], where: str, adaptation: Adaptation | None = None
) -> nn.Module:
    """The model described by `config`, adapted if it is said how. Raises UserError, before allocating any memory, unless
    its weights have these shapes (`where` names the description).
    """
    adapted = adaptation or (lambda model: model)
    with no_more_than(shapes, where), torch.device("meta"):
        plan = adapted(build(config, where))
    require_layout(shapes, {name: value.shape for name, value in plan.state_dict().items()}, where)
    return adapted(build(config, where))  # built again: unsaved buffers have no values on the meta device


def require_layout(shapes: Mapping[str, torch.Size], expected: Mapping[str, torch.Size], where: str) -> None:
    """Raise UserError, naming the first faults, unless weights have the shapes that the description in `where` leads to."""
    if faults := layout_faults(shapes, expected):
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise UserError(f"{where} does not fit the weights beside it: {'; '.join(faults[:3])}{more}")


def layout_faults(found: Mapping[str, torch.Size], expected: Mapping[str, torch.Size]) -> list[str]:
    """A message for every missing, unexpected and misshapen name."""
    faults = [f"missing: {key} {tuple(shape)}" for key, shape in expected.items() if key not in found]
    faults += [f"unexpected: {key} {tuple(shape)}" for key, shape in found.items() if key not in expected]
    return faults + [
        f"shape: {key} is {tuple(found[key])}, expected {tuple(shape)}"
        for key, shape in expected.items()
        if key in found and found[key] != shape
    ]


@contextmanager
def no_more_than(shapes: Mapping[str, torch.Size], where: str) -> Iterator[None]:
    """Stop building a model with far more weights than the file: 10⁹ layers take memory even on the meta device. Twice
    as many are allowed, since constructors may create weights and replace them.
    """
    tensors = numbers = 0

    def count(owner: nn.Module, name: str, value: Tensor | None) -> None:
        nonlocal tensors, numbers
        tensors += 1
        numbers += 0 if value is None else value.numel()
        if tensors > 2 * len(shapes) + 100 or numbers > 2 * sum(s.numel() for s in shapes.values()) + 10**6:
            raise UserError(f"{where} describes a model that is larger than the weights beside it")

    hooks = [
        registration.register_module_parameter_registration_hook(count),
        registration.register_module_buffer_registration_hook(count),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
