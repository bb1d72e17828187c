"""Options that change memory and speed but not the results (beyond rounding)."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import partial

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from af.errors import UserError
from af.training.stage import Stage


def prepare(stage: Stage, part: str, *, compile: bool | str, activation_checkpointing: bool) -> None:
    """Turn on compilation for a stage, and activation checkpointing for its `part`. UserError without such a part."""
    network = getattr(stage, part, None)
    if not isinstance(network, nn.Module):
        raise UserError(f"part={part}: {type(stage).__name__} has no network of this name")
    if activation_checkpointing:
        recompute(network)
    if compile:
        compiled(stage, compile)


def recompute(part: nn.Module) -> None:
    """Activation checkpointing: recompute blocks in the backward pass instead of storing activations."""
    for block in repeated(part):
        # our blocks draw no random numbers
        block.forward = partial(  # type: ignore[method-assign]
            checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False
        )


def compiled(stage: Stage, how: bool | str) -> None:
    """Compile everything that a training step calls; `how` is True (inductor) or the name of another backend.

    Keeps the names of weights. Raises UserError for an unknown backend, or without inductor's compiler for CPUs.
    """
    backend = "inductor" if how is True else str(how)
    if backend not in torch.compiler.list_backends(exclude_tags=()):
        usual = ", ".join(torch.compiler.list_backends())
        raise UserError(f"compile: {how!r}; allowed: true, false, or a backend of torch.compile ({usual} …)")
    missing = not any(map(shutil.which, ("g++", "clang++", "c++", "cl")))
    if backend == "inductor" and missing and not torch.cuda.is_available():
        raise UserError("compile: no C++ compiler is found; install g++, or set compile=false")
    from torch import _dynamo  # slow import

    # a roll-out in a step (online losers) calls its blocks with many shapes, at least one per block of a window
    _dynamo.config.recompile_limit = max(64, _dynamo.config.recompile_limit)
    stage.compile_networks(backend=backend)


def repeated(part: nn.Module) -> Iterator[nn.Module]:
    """The blocks in a network's lists, except those with batch statistics, which must count a batch once."""
    for child in part.children():
        if isinstance(child, nn.ModuleList | nn.ModuleDict):
            blocks = child.values() if isinstance(child, nn.ModuleDict) else child
            yield from (b for b in blocks if not any(isinstance(m, _BatchNorm) for m in b.modules()))
        else:
            yield from repeated(child)
