from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from af.clock import SAMPLES_PER_FRAME
from af.models.speech import SpeechFeatures
from af.specs import FeatureSpec


class Loudness(SpeechFeatures):
    """The mean square of `dim` equal parts of every frame."""

    def __init__(self, dim: int = 4, block_frames: int = 10, window_frames: int = 50) -> None:
        spec = FeatureSpec("loudness", "1", dim, "streaming", block_frames, window_frames)
        super().__init__(spec, silence=1e-5)

    def encode(self, windows: Float[Tensor, "N S"]) -> Float[Tensor, "N T F"]:
        return windows.square().unflatten(-1, (-1, self.spec.dim, SAMPLES_PER_FRAME // self.spec.dim)).mean(-1)
