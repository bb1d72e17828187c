"""The trained model that a stage adapts (`af.nn.adapt`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from af.models.artifact import BASE, base_of
from af.nn.adapt import Adaptation


def adapted(base: str, sha256: str, layers: Sequence[str], rank: int | None = None) -> nn.Module:
    """The model in `base` (a model folder, run or checkpoint of this digest), of which only `layers` are trained, by factors
    of `rank` (None: they themselves). Raises UserError for another or an adapted model, and for layers that it lacks.
    """
    return Adaptation(list(layers), rank)(base_of(base, sha256, f"adapt.{BASE}").model)


def described(adapt: dict[str, Any]) -> dict[str, Any]:
    """The entry of model.json: the settings of `adapted`."""
    return {name: adapt[name] for name in (BASE, "sha256", "layers", "rank")}
