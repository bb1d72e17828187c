"""Motion coefficients tied to face parameters: guidance for runs too short to find expressions by themselves."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn


class FaceGuide(nn.Module):
    """Mean squared difference of the first P coefficients from the P standardised face parameters.

    Pixels alone say little about lips and lids: they are few. The parameters are standardised by the batch's mean and
    variance (in evaluation: the running ones), so each of them moves its direction by as much as the others; coefficients
    beyond P stay free. Used in training only, on shards that know the parameters; nothing of it is part of the model.
    """

    def __init__(self, parameters: int) -> None:
        super().__init__()
        self.standard = nn.BatchNorm1d(parameters, eps=1e-4, momentum=0.05, affine=False)

    def forward(self, coefficients: Float[Tensor, "B K"], face: Float[Tensor, "B P"]) -> Float[Tensor, ""]:
        """The difference, about 1 for coefficients that know nothing. ValueError when K < P."""
        if coefficients.shape[1] < face.shape[1]:
            raise ValueError(f"{face.shape[1]} face parameters do not fit into {coefficients.shape[1]} coefficients")
        return (coefficients[:, : face.shape[1]] - self.standard(face)).square().mean()
