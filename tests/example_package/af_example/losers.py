from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from af.pipeline.losers import LoserSource
from af.pipeline.rolling import Scene


@dataclass(frozen=True)
class Still(LoserSource):
    """A face that does not move."""

    needs_denoiser = False

    def __call__(self, denoiser: Any, scene: Scene, noise: Tensor) -> Float[Tensor, "B T D"]:
        return scene.reference[:, None].expand(scene.user_motion.shape)
