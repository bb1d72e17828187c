"""What an evaluation takes and gives: clips beside their truth, the protocol, the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from af.evaluation.rows import MetricRow
from af.metrics.reaction import LAG_BANDS, ReactionModel
from af.types import FaceSpec

#: Names of the parameter that opens the mouth, by tracker.
MOUTH_NAMES = ("mouth_open", "jawOpen", "jaw_open")

#: Families of metrics that somebody must have read faces for.
OF_FACES = ("rpcc", "tlcc", "sid", "var", "fd", "pfd", "reaction_gain", "react", "lip", "mouth", "jerk")


@dataclass(frozen=True)
class EvaluationClip:
    """One generated clip beside the truth: same frames, same tracker, 25 fps, 16 kHz.

    `identity` is the avatar's (intervals and the reaction gain keep identities apart); `session` the conversation
    (nulls never pair two clips of one session; None = the clip's own name). `phrase_ends`: frames at which the user's
    phrases end, known on synthetic dyads only; None switches the `react/*` rows off.
    """

    name: str
    identity: str
    user: Float[np.ndarray, "T P"]
    true: Float[np.ndarray, "T P"]
    generated: Float[np.ndarray, "T P"]
    face: FaceSpec
    avatar_audio: Float[np.ndarray, " S"] | None = None
    user_audio: Float[np.ndarray, " S"] | None = None
    phrase_ends: tuple[int, ...] | None = None
    session: str | None = None


@dataclass(frozen=True)
class Protocol:
    """What the numbers depend on besides the clips. Lags and blocks in frames."""

    clusters: tuple[tuple[int, int], ...] = ((40, 20), (15, 9))
    block: int | None = None
    first_border: int | None = None
    max_lag: int = 49
    lip_max_lag: int = 10
    mouth_max_lag: int = 5
    smile_lag: int = 11
    tilt_lag: int = 12
    mel_bands: int = 8
    gain_bands: tuple[tuple[int, int], ...] = LAG_BANDS
    resamples: int = 1000
    seed: int = 0


@dataclass(frozen=True)
class Fitted:
    """What is fitted on the true clips alone: several systems on the same clips can be judged by one fit."""

    centres: Mapping[str, Float[np.ndarray, "K D"] | None]
    reaction: ReactionModel | None


@dataclass(frozen=True)
class ParameterReport:
    """Rows, the curves behind them ({name: (x, {series: y})}), each clip's own values (for sorting a gallery).

    `draws`: bootstrap values by tag. Two reports on the same clips and seed draw the same clips (identities), so the
    difference of their draws is the bootstrap of the difference.
    """

    rows: list[MetricRow]
    curves: dict[str, tuple[np.ndarray, dict[str, np.ndarray]]]
    per_clip: dict[str, dict[str, float]]
    draws: dict[str, np.ndarray]
    fitted: Fitted


def partners(clips: Sequence[EvaluationClip]) -> list[int] | None:
    """For each clip another one, of another session and identity where there is one: whose user makes the null."""
    if len(clips) < 2:
        return None
    chosen = []
    for i, clip in enumerate(clips):
        others = [(i + step) % len(clips) for step in range(1, len(clips))]
        session = clip.session or clip.name

        def rank(j: int, session: str = session, identity: str = clip.identity) -> int:
            same_session = (clips[j].session or clips[j].name) == session
            return 2 * same_session + (clips[j].identity == identity)

        chosen.append(min(others, key=rank))
    return chosen


def fit_length(values: np.ndarray, length: int) -> np.ndarray:
    """Cut to `length`, or run round from the start until it is reached."""
    return values[np.arange(length) % len(values)]
