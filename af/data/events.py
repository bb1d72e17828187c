"""Balancing windows towards reactions: a listener's activity, and weights of window starts from it.

Reactions are rare, and windows without any teach nothing about them. A silent listener's movements are reactions or
spontaneous; leaving out speech also leaves out the lip movements it causes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from jaxtyping import Bool, Float, Int

from af.console import progress_bar
from af.data.checks import ShardError
from af.data.disk_cache import scratch_folder
from af.data.index import Index
from af.data.schema import ROLES
from af.data.shards import ShardReader
from af.data.windows import Listening
from af.errors import UserError
from af.files import atomic_path

NAME: Final = "listener_activity.npz"
SMOOTHING_FRAMES: Final = 5
_UNIT: Final = 256  # integer weights give the same plan on every machine


def activity(motion: Float[np.ndarray, "T D"], listening: Bool[np.ndarray, " T"]) -> Float[np.ndarray, " T"]:
    """Speed of the motion in latent units per frame, over `SMOOTHING_FRAMES`; 0 outside the frames of listening."""
    speed = np.linalg.norm(np.diff(motion.astype(np.float64), axis=0, prepend=motion[:1]), axis=1)
    smooth = np.convolve(speed, np.full(SMOOTHING_FRAMES, 1 / SMOOTHING_FRAMES), mode="same")
    return np.where(listening, smooth, 0.0)


def listener_activity(index: Index, listening: Listening) -> dict[str, Float[np.ndarray, " T"]]:
    """`activity` of both people in every sample, by "number.role"; cached in a file beside the shards.

    Leaves out unreadable samples, which the loader counts. Raises UserError for shards without latents or voices.
    """
    if index.specs.get("motion") is None:
        raise UserError(f"{index.folder}: the shards hold no motion latents; add them with: af encode")
    path = scratch_folder(index.folder) / NAME
    wanted = hashlib.sha256("".join(shard.sha256 for shard in index.shards).encode()).hexdigest()
    if path.is_file():
        with np.load(path, allow_pickle=False) as file:
            if str(file["shards"]) == wanted:
                return {name: file[name] for name in file.files if name != "shards"}
    reader, found = ShardReader(index), {}
    with progress_bar() as bar:
        for i, sample in enumerate(bar.track(index.samples, description="reactions of listeners")):
            try:
                clip = reader.read(i, {"audio", "motion"})
            except ShardError:
                continue
            for role in sample.roles if len(sample.roles) == 2 else ():  # nobody alone reacts
                person = clip.person(role)
                if person.audio is None or person.motion is None:
                    raise UserError(
                        f"{index.folder}: sample {sample.key} has no voice or motion of {role} to weight it by"
                    )
                found[f"{i}.{role}"] = activity(person.motion, listening(person.audio, sample.frames)).astype(
                    np.float32
                )
    with atomic_path(path) as temporary, temporary.open("wb") as out:
        np.savez_compressed(out, shards=np.array(wanted), **found)  # type: ignore[arg-type]
    return found


def start_weights(
    index: Index, activities: Mapping[str, Float[np.ndarray, " T"]], *, frames: int, block: int, balance: float
) -> Sequence[Mapping[str, Int[np.ndarray, " starts"]]]:
    """Integer weights of all window starts (multiples of `block`), by sample and role of the avatar.

    A weight is 1 + `balance` · (mean activity of the window / of the split): equal for all windows with `balance` 0,
    proportional to the listener's activity for large values. Raises UserError for a negative `balance`.
    """
    if balance < 0:
        raise UserError(f"data.balance: {balance}; it must not be negative")
    total = sum(float(a.sum()) for a in activities.values())
    mean = total / max(1, sum(len(a) for a in activities.values()))
    weights = []
    for i, sample in enumerate(index.samples):
        starts = block * np.arange(max(0, sample.frames - frames) // block + 1)
        of_role = {}
        for role in ROLES:
            curve = activities.get(f"{i}.{role}")
            share = np.zeros(len(starts))
            if curve is not None and mean > 0:
                sums = np.concatenate(([0.0], np.cumsum(curve, dtype=np.float64)))
                stops = np.minimum(starts + frames, len(curve))
                share = (sums[stops] - sums[starts]) / (stops - starts) / mean
            of_role[role] = np.rint(_UNIT * (1 + balance * share)).astype(np.int64)
        weights.append(of_role)
    return weights
