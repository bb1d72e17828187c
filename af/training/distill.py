"""Distillation: one student pass per step instead of guidance branches, and one or two steps instead of eight.

The guided teacher, with all of its steps, has generated motion from noise for every clip (`af teacher`). The student
learns straight paths between these pairs (rectified flow's reflow, arXiv 2209.03003): its velocity at the noise already
points to the teacher's motion, so one or two steps suffice. It trains on blocks as in generation: earlier blocks are
clean, the current one is at the flow times of its few steps.
"""

from __future__ import annotations

from torch import Tensor

from af.errors import UserError
from af.training.denoiser import DenoiserModule
from af.training.randomness import Draws
from af.types import DyadBatch


class DistillModule(DenoiserModule):
    """`DenoiserModule` on the teacher's pairs of noise and motion. Roll the student out with `Guidance.conditional()`.

    Give `flow_times` the distribution `af.forcing.noise.Steps` of the student's steps, and a `clean_probability`.
    """

    def ends(self, batch: DyadBatch, draws: Draws) -> tuple[Tensor, Tensor]:
        """The teacher's noise and motion. Raises UserError for batches without them."""
        if batch.noise is None or batch.teacher is None:
            raise UserError("a distillation needs data.teacher: a folder written by af teacher")
        return batch.noise, self.denoiser.motion_space.to_model(batch.teacher)
