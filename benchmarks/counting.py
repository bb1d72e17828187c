"""Counting the work and memory of networks on tensors without values."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from af.training.flops import FlopCounter


@contextmanager
def without_values(*networks: nn.Module) -> Iterator[None]:
    """In the context the networks' weights, and all new tensors, have shapes but no values: nothing is computed."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        for module in (m for network in networks for m in network.modules()):
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    module._parameters[name] = nn.Parameter(
                        mode.from_tensor(parameter.detach()), requires_grad=parameter.requires_grad
                    )
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = mode.from_tensor(buffer)
        yield


class Kept:
    """Context that counts the bytes kept for the backward pass, other than weights."""

    def __init__(self, *networks: nn.Module) -> None:
        self._weights = {id(p.untyped_storage()) for network in networks for p in network.parameters()}
        self._storages: dict[int, Any] = {}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._keep, lambda tensor: tensor)

    def _keep(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        self._storages[id(storage)] = storage  # alive, so that no other gets its id
        return tensor

    def __enter__(self) -> Kept:
        self._hooks.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._hooks.__exit__(*exception)

    @property
    def gigabytes(self) -> float:
        """So far."""
        return sum(s.nbytes() for key, s in self._storages.items() if key not in self._weights) / 1e9


def gflop_of(work: Callable[[], Any]) -> float:
    """The products of `work()`, in GFLOP."""
    with FlopCounter() as counter:
        work()
    return counter.flops / 1e9
