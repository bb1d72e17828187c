"""Distillation: one student pass a step in place of guidance branches, and one or two steps in place of eight.

The teacher, guided and with all of its steps, has turned noise into motion for every clip (`af teacher`).
The student learns straight paths between the two ends that belong together (rectified flow's reflow, arXiv 2209.03003):
its velocity at the noise already points to the teacher's motion, so a step or two arrive. It sees blocks as it meets
them when generating: those before the current one clean, the current one at the flow times of its few steps.
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
        """The teacher's noise and what the teacher made of it. UserError for batches without them."""
        if batch.noise is None or batch.teacher is None:
            raise UserError("a distillation needs data.teacher: a folder written by af teacher")
        return batch.noise, self.denoiser.motion_space.to_model(batch.teacher)
