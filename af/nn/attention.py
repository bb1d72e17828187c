"""Attention layers: cached self-attention with rotary positions, cross-attention with reusable keys, plain
attention.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from af.errors import UserError
from af.nn.kv_cache import KeysValues
from af.nn.precision import single, without_autocast
from af.nn.rope import RotaryTable, rotate


def head_size(hidden: int, heads: int) -> int:
    """Dims per head. Raises UserError when `heads` does not divide `hidden`."""
    if heads < 1 or hidden % heads:
        raise UserError(f"heads: {heads} does not divide the width {hidden}")
    return hidden // heads


def split_heads(x: Float[Tensor, "B T C"], heads: int) -> Float[Tensor, "B H T c"]:
    """Split the channels into heads."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(x: Float[Tensor, "B H T c"]) -> Float[Tensor, "B T C"]:
    """Join the heads into channels."""
    return x.transpose(1, 2).flatten(2)


def repeat_rows(x: Float[Tensor, "B ..."], rows: int) -> Float[Tensor, "R ..."]:
    """Repeat the batch to `rows` rows (a multiple of B), one copy per guidance branch. Returns x itself when rows =
    B.
    """
    return x if x.shape[0] == rows else x.repeat(rows // x.shape[0], *[1] * (x.ndim - 1))


def attention(
    q: Float[Tensor, "B H T c"],
    k: Float[Tensor, "B H K c"],
    v: Float[Tensor, "B H K c"],
    mask: Bool[Tensor, "T K"] | None,
) -> Float[Tensor, "B H T c"]:
    """Scaled dot-product attention; on a CPU in fp32 also under autocast, where torch's backward pass in bf16 takes five times
    as long.
    """
    if q.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        with without_autocast(q.device):
            return F.scaled_dot_product_attention(single(q), single(k), single(v), attn_mask=mask)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


class SelfAttention(nn.Module):
    """Self-attention over frames with rotary positions, optionally preceded by cached keys and values of earlier
    frames.
    """

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
        """Attention of the queries to `past` (its keys already rotated) and to the frames themselves; K = past + T.

        `q` may cover only the newest frames. `past` may have more rows than the batch; only its first rows are used.
        """
        first = own.keys.shape[2] - q.shape[2]
        keys, values = after(past, rotate(own.keys, rope), own.values)
        attended = attention(rotate(q, rope.frames(first)), keys, values, None if mask is None else mask[first:])
        return self.proj(merge_heads(attended))


def after(past: KeysValues | None, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Append keys and values to the first rows of the past, in the free room of its buffers when there is any."""
    if past is None:
        return keys, values
    rows, frames = keys.shape[0], keys.shape[2]
    if past.room:
        past.keys[:rows, :, -frames:], past.values[:rows, :, -frames:] = keys, values
        return past.keys[:rows], past.values[:rows]
    return torch.cat((past.keys[:rows], keys), 2), torch.cat((past.values[:rows], values), 2)


class CrossAttention(nn.Module):
    """Cross-attention with keys and values computed separately: compute them once, attend many times."""

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
        """Attention of x to the condition. The result has as many rows as the condition, a multiple of x's."""
        q = repeat_rows(split_heads(self.q(x), self.heads), condition.keys.shape[0])
        return self.proj(merge_heads(attention(q, condition.keys, condition.values, mask)))


class MultiHeadAttention(nn.Module):
    """Plain multi-head attention from one sequence to another; the rows of `in_proj` are those of q, k and v."""

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
        """Attention of `queries` to `source`. With `rope` (then T = K) both have its positions; without it, none."""
        weight, bias = self.in_proj.weight, self.in_proj.bias
        q = split_heads(F.linear(queries, weight[: self.dim], bias[: self.dim]), self.heads)
        kv = F.linear(source, weight[self.dim :], bias[self.dim :])
        k, v = kv.unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if rope is not None:
            q, k = rotate(q, rope), rotate(k, rope)
        return self.out_proj(merge_heads(attention(q, k, v, mask)))
