"""Sources of losers: motion of the same avatars in the same conversations, worse than the true motion.

`conf/losers/*.yaml` describe sources. `af losers` makes shards with one; `OnlineLosers` (the preference stage) makes
losers for the current batch. A new source is a `LoserSource` here, or in a package of your own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from af.data.checks import ShardError, check_values
from af.errors import UserError
from af.forcing.guidance import Guidance
from af.models.artifact import WEIGHTS, find_model
from af.models.denoiser import MotionDenoiser
from af.pipeline.rolling import Scene, cached_denoiser
from af.values import require_number


class LoserSource:
    """Base of the sources: maps a denoiser, a scene and noise (B, N, M) to motion latents (B, T, D)."""

    #: Whether the scene must hold the users of other conversations.
    other_users: ClassVar[bool] = False
    #: Whether it rolls out the denoiser; if not, `af losers` needs none.
    needs_denoiser: ClassVar[bool] = True

    def __call__(self, denoiser: MotionDenoiser, scene: Scene, noise: Tensor) -> Float[Tensor, "B T D"]:
        """The losers."""
        raise NotImplementedError

    def inputs(self, name: str) -> Sequence[Path]:
        """Files besides the shards that the loser of turn `name` (KEY/ROLE) depends on, to detect changes."""
        return ()


@dataclass(frozen=True)
class WeakUser(LoserSource):
    """The denoiser with a guidance scale below 1 for the user's signals; at 0 (`drop_user`) it ignores them.

    `audio` is the scale of the avatar's audio, `steps` the number of Euler steps per block.
    """

    audio: float = 2.0
    user: float = 0.0
    steps: int = 8

    def __post_init__(self) -> None:
        require_number("losers.user", self.user, least=0, below=1)

    def __call__(self, denoiser: MotionDenoiser, scene: Scene, noise: Tensor) -> Float[Tensor, "B T D"]:
        """The losers."""
        return scene.rolled_out(denoiser, noise, steps=self.steps, guidance=Guidance(self.audio, self.user))


@dataclass(frozen=True)
class OtherUser(WeakUser):
    """The denoiser reacting to the user of another conversation (online: of the batch's next window)."""

    other_users: ClassVar[bool] = True
    user: float = 1.0

    def __post_init__(self) -> None:
        require_number("losers.user", self.user, above=0)


@dataclass(frozen=True)
class Talking(WeakUser):
    """Another denoiser, trained on the avatar's audio alone (`module.dropout.user=1`): `model` is its folder or run."""

    model: str = ""

    def __call__(self, denoiser: MotionDenoiser, scene: Scene, noise: Tensor) -> Float[Tensor, "B T D"]:
        """The losers."""
        return super().__call__(cached_denoiser(self.model, str(noise.device))[0], scene, noise)

    def inputs(self, name: str) -> Sequence[Path]:
        """The other denoiser's weights."""
        place = find_model(self.model)
        return (place if place.is_file() else place / WEIGHTS,)


@dataclass(frozen=True)
class FromFiles(LoserSource):
    """Arrays KEY.a.npy and KEY.b.npy (frames x motion latent) in a folder; only for `af losers`.

    Raises UserError for files that are missing, unreadable, or of another shape.
    """

    needs_denoiser: ClassVar[bool] = False
    folder: str

    def __call__(self, denoiser: MotionDenoiser, scene: Scene, noise: Tensor) -> Float[Tensor, "B T D"]:
        """The losers."""
        if not scene.names:
            raise UserError("online.source: the arrays in a folder are for whole clips; make shards with `af losers`")
        return torch.stack([self._read(name, scene.user_motion.shape[1:]) for name in scene.names])

    def inputs(self, name: str) -> Sequence[Path]:
        """The array's file."""
        file = Path(self.folder) / f"{name.replace('/', '.')}.npy"
        if not file.is_file():
            raise UserError(f"{file} is missing: losers=file needs KEY.a.npy and KEY.b.npy for every sample")
        return (file,)

    def _read(self, name: str, shape: torch.Size) -> Tensor:
        (file,) = self.inputs(name)
        try:
            array = np.asarray(np.load(file, allow_pickle=False), np.float32)
        except (ValueError, TypeError, EOFError, OSError) as error:
            raise UserError(
                f"{file} cannot be read as an array of numbers ({error}); save it with numpy.save"
            ) from error
        if array.shape != tuple(shape):
            raise UserError(f"{file}: shape {array.shape}, expected {tuple(shape)} (frames x motion latent)")
        check_values(array, partial(ShardError, str(file), ""))
        return torch.from_numpy(array)
