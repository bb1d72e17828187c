"""Rolling out recorded conversations: from arrays in shards to motion latents, shared by all tasks."""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from af.data.index import Index
from af.data.plan import mix
from af.data.schema import other_role
from af.data.shards import ShardReader
from af.errors import UserError
from af.forcing.anchor import Anchor
from af.forcing.dropout import SIGNALS, drop_user, keep_signals
from af.forcing.guidance import Guidance
from af.forcing.noise import clip_noise
from af.forcing.rollout import block_sizes, rollout
from af.forcing.solvers import SCHEDULE, SOLVER, STEPS
from af.models.artifact import Artifact, load_as
from af.models.denoiser import MotionDenoiser
from af.types import Clip


@dataclass(frozen=True)
class RolloutSettings:
    """Settings of generation: steps a block, their solver and schedule, guidance scales, seed, clips per batch, signals for the
    model, the anchor, and the dead band.
    """

    steps: int = STEPS
    solver: str = SOLVER
    schedule: str = SCHEDULE
    guidance: Guidance = Guidance()  # noqa: RUF009 (frozen)
    seed: int = 0
    batch: int = 16
    signals: tuple[str, ...] = SIGNALS
    anchor: Anchor = Anchor()  # noqa: RUF009 (frozen)
    dead_band: float = 0.0

    @property
    def sampling(self) -> dict[str, Any]:
        """What a sampler takes (`af.forcing.sampler.BlockSampler`)."""
        return {
            name: getattr(self, name) for name in ("steps", "solver", "schedule", "guidance", "anchor", "dead_band")
        }


@dataclass(frozen=True)
class Turn:
    """One person as the avatar: the denoiser's inputs as stored in shards, and the name that determines the noise."""

    name: str
    avatar_audio: Float[np.ndarray, "T F"]
    user_audio: Float[np.ndarray, "T F"]
    user_motion: Float[np.ndarray, "T D"]
    reference: Float[np.ndarray, " D"]
    has_user: bool = True

    def first(self, frames: int) -> Turn:
        """The first `frames` frames of the turn."""
        parts: dict[str, Any] = {name: getattr(self, name)[:frames] for name in SIGNALS}
        return replace(self, **parts)


def turn_of(clip: Clip, role: str, heard: Clip | None = None, *, name: str | None = None, reference: int = 0) -> Turn:
    """The turn of `role` as the avatar in a clip with latents and audio features; frame `reference` is the portrait.

    The user is from the clip `heard` (None: this one), cut or repeated to length. A one-sided clip has none: zeros.
    """
    own, user = clip.person(role), (heard or clip).person(other_role(role))
    assert own.audio_features is not None and own.motion is not None  # noqa: PT018
    if (heard or clip).meta.get("one_sided"):
        nothing = np.zeros_like(own.audio_features), np.zeros_like(own.motion)
        return Turn(name or clip.key, own.audio_features, *nothing, own.motion[reference], has_user=False)
    assert user.audio_features is not None and user.motion is not None  # noqa: PT018
    again = np.arange(len(own.motion)) % len(user.motion)
    return Turn(
        name or clip.key, own.audio_features, user.audio_features[again], user.motion[again], own.motion[reference]
    )


@dataclass(frozen=True)
class Scene:
    """Several avatars for equally many frames: audio features and motion latents as stored, on one device.

    `names` are the turns' names (KEY/ROLE for clips in shards; none for windows of a training batch). Where `has_user`
    is False, the user is dropped (None: all have one).
    """

    avatar_audio: Float[Tensor, "B T F"]
    user_audio: Float[Tensor, "B T F"]
    user_motion: Float[Tensor, "B T D"]
    reference: Float[Tensor, "B D"]
    names: tuple[str, ...] = ()
    has_user: Bool[Tensor, " B"] | None = None

    @classmethod
    def of(cls, turns: Sequence[Turn], device: torch.device | str = "cpu") -> Scene:
        """A scene from turns of equal length."""

        def stacked(rows: Iterable[np.ndarray]) -> Tensor:
            return torch.from_numpy(np.stack([np.asarray(r, np.float32) for r in rows])).to(device, non_blocking=True)

        parts = {name: stacked(getattr(turn, name) for turn in turns) for name in (*SIGNALS, "reference")}
        has_user = torch.tensor([turn.has_user for turn in turns]).to(device, non_blocking=True)
        return cls(**parts, names=tuple(turn.name for turn in turns), has_user=has_user)

    def noise(self, denoiser: MotionDenoiser, seed: int) -> Float[Tensor, "B N M"]:
        """The noise for names and seed, in whole blocks (at least as many frames as the scene)."""
        frames = sum(block_sizes(self.avatar_audio.shape[1], denoiser.layout))
        noise = torch.stack([clip_noise(name, seed, frames, denoiser.dim) for name in self.names])
        return noise.to(self.reference.device, non_blocking=True)

    def rolled_out(
        self, denoiser: MotionDenoiser, noise: Tensor, *, signals: Sequence[str] = SIGNALS, **sampling: Any
    ) -> Float[Tensor, "B T D"]:
        """Roll out motion latents of the avatars from `noise`. `sampling` as in `af.forcing.rollout.rollout`."""
        space = denoiser.motion_space
        condition = denoiser.condition(self.avatar_audio, self.user_audio, self.user_motion)
        if self.has_user is not None:
            condition = drop_user(condition, ~self.has_user)
        reference = space.to_model(self.reference)
        motion = rollout(denoiser, keep_signals(condition, signals), reference, noise=noise, **sampling)
        return space.from_model(motion).float()


