"""Switches that change memory and speed, not what is learnt (beyond rounding)."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import partial

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from af.errors import UserError


def switch(part: nn.Module, *, activation_checkpointing: bool = False, compiled: bool | str = False) -> None:
    """`activation_checkpointing`: blocks are computed again in the backward pass instead of keeping what they had.
    `compiled`: torch.compile, by name with another backend than inductor. Names of weights stay. UserError without the
    compiler that inductor needs for a CPU.
    """
    if activation_checkpointing:
        for block in repeated(part):
            # nothing in our blocks draws random numbers
            block.forward = partial(  # type: ignore[method-assign]
                checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False
            )
    if compiled:
        backend = "inductor" if compiled is True else compiled
        missing = not any(map(shutil.which, ("g++", "clang++", "c++", "cl")))
        if backend == "inductor" and missing and not torch.cuda.is_available():
            raise UserError("launch.compile: no C++ compiler is found; install g++, or set launch.compile=false")
        part.compile(backend=backend)


def repeated(part: nn.Module) -> Iterator[nn.Module]:
    """The blocks a network is made of: what its lists hold (but for batch statistics, which count a batch once)."""
    for child in part.children():
        if isinstance(child, nn.ModuleList | nn.ModuleDict):
            blocks = child.values() if isinstance(child, nn.ModuleDict) else child
            yield from (b for b in blocks if not any(isinstance(m, _BatchNorm) for m in b.modules()))
        else:
            yield from repeated(child)
