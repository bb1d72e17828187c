"""Face parameters read from the motion coefficients: guidance for runs too short to find expressions by themselves."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn


class FaceGuide(nn.Module):
    """Mean squared error of a linear reading of `parameters` face parameters from `directions` coefficients.

    The parameters are standardised by their running mean and variance. Pixels alone say little about lips and lids:
    they are few, and L1 asks for their median. The reading is used in training only and is not part of the model.
    """

    def __init__(self, directions: int, parameters: int) -> None:
        super().__init__()
        self.reading = nn.Linear(directions, parameters)
        self.standard = nn.BatchNorm1d(parameters, eps=1e-4, momentum=0.05, affine=False)

    def forward(self, coefficients: Float[Tensor, "B K"], face: Float[Tensor, "B P"]) -> Float[Tensor, ""]:
        """The error, about 1 for a reading that knows nothing."""
        return (self.reading(coefficients.float()) - self.standard(face)).square().mean()
