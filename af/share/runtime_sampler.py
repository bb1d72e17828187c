"""Roll-outs of an exported denoiser, block by block, with numpy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
from jaxtyping import Float32

from af.errors import UserError, require_choice
from af.forcing.dead_band import check_dead_band, held
from af.forcing.guidance import Guidance
from af.forcing.solvers import UNNAMED, UNNAMED_SCHEDULE, levels
from af.values import require_number

if TYPE_CHECKING:
    from af.share.runtime import Runtime

#: Those of `af.forcing.solvers.SOLVERS` and `SCHEDULES` that exports have.
SOLVERS: Final = ("euler", "midpoint")
SCHEDULES: Final = ("uniform", "fine_end")
SIGNALS: Final = ("avatar_audio", "user_audio", "user_motion")
Array = np.ndarray
#: A signal of a block: a row for each frame.
Rows = Sequence[Array] | Array | None


class Sampler:
    """A roll-out in steps (`af.forcing.sampler.BlockSampler`) with one of `SOLVERS` and of `SCHEDULES`.

    Raises UserError for a guidance whose branches the export has not, and for another solver or schedule.
    """

    def __init__(
        self,
        runtime: Runtime,
        reference: Float32[np.ndarray, "1 L"],
        steps: int,
        guidance: Guidance,
        solver: str = UNNAMED,
        schedule: str = UNNAMED_SCHEDULE,
        dead_band: float = 0.0,
    ) -> None:
        require_number("steps", steps, least=1, whole=True)
        check_dead_band(dead_band)
        require_choice("solver", "solver", solver, SOLVERS)
        require_choice("schedule", "schedule", schedule, SCHEDULES)
        if not runtime.has_branches(guidance):
            raise UserError(f"guidance: {guidance} has other branches than the export; export the avatar with it")
        weights = {(branch.avatar, branch.user): branch.weight for branch in guidance.branches()}
        exported = [(branch["avatar"], branch["user"]) for branch in runtime.about["branches"]]
        self.runtime, self.frames, self._dead_band = runtime, 0, dead_band
        self._shown: Array | None = None
        self.change_reference(reference)
        self._weights = np.array([weights.get(branch, 0) for branch in exported], np.float32)
        self._rows = 2 if solver == "midpoint" else 1  # as `af.forcing.path.integrate` takes them
        clean, block = np.ones((1, runtime.look_ahead)), np.ones((1, runtime.block_frames))
        times = levels(schedule, steps)
        self._sizes = np.diff(times).astype(np.float32)
        self._times = [runtime.run("modulation", np.concatenate((clean, block * time), 1))[0] for time in times]
        width = runtime.shape("step", "latents")[2]
        self._offset = np.zeros((1, runtime.look_ahead, width), np.float32)
        self._cache = np.zeros(runtime.shape("step", "cache"), np.float32)
        self._past = [np.zeros(runtime.shape("condition", f"past_{name}"), np.float32) for name in SIGNALS]
        self.pending: tuple[Array, Array, Array, Array] | None = None

    def change_reference(self, reference: Float32[np.ndarray, "1 L"]) -> None:
        """Replace the portrait's motion from the next block on."""
        self.reference = self.runtime.run("model", reference)[0]

    def step(self, *signals: Rows, noise: Float32[np.ndarray, "1 T M"]) -> Float32[np.ndarray, "1 T M"]:
        """Motion of the next block in the denoiser's space, from the features and motion of its frames (`SIGNALS`; None:
        dropped; fewer frames: the last is repeated).
        """
        condition, frames = self._prepare(signals)

        def velocity(x: Array, time: Array) -> Array:
            latents = np.concatenate((self._offset, x), 1)
            branches = self.runtime.run("step", latents, self.reference, time, condition, frames, self._cache)[0]
            return np.tensordot(self._weights, branches, 1)[None]

        x, steps = noise, self._times[:-1]
        for first in range(0, len(steps), self._rows):
            times, sizes = steps[first : first + self._rows], self._sizes[first : first + self._rows]
            v = velocity(x, times[0])
            for time, size in zip(times[1:], sizes, strict=False):
                v = velocity(x + size * v, time)
            x = x + sizes.sum() * v
        self._finish(x, condition, frames)
        if self._dead_band:
            x = np.stack(list(held(x.swapaxes(0, 1), self._shown, self._dead_band)), 1)
        self._shown = x[:, -1]
        return x

    def give(self, *signals: Rows, motion: Float32[np.ndarray, "1 T M"]) -> None:
        """Append existing motion as if it had been generated."""
        self._finish(motion, *self._prepare(signals))
        self._shown = motion[:, -1]

    def commit(self) -> None:
        """Put the newest block into the cache, unless it is there: a session may do so while it waits for input."""
        if self.pending is None:
            return
        latents, reference, condition, frames = self.pending
        self.pending = None
        added = self.runtime.run("step", latents, reference, self._times[-1], condition, frames, self._cache)[1]
        # the last frames have not seen their own look-ahead: the next block computes them again
        added = added[..., : added.shape[-2] - self.runtime.look_ahead, :]
        self._cache = np.concatenate((self._cache, added), -2)[..., added.shape[-2] :, :]

    def _prepare(self, signals: Sequence[Rows]) -> tuple[Array, Array]:
        self.commit()
        given, used = [], []
        for name, rows in zip(SIGNALS, signals, strict=True):
            array = np.zeros(self.runtime.shape("condition", name), np.float32)
            if rows is not None:
                array[0, : len(rows)], array[0, len(rows) :] = rows, rows[-1]
            given.append(array)
            used.append(float(rows is not None))
        frames, used_of = np.array([self.frames]), np.array(used, np.float32)
        condition, *self._past = self.runtime.run("condition", *given, used_of, frames, *self._past)
        return condition, frames

    def _finish(self, motion: Array, condition: Array, frames: Array) -> None:
        latents = np.concatenate((self._offset, motion), 1)
        self._offset = latents[:, latents.shape[1] - self.runtime.look_ahead :]
        self.pending, self.frames = (latents, self.reference, condition, frames), self.frames + motion.shape[1]
