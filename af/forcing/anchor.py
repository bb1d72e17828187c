"""An anchor against slow drift of long roll-outs from the portrait's pose and expression (off by default)."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from af.values import require_number


@dataclass(frozen=True)
class Anchor:
    """Two ways to hold a roll-out near the portrait, which can be combined.

    `sink_frames`: number of frames of the portrait's still motion, with every signal dropped, that stay in the caches
    for good as the oldest frames (attention sinks, Xiao et al. 2023). `pull`: a guidance term that subtracts from the
    velocity this share of the running mean's distance (over about `horizon_frames`) from the portrait's motion.
    """

    sink_frames: int = 0
    pull: float = 0.0
    horizon_frames: int = 250

    def __post_init__(self) -> None:
        require_number("anchor.sink_frames", self.sink_frames, least=0, whole=True)
        require_number("anchor.pull", self.pull, least=0)
        require_number("anchor.horizon_frames", self.horizon_frames, least=1)

    def running_mean(self, mean: Float[Tensor, "B D"], block: Float[Tensor, "B T D"]) -> Float[Tensor, "B D"]:
        """Update the running mean of the motion by a block."""
        kept = (1 - 1 / self.horizon_frames) ** block.shape[1]
        return kept * mean + (1 - kept) * block.mean(1)
