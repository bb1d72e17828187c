"""The condition encoder, with one vector per frame as output: audio projection and Dual Motion Encoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from af.nn.attention import MultiHeadAttention
from af.nn.rope import RotaryTable
from af.types import Condition


class AudioProjection(nn.Sequential):
    """Raw audio features (F dims) -> A dims: linear, LayerNorm, SiLU."""

    def __init__(self, feature_dim: int, dim: int) -> None:
        super().__init__(nn.Linear(feature_dim, dim), nn.LayerNorm(dim), nn.SiLU())
        self.feature_dim = feature_dim

    def forward(self, features: Float[Tensor, "B T F"]) -> Float[Tensor, "B T A"]:
        """Project every frame. (Defined here because torch.compile skips torch's own `forward`.)"""
        return super().forward(features.to(next(self.parameters()).dtype))


class DualMotionEncoder(nn.Module):
    """User motion attends to user audio, then avatar audio attends to the result (method §3).

    Each attention has a mask; None = every frame sees every frame (as released).
    """

    def __init__(self, motion_dim: int, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.motion_embedder = nn.Sequential(
            nn.Linear(motion_dim, dim),
            nn.LayerNorm(dim),
            nn.SiLU(),
            nn.Linear(dim, dim),
            nn.LayerNorm(dim),
            nn.SiLU(),
        )
        self.user_attention = MultiHeadAttention(dim, heads)
        self.user_norm = nn.LayerNorm(dim)
        self.avatar_attention = MultiHeadAttention(dim, heads)
        self.avatar_norm = nn.LayerNorm(dim)
        self.out = nn.Linear(dim, hidden)

    def forward(
        self,
        condition: Condition,
        masks: Sequence[Bool[Tensor, "T T"] | None] = (None, None),
        rope: RotaryTable | None = None,
    ) -> Float[Tensor, "B T C"]:
        """Condition vectors. Dropped signals are zeros and still pass through the encoder.

        Without `rope`, the mask alone conveys the order of frames (paper and released model).
        """
        motion = self.motion_embedder(condition.user_motion)
        user = F.silu(self.user_norm(motion + self.user_attention(motion, condition.user_audio, masks[0], rope)))
        avatar = condition.avatar_audio
        return self.out(F.silu(self.avatar_norm(avatar + self.avatar_attention(avatar, user, masks[1], rope))))
