"""Face parameters of an evaluated conversation: tracked on decoded frames, or read straight from the latents."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
from jaxtyping import Float, UInt8
from torch import Tensor

from af.data.index import Index
from af.data.shards import ShardReader
from af.errors import UserError
from af.metrics.ridge import fit_ridge
from af.pipeline.avatar import Avatar
from af.types import Clip, FaceSpec, MotionSpec, Person

Tracker = Callable[[UInt8[np.ndarray, "T Y X 3"]], Float[np.ndarray, "T P"]]
SIDES: Final = ("user", "true", "generated")


@dataclass(frozen=True)
class Faces:
    """Parameters (T, P) of "user", "true" and "generated" (none where faces are not read), and the generated frames where
    they were made.
    """

    tracks: Mapping[str, Float[np.ndarray, "T P"]]
    frames: UInt8[np.ndarray, "T Y X 3"] | None = None


class FaceSource(Protocol):
    """Where faces come from. One source for all three sides: numbers of two trackers are never mixed. `spec` None: they are
    not read, only decoded.
    """

    fields: frozenset[str]  # what it needs from a shard

    @property
    def spec(self) -> FaceSpec | None:
        """The layout of what is read; None: nothing is."""
        ...

    def faces(self, user: Person, true: Person, generated: Float[Tensor, "T D"]) -> Faces:
        """Faces of a conversation whose avatar moves by `generated`."""
        ...


class DecodedFaces:
    """Decodes the generated motion with the avatar's own first frame as portrait. Nobody reads its faces."""

    fields = frozenset({"video"})
    spec: FaceSpec | None = None

    def __init__(self, avatar: Avatar) -> None:
        self.avatar = avatar

    def faces(self, user: Person, true: Person, generated: Float[Tensor, "T D"]) -> Faces:
        """As `FaceSource.faces`."""
        assert user.video is not None
        assert true.video is not None
        identity, _ = self.avatar.identity(true.video[0])
        blocks = (generated[None, s : s + 50] for s in range(0, len(generated), 50))
        frames = np.stack(list(self.avatar.frames(identity, blocks)))
        return Faces(self._tracks({"user": user.video, "true": true.video, "generated": frames}), frames)

    def _tracks(self, videos: Mapping[str, UInt8[np.ndarray, "T Y X 3"]]) -> dict[str, np.ndarray]:
        return {}


class TrackedFaces(DecodedFaces):
    """And tracks all three videos."""

    def __init__(self, avatar: Avatar, tracker: Tracker, spec: FaceSpec) -> None:
        super().__init__(avatar)
        self.tracker, self.spec = tracker, spec

    def _tracks(self, videos: Mapping[str, UInt8[np.ndarray, "T Y X 3"]]) -> dict[str, np.ndarray]:
        return {side: self.tracker(frames) for side, frames in videos.items()}


class RememberingTracker:
    """A tracker that reads the same frames once: the true ones and the user's, when a split is evaluated repeatedly."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker
        self._known: dict[bytes, np.ndarray] = {}

    def __call__(self, frames: UInt8[np.ndarray, "T Y X 3"]) -> Float[np.ndarray, "T P"]:
        """Face parameters of the frames."""
        key = hashlib.blake2b(np.ascontiguousarray(frames).data).digest()
        if key not in self._known:
            self._known[key] = self._tracker(frames)
        return self._known[key]


class LatentReadout:
    """Face parameters as a linear function of motion latents: an evaluation without decoding a frame.

    Fitted by ridge regression on shards that know both; `r2` says how well it reads each parameter on held-out clips.
    """

    fields = frozenset({"motion"})

    def __init__(
        self,
        weights: Float[np.ndarray, "D P"],
        offset: Float[np.ndarray, " P"],
        spec: FaceSpec,
        motion_spec: MotionSpec,
        r2: Mapping[str, float],
    ) -> None:
        self.weights, self.offset, self.spec, self.motion_spec, self.r2 = weights, offset, spec, motion_spec, r2

    @classmethod
    def fit(cls, index: Index, *, clips: int = 64, ridge: float = 1e-3) -> LatentReadout:
        """Fit on three quarters of the first `clips` conversations (both people), and check on the rest.

        Raises UserError when the shards lack motion or face parameters, or have a single clip.
        """
        reader = ShardReader(index)
        count = min(clips, len(index.samples))
        if count < 2:
            raise UserError(f"{index.folder}: a readout needs at least two conversations, found {count}")
        members = index.samples[0].members
        if missing := [part for part in ("a.motion.npy", "a.face.npy") if part not in members]:
            raise UserError(
                f"{index.folder}: no {missing[0]} in its samples; a readout needs motion latents (af encode) and face "
                "parameters (synthetic shards have them)"
            )
        read = [reader.read(i, {"motion", "face"}) for i in range(count)]
        split = (3 * count) // 4
        x, y = _stacked(read[:split])
        weights, offset = fit_ridge(x, y, ridge)
        x, y = _stacked(read[split:])
        error, spread = np.square(y - x @ weights - offset).mean(0), y.var(0)
        face, motion_spec = (spec.from_json(index.specs[n]) for spec, n in ((FaceSpec, "face"), (MotionSpec, "motion")))
        r2 = {
            name: float(1 - e / s) if s > 0 else float("nan")
            for name, e, s in zip(face.names, error, spread, strict=True)
        }
        spec = FaceSpec(face.names, face.expression, f"latent-readout/{motion_spec.autoencoder[:12]}")
        return cls(weights, offset, spec, motion_spec, r2)

    def __call__(self, motion: Float[np.ndarray, "T D"]) -> Float[np.ndarray, "T P"]:
        """Face parameters of motion latents."""
        return (motion @ self.weights + self.offset).astype(np.float32)

    def faces(self, user: Person, true: Person, generated: Float[Tensor, "T D"]) -> Faces:
        """As `FaceSource.faces`."""
        assert user.motion is not None
        assert true.motion is not None
        sides = (user.motion, true.motion, generated.cpu().numpy())
        return Faces({name: self(motion) for name, motion in zip(SIDES, sides, strict=True)})


def _stacked(clips: list[Clip]) -> tuple[np.ndarray, np.ndarray]:
    people = [person for clip in clips for person in (clip.a, clip.b)]
    motion = np.concatenate([p.motion for p in people if p.motion is not None])
    face = np.concatenate([p.face for p in people if p.face is not None])
    return motion.astype(np.float64), face.astype(np.float64)
