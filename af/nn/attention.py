"""Attention layers: self-attention with rotary positions and a past, cross-attention with keys made once, plain MHA."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from af.errors import UserError
from af.nn.kv_cache import KeysValues
from af.nn.rope import RotaryTable, rotate


def head_size(hidden: int, heads: int) -> int:
    """Dims a head; UserError when `heads` does not divide `hidden`."""
    if heads < 1 or hidden % heads:
        raise UserError(f"heads: {heads} does not divide the width {hidden}")
    return hidden // heads


def split_heads(x: Float[Tensor, "B T C"], heads: int) -> Float[Tensor, "B H T c"]:
    """Channels into heads."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(x: Float[Tensor, "B H T c"]) -> Float[Tensor, "B T C"]:
    """Heads into channels."""
    return x.transpose(1, 2).flatten(2)


def repeat_rows(x: Float[Tensor, "B ..."], rows: int) -> Float[Tensor, "R ..."]:
    """The batch over and over until there are `rows` (a multiple of B), as for guidance branches; x itself when there are."""
    return x if x.shape[0] == rows else x.repeat(rows // x.shape[0], *[1] * (x.ndim - 1))


class SelfAttention(nn.Module):
    """Self-attention over frames, rotary positions, optionally with keys and values of earlier frames before them."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        head_size(hidden, heads)
        self.heads = heads
        self.qkv = nn.Linear(hidden, 3 * hidden)
        self.proj = nn.Linear(hidden, hidden)

    def project(self, x: Float[Tensor, "B T C"]) -> tuple[Float[Tensor, "B H T c"], KeysValues]:
        """Queries, keys and values of these frames, before rotation."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return q, KeysValues(k, v)

    def attend(
        self,
        q: Float[Tensor, "B H T c"],
        own: KeysValues,
        rope: RotaryTable,
        mask: Bool[Tensor, "T K"] | None,
        past: KeysValues | None = None,
    ) -> Float[Tensor, "B T C"]:
        """Attention of queries to `past` (keys already rotated) and to the frames themselves; K = past + T.

        `q` may be of the newest frames only; `past` may have more rows than the frames, the first ones being theirs.
        """
        first = own.keys.shape[2] - q.shape[2]
        keys, values = after(past, rotate(own.keys, rope), own.values)
        attended = F.scaled_dot_product_attention(
            rotate(q, rope.frames(first)), keys, values, attn_mask=None if mask is None else mask[first:]
        )
        return self.proj(merge_heads(attended))


def after(past: KeysValues | None, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values of the past (its first rows) and after them these, in the past's own room if it has any."""
    if past is None:
        return keys, values
    rows, frames = keys.shape[0], keys.shape[2]
    if past.room:
        past.keys[:rows, :, -frames:], past.values[:rows, :, -frames:] = keys, values
        return past.keys[:rows], past.values[:rows]
    return torch.cat((past.keys[:rows], keys), 2), torch.cat((past.values[:rows], values), 2)


class CrossAttention(nn.Module):
    """Cross-attention whose keys and values are made apart, so that they can be made once and used many times."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        head_size(hidden, heads)
        self.heads = heads
        self.q = nn.Linear(hidden, hidden)
        self.kv = nn.Linear(hidden, 2 * hidden)
        self.proj = nn.Linear(hidden, hidden)

    def keys_values(self, condition: Float[Tensor, "B K C"]) -> KeysValues:
        """Keys and values of the condition."""
        k, v = self.kv(condition).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return KeysValues(k, v)

    def forward(
        self, x: Float[Tensor, "B T C"], condition: KeysValues, mask: Bool[Tensor, "T K"] | None
    ) -> Float[Tensor, "B T C"]:
        """Attention of x to the condition, in as many rows as the condition has (a multiple of x's)."""
        q = repeat_rows(split_heads(self.q(x), self.heads), condition.keys.shape[0])
        return self.proj(
            merge_heads(F.scaled_dot_product_attention(q, condition.keys, condition.values, attn_mask=mask))
        )


class MultiHeadAttention(nn.Module):
    """Plain multi-head attention, queries from one sequence, keys and values from another (rows of `in_proj`: q, k, v)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        head_size(dim, heads)
        self.dim, self.heads = dim, heads
        self.in_proj = nn.Linear(dim, 3 * dim)
        self.out_proj = nn.Linear(dim, dim)

    def forward(
        self,
        queries: Float[Tensor, "B T C"],
        source: Float[Tensor, "B K C"],
        mask: Bool[Tensor, "T K"] | None,
        rope: RotaryTable | None = None,
    ) -> Float[Tensor, "B T C"]:
        """Attention of `queries` to `source`; with `rope` both stand at its positions (T = K), without they have none."""
        weight, bias = self.in_proj.weight, self.in_proj.bias
        q = split_heads(F.linear(queries, weight[: self.dim], bias[: self.dim]), self.heads)
        kv = F.linear(source, weight[self.dim :], bias[self.dim :])
        k, v = kv.unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if rope is not None:
            q, k = rotate(q, rope), rotate(k, rope)
        return self.out_proj(merge_heads(F.scaled_dot_product_attention(q, k, v, attn_mask=mask)))
