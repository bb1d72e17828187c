"""A block of a roll-out on tensors at fixed addresses, as CUDA graphs need it: one launch for all its kernels."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from af.forcing.batching import map_tensors
from af.forcing.sampler import BlockSampler, State
from af.types import Condition


class CapturedSampler:
    """`step` and `commit` of a sampler, captured as a CUDA graph by the first call; elsewhere the same without a graph.

    Takes over a sampler whose caches are full, since sizes change until then. Raises ValueError for another.
    """

    def __init__(self, sampler: BlockSampler) -> None:
        if sampler.frames < sampler.layout.window_frames:
            raise ValueError(f"{sampler.frames} frames; sizes are constant from {sampler.layout.window_frames} on")
        sampler.commit()
        self._sampler = sampler
        self._held: State = map_tensors(_clone, sampler.state)
        self._given: tuple[Condition, Tensor] | None = None
        self._motion: Tensor | None = None
        self._replay: Callable[[], Any] = self._run

    def addresses(self) -> list[int]:
        """Where the state's tensors are."""
        found: list[int] = []
        map_tensors(lambda x: None if x is None else found.append(x.data_ptr()), self._held)
        return found

    @torch.no_grad()
    def step(self, condition: Condition, noise: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Motion of the next block, as `BlockSampler.step` returns it."""
        if self._given is None:
            self._given = condition.map(torch.clone), noise.clone()
            if noise.device.type == "cuda":
                self._capture()
        map_tensors(_copy, [*self._given], [condition, noise])
        self._replay()
        assert self._motion is not None
        return self._motion.clone()

    def _run(self) -> None:
        sampler = self._sampler
        assert self._given is not None
        sampler.state = self._state()
        self._motion = sampler.step(*self._given)
        sampler.commit()
        map_tensors(_copy, self._held, sampler.state)
        sampler.state = self._state()

    def _state(self) -> State:
        """The held tensors as a state that a step may put others into."""
        return replace(self._held, cache=copy.copy(self._held.cache))

    def _capture(self) -> None:
        start, frames = map_tensors(_clone, self._held), self._sampler.frames
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # libraries set themselves up in the first run, which a graph cannot hold
            self._run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._run()
        map_tensors(_copy, self._held, start)
        self._sampler.frames = frames
        self._replay = graph.replay


def _clone(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.clone()


def _copy(target: Tensor | None, source: Tensor | None) -> None:
    if target is not None and source is not None and target is not source:
        target.copy_(source)
