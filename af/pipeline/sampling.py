"""How an avatar is sampled, as its models and folders say it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any, Final

from af.errors import UserError, require_choice
from af.forcing.anchor import Anchor
from af.forcing.dead_band import check_dead_band
from af.forcing.guidance import Guidance
from af.forcing.solvers import OLDER, SCHEDULE, SCHEDULES, SOLVER, SOLVERS, STEPS
from af.values import require_number

#: How students of one step are sampled.
ONE_PASS: Final[Mapping[str, Any]] = {
    "steps": 1,
    "solver": "euler",
    "schedule": "uniform",
    "guidance": Guidance.conditional(),
}
#: How denoisers are sampled that do not say it.
_GUIDED: Final[Mapping[str, Any]] = {"steps": STEPS, "solver": SOLVER, "schedule": SCHEDULE, "guidance": Guidance()}
#: What older files do not name.
_UNNAMED: Final[Mapping[str, Any]] = {**OLDER, "dead_band": 0.0}
#: The most steps, and frames kept for good, that a file may ask for.
MOST_STEPS, MOST_SINK_FRAMES = 1000, 1000


def usual_sampling(info: Mapping[str, Any]) -> Mapping[str, Any]:
    """How a denoiser is sampled where nobody has said it, from the content of its model.json: as that says, one pass for
    students, else guided steps. Raises UserError for a description that cannot be used.
    """
    if (said := info.get("sampling")) is not None:
        try:
            return read_sampling(said)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            reason = error if isinstance(error, ValueError) else repr(error)
            raise UserError(f"model.json: sampling cannot be used: {reason}") from error
    return ONE_PASS if info.get("stage") == "distill" else _GUIDED


def inherited(info: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a model that was trained from one says of its sampling, from the model.json of that one: the same. From a student's,
    or where that says nothing, nothing (an empty mapping).
    """
    return {} if info.get("stage") == "distill" or "sampling" not in info else usual_sampling(info)


def over(usual: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
    """All that `af.pipeline.avatar.Avatar.motion` takes: what was `asked` for, else the `usual`.

    `asked`: steps, solver, schedule, guidance_audio, guidance_user, guidance_joint, anchor_sink, anchor_pull, dead_band (None or
    absent: the usual one), and unguided (true: one branch with all signals).
    """
    said = {name: value for name, value in asked.items() if value is not None}

    def some(prefix: str, *names: str, usual: Any) -> Any:
        given = {name: said[key] for name in names if (key := f"{prefix}_{name.removesuffix('_frames')}") in said}
        return replace(usual, **given)

    plain = {name: said.get(name, usual.get(name, unnamed)) for name, unnamed in _UNNAMED.items()}
    guidance = some("guidance", "audio", "user", "joint", usual=usual["guidance"])
    return {
        "steps": said.get("steps", usual["steps"]),
        **plain,
        "guidance": Guidance.conditional() if said.get("unguided") else guidance,
        "anchor": some("anchor", "sink_frames", "pull", usual=usual.get("anchor", Anchor())),
    }


def read_sampling(data: Mapping[str, Any]) -> dict[str, Any]:
    """Sampling of a JSON object (model.json, avatar.json, or evaluation.json of an evaluation). Raises ValueError or
    TypeError.
    """
    found = {"steps": data["steps"], "guidance": Guidance(**data["guidance"]), "anchor": Anchor(**data["anchor"])}
    found |= {name: data.get(name, unnamed) for name, unnamed in _UNNAMED.items()}
    require_choice("sampling.solver", "solver", found["solver"], SOLVERS)
    require_choice("sampling.schedule", "schedule", found["schedule"], SCHEDULES)
    check_dead_band(found["dead_band"])
    require_number("sampling.steps", found["steps"], least=1, most=MOST_STEPS, whole=True)
    require_number("sampling.anchor.sink_frames", found["anchor"].sink_frames, most=MOST_SINK_FRAMES)
    return found


def plain_sampling(sampling: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON object for `read_sampling`; `sampling` need not name solver, schedule, anchor and dead band."""
    chosen = {**_UNNAMED, "anchor": Anchor(), **sampling}
    return {name: asdict(value) if name in ("guidance", "anchor") else value for name, value in chosen.items()}
