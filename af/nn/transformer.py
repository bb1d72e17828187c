"""The diffusion-forcing transformer (DFoT) block: modulated self-attention, cross-attention, modulated MLP."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from af.nn.attention import CrossAttention, SelfAttention
from af.nn.kv_cache import KeysValues
from af.nn.rope import RotaryTable

NORM_EPS = 1e-6


@dataclass(frozen=True)
class Modulation:
    """What flow time does to every frame: shifts, scales and gates of the blocks (shared by all) and of the head.

    The batch may be 1 where every sequence has the same flow times.
    """

    attention_shift: Float[Tensor, "B T C"]
    attention_scale: Float[Tensor, "B T C"]
    attention_gate: Float[Tensor, "B T C"]
    mlp_shift: Float[Tensor, "B T C"]
    mlp_scale: Float[Tensor, "B T C"]
    mlp_gate: Float[Tensor, "B T C"]
    head_shift: Float[Tensor, "B T C"]
    head_scale: Float[Tensor, "B T C"]

    def frames(self, index: Int[Tensor, " t"]) -> Modulation:
        """The modulation of the frames `index`, in that order (frames may repeat)."""
        return Modulation(*(getattr(self, f.name)[:, index] for f in fields(self)))


@dataclass(frozen=True)
class AttentionPlan:
    """Where the frames of a pass stand: their rotary angles and who sees whom."""

    rope: RotaryTable
    self_mask: Bool[Tensor, "T K"]
    cross_mask: Bool[Tensor, "T C"]


def norm(x: Float[Tensor, "B T C"]) -> Float[Tensor, "B T C"]:
    """LayerNorm without gain and bias."""
    return F.layer_norm(x, x.shape[-1:], eps=NORM_EPS)


def modulate(
    x: Float[Tensor, "B T C"], shift: Float[Tensor, "B T C"], scale: Float[Tensor, "B T C"]
) -> Float[Tensor, "B T C"]:
    """x · (1 + scale) + shift."""
    return torch.addcmul(x + shift, x, scale)


class FeedForward(nn.Module):
    """Linear, tanh-GELU, linear."""

    def __init__(self, hidden: int, ratio: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(hidden, round(hidden * ratio))
        self.fc2 = nn.Linear(round(hidden * ratio), hidden)

    def forward(self, x: Float[Tensor, "B T C"]) -> Float[Tensor, "B T C"]:
        """The same function of every frame."""
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class ForcingBlock(nn.Module):
    """One DFoT block. Cross-attention is neither modulated nor gated (method §3)."""

    def __init__(self, hidden: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.attention = SelfAttention(hidden, heads)
        self.cross_attention = CrossAttention(hidden, heads)
        self.mlp = FeedForward(hidden, mlp_ratio)

    def project(self, x: Float[Tensor, "B T C"], modulation: Modulation) -> tuple[Tensor, KeysValues]:
        """Queries, keys and values of the self-attention: all that storing a frame needs of the last block."""
        return self.attention.project(modulate(norm(x), modulation.attention_shift, modulation.attention_scale))

    def forward(
        self,
        x: Float[Tensor, "B T C"],
        modulation: Modulation,
        plan: AttentionPlan,
        condition: KeysValues,
        past: KeysValues | None = None,
    ) -> tuple[Float[Tensor, "B T C"], KeysValues]:
        """The frames after the block, and their own keys (before rotation) and values."""
        q, own = self.project(x, modulation)
        attended = self.attention.attend(q, own, plan.rope, plan.self_mask, past)
        x = torch.addcmul(x, modulation.attention_gate, attended)
        x = x + self.cross_attention(norm(x), condition, plan.cross_mask)
        mixed = self.mlp(modulate(norm(x), modulation.mlp_shift, modulation.mlp_scale))
        return torch.addcmul(x, modulation.mlp_gate, mixed), own