@torch.inference_mode()
def roll_out(denoiser: MotionDenoiser, turns: Sequence[Turn], settings: RolloutSettings) -> Float[Tensor, "B T D"]:
    """Motion latents of turns of equal length, rolled out together; noise depends on a turn's name and the seed."""
    scene = Scene.of(turns, next(denoiser.parameters()).device)
    return scene.rolled_out(
        denoiser,
        scene.noise(denoiser, settings.seed),
        signals=settings.signals,
        **settings.sampling,
    )


#: The fields of a clip that a roll-out reads.
PARTS: Final = ("motion", "audio_features")
#: Makes motion latents for the avatars of a scene: (denoiser, scene, noise) -> (B, T, D).
Maker = Callable[[Any, Scene, Tensor], Tensor]


@torch.inference_mode()
def shard_motions(
    reader: ShardReader,
    shard: int,
    make: Maker,
    denoiser: MotionDenoiser | None,
    *,
    seed: int = 0,
    batch: int = 32,
    other_users: bool = False,
    one_sided: bool = False,
) -> dict[tuple[int, str], Float[np.ndarray, "T D"]]:
    """Results of `make` for every (sample, avatar's role) of a shard, in batches of at most `batch` equally long clips.

    With `other_users` every avatar gets the user of another conversation (`OtherConversations`). Without a denoiser
    there is no noise. One-sided samples are left out, unless `one_sided`.
    """
    by_length: dict[int, list[tuple[int, str]]] = defaultdict(list)
    for i, entry in enumerate(reader.index.samples):
        if entry.shard == shard and (one_sided or len(entry.roles) == 2):
            by_length[entry.frames] += [(i, role) for role in entry.avatars]
    device = "cpu" if denoiser is None else next(denoiser.parameters()).device
    others = OtherConversations(reader.index)

    def turn(i: int, role: str) -> Turn:
        entry = reader.index.samples[i]
        clip = reader.read(i, PARTS)
        heard = reader.read(others.of(i, seed), PARTS) if other_users else None
        first = next((first for first, _ in entry.valid[role]), 0)
        return turn_of(clip, role, heard, name=turn_name(entry.key, role), reference=first)

    motions: dict[tuple[int, str], np.ndarray] = {}
    for group in by_length.values():
        for start in range(0, len(group), batch):
            chosen = group[start : start + batch]
            scene = Scene.of([turn(i, role) for i, role in chosen], device)
            noise = torch.empty(0) if denoiser is None else scene.noise(denoiser, seed)
            made = make(denoiser, scene, noise)
            motions.update(zip(chosen, made.float().cpu().numpy(), strict=True))
    return motions


def turn_name(key: str, role: str) -> str:
    """The name that determines the noise of a person's motion."""
    return f"{key}/{role}"


class OtherConversations:
    """For every sample another conversation, by hash of its key: from another session and without common people if
    possible, else from another session, else without common people.
    """

    def __init__(self, index: Index) -> None:
        self._index = index
        self._all = [j for j, other in enumerate(index.samples) if len(other.roles) == 2]
        self._place = {j: place for place, j in enumerate(self._all)}
        self._of_session: dict[str, set[int]] = defaultdict(set)
        self._of_person: dict[str, set[int]] = defaultdict(set)
        for j in self._all:
            self._of_session[index.samples[j].session].add(j)
            for person in index.samples[j].participants:
                self._of_person[person].add(j)

    def of(self, i: int, seed: int) -> int:
        """That of sample `i`. Raises UserError when there is only one conversation."""
        own = self._index.samples[i]
        session = self._of_session[own.session] - {i}
        people = set[int]().union(*(self._of_person[person] for person in own.participants)) - {i}
        near = session | people | ({i} & self._place.keys())
        chosen = mix(seed, zlib.crc32(own.key.encode()))
        if strangers := len(self._all) - len(near):
            return self._all[_skipping(chosen % strangers, sorted(self._place[j] for j in near))]
        nearest = sorted(people - session or session - people or session)
        if not nearest:
            raise UserError(f"{self._index.folder}: the user of another conversation is needed, but there is only one")
        return nearest[chosen % len(nearest)]


def _skipping(n: int, left_out: Iterable[int]) -> int:
    """The n-th whole number that is not among `left_out`, which are in order."""
    for number in left_out:
        if number <= n:
            n += 1
    return n


@lru_cache(maxsize=2)
def cached_denoiser(folder: str, device: str) -> tuple[MotionDenoiser, Artifact]:
    """The denoiser of a model folder, a run or a checkpoint on `device`, cached per process."""
    denoiser, artifact = load_as(folder, MotionDenoiser)
    return denoiser.to(device), artifact
