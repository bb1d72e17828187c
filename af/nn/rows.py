"""Rows of a batch that holds several branches of the same sequences, branch by branch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def repeat_rows(x: Float[Tensor, "B ..."], rows: int) -> Float[Tensor, "R ..."]:
    """The batch over and over until there are `rows` (a multiple of B); x itself when there are."""
    return x if x.shape[0] == rows else x.repeat(rows // x.shape[0], *[1] * (x.ndim - 1))


def join_rows(parts: Sequence[Tensor], branches: int, dim: int = 0) -> Tensor:
    """Batches side by side within every branch: rows of `dim` are branch · sequence, sequences of `parts` in order."""
    split = [part.unflatten(dim, (branches, -1)) for part in parts]
    return torch.cat(split, dim + 1).flatten(dim, dim + 1)


def divide_rows(whole: Tensor, sizes: Sequence[int], branches: int, dim: int = 0) -> list[Tensor]:
    """The inverse of `join_rows`: `sizes` sequences each. Copies, so that no part keeps the whole alive."""
    parts = whole.unflatten(dim, (branches, -1)).split(list(sizes), dim + 1)
    return [part.flatten(dim, dim + 1).contiguous() for part in parts]
