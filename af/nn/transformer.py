"""The diffusion-forcing transformer (DFoT) block: modulated self-attention, cross-attention, modulated MLP."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from af.nn.attention import CrossAttention, SelfAttention, repeat_rows
from af.nn.kv_cache import KeysValues
from af.nn.rope import RotaryTable

NORM_EPS = 1e-6


@dataclass(frozen=True)
class Modulation:
    """The effect of flow time on every frame: shifts, gains and gates of the blocks (shared by all) and of the head.

    A gain is 1 + scale, where the network predicts the scale.

    The batch may be 1 where every sequence has the same flow times.
    """

    attention_shift: Float[Tensor, "B T C"]
    attention_gain: Float[Tensor, "B T C"]
    attention_gate: Float[Tensor, "B T C"]
    mlp_shift: Float[Tensor, "B T C"]
    mlp_gain: Float[Tensor, "B T C"]
    mlp_gate: Float[Tensor, "B T C"]
    head_shift: Float[Tensor, "B T C"]
    head_gain: Float[Tensor, "B T C"]

    def frames(self, index: Int[Tensor, " t"] | slice) -> Modulation:
        """The modulation of the frames `index`, in that order (frames may repeat)."""
        return Modulation(*(getattr(self, f.name)[:, index] for f in fields(self)))


@dataclass(frozen=True)
class AttentionPlan:
    """Positions of the frames of a pass: their rotary angles and the mask of the self-attention."""

    rope: RotaryTable
    self_mask: Bool[Tensor, "T K"]
    cross_mask: Bool[Tensor, "T C"]


def norm(x: Float[Tensor, "B T C"]) -> Float[Tensor, "B T C"]:
    """LayerNorm without gain and bias."""
    return F.layer_norm(x, x.shape[-1:], eps=NORM_EPS)


def modulate(
    x: Float[Tensor, "B T C"], shift: Float[Tensor, "B T C"], gain: Float[Tensor, "B T C"]
) -> Float[Tensor, "B T C"]:
    """x · gain + shift."""
    return torch.addcmul(shift, x, gain)


class FeedForward(nn.Module):
    """Linear, tanh-GELU, linear."""

    def __init__(self, hidden: int, ratio: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(hidden, round(hidden * ratio))
        self.activation = nn.GELU(approximate="tanh")
        self.fc2 = nn.Linear(round(hidden * ratio), hidden)

    def forward(self, x: Float[Tensor, "B T C"]) -> Float[Tensor, "B T C"]:
        """Apply the network to every frame."""
        return self.fc2(self.activation(self.fc1(x)))


class ForcingBlock(nn.Module):
    """One DFoT block. Cross-attention is neither modulated nor gated (method §3)."""

    def __init__(self, hidden: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.attention = SelfAttention(hidden, heads)
        self.cross_attention = CrossAttention(hidden, heads)
        self.mlp = FeedForward(hidden, mlp_ratio)

    def project(self, x: Float[Tensor, "B T C"], modulation: Modulation) -> tuple[Tensor, KeysValues]:
        """Queries, keys and values of the self-attention; caching a frame needs nothing else of the last block."""
        return self.attention.project(modulate(norm(x), modulation.attention_shift, modulation.attention_gain))

    def forward(
        self,
        x: Float[Tensor, "B T C"],
        modulation: Modulation,
        plan: AttentionPlan,
        condition: KeysValues,
        past: KeysValues | None = None,
        newest: int | None = None,
    ) -> tuple[Float[Tensor, "R t C"], KeysValues]:
        """Output for all frames, or for the `newest` only, and keys (before rotation) and values of all frames.

        The condition may have R rows, a multiple of B: guidance branches share x up to the cross-attention.
        """
        q, own = self.project(x, modulation)
        if newest is not None:
            q, x, modulation = q[:, :, -newest:], x[:, -newest:], modulation.frames(slice(-newest, None))
        attended = self.attention.attend(q, own, plan.rope, plan.self_mask, past)
        x = torch.addcmul(x, modulation.attention_gate, attended)
        crossed = self.cross_attention(norm(x), condition, plan.cross_mask[plan.cross_mask.shape[0] - x.shape[1] :])
        x = repeat_rows(x, crossed.shape[0]) + crossed
        mixed = self.mlp(modulate(norm(x), modulation.mlp_shift, modulation.mlp_gain))
        return torch.addcmul(x, modulation.mlp_gate, mixed), own
