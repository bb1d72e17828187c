"""Event-triggered averages: how the avatar answers the user's smiles, head tilts and ends of phrases on average."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np
from jaxtyping import Float, Int

from af.clock import FPS, seconds_to_frames
from af.metrics.arrays import Clip
from af.metrics.base import FACES, ClipMetric, ClipTable
from af.metrics.coupling import curve_from_sums, curve_sums
from af.metrics.records import Curve, EvaluationClip
from af.types import FaceSpec

BEFORE, AFTER = seconds_to_frames(1) // 2, seconds_to_frames(2)
#: Reactions with the columns that show them, of drawn faces or of blendshapes (their mean).
SHOWN_BY: Final[Mapping[str, tuple[tuple[str, ...], ...]]] = {
    "smile": (("smile",), ("mouthSmileLeft", "mouthSmileRight")),
    "tilt": (("roll",),),
    "nod": (("pitch",),),
}


@dataclass(frozen=True)
class Events:
    """Onsets (frames), with sizes in the user's unit; negative for tilts to the left."""

    at: Int[np.ndarray, " E"]
    size: Float[np.ndarray, " E"]


def onsets(series: Float[np.ndarray, " T"], both_ways: bool = False) -> Events:
    """Rises of a parameter: peaks at least a second apart that stand out by its standard deviation, each from the frame
    in which it passes half its height; with `both_ways` also falls.
    """
    from scipy.signal import find_peaks, peak_widths

    at, sizes = [], []
    for sign in (1.0, -1.0) if both_ways else (1.0,):
        # a constant series has no peak, whatever its spread
        peaks, about = find_peaks(sign * series, prominence=max(series.std(), 1e-9), distance=seconds_to_frames(1))
        left = peak_widths(sign * series, peaks, 0.5, tuple(about.values()))[2]
        at.append(np.rint(left).astype(int))
        sizes.append(sign * about["prominences"])
    return Events(np.concatenate(at), np.concatenate(sizes))


def unprompted(events: Events, causes: Events) -> Events:
    """`events` without those that follow one of `causes` within a second: a user who smiles back is no cause."""
    after = events.at[:, None] - causes.at[None]
    free = ~((after >= 0) & (after <= seconds_to_frames(1))).any(1)
    return Events(events.at[free], events.size[free])


def responses(avatar: Float[np.ndarray, " T"], events: Events) -> Float[np.ndarray, "E L"]:
    """The avatar's parameter from half a second before to two seconds after each event, relative to its mean before it;
    with the event's sign. NaN for events too near the clip's ends.
    """
    found = np.full((len(events.at), BEFORE + 1 + AFTER), np.nan)
    for row, at, size in zip(found, events.at, events.size, strict=True):
        if BEFORE <= at < len(avatar) - AFTER:
            part = avatar[at - BEFORE : at + AFTER + 1]
            row[:] = np.sign(size) * (part - part[:BEFORE].mean())
    return found


def shown_by(face: FaceSpec, reaction: str) -> list[int] | None:
    """Columns of `face` that show a reaction; None if it has none."""
    names = next((names for names in SHOWN_BY[reaction] if set(names) <= set(face.names)), None)
    return None if names is None else [face.names.index(name) for name in names]


class Responses(ClipMetric):
    """`response/{smile,tilt,nod}`: the avatar's mean parameter in the two seconds after the user's event, minus that in
    the half second before, in the parameter's unit, minus the same for events of another conversation's user; null:
    that of a third one's.

    Events are the user's smiles and tilts, without those that answer the avatar's own (within a second), and the ends of
    phrases (known for synthetic dyads alone) for nods. An avatar that has just smiled smiles less a moment later, so that
    this choice alone makes it rise after anybody's events: strangers' events are chosen in the same way and subtracted.
    The curves are the same over time, for the larger and the smaller half of the events apart.
    """

    needs: ClassVar = {"response": f"{FACES} with smiles, tilts or nods, and clips with such events of the user"}

    def measure(self, clip: EvaluationClip) -> dict[str, Any]:
        """Series that show a reaction, and the user's events."""
        assert clip.face is not None
        kept: dict[str, Any] = {}
        for reaction in SHOWN_BY:
            columns = shown_by(clip.face, reaction)
            if columns is None or (reaction == "nod" and clip.phrase_ends is None):
                continue
            user, true, own = (clip.side(side)[:, columns].mean(1) for side in ("user", "true", "generated"))
            if reaction == "nod":
                ends = np.array(clip.phrase_ends, int)
                events = Events(ends, np.ones(len(ends)))
            else:
                events = onsets(user, both_ways=reaction == "tilt")
            kept |= {f"{reaction}/true": true, f"{reaction}/generated": own}
            kept |= {f"{reaction}/at": events.at, f"{reaction}/size": events.size}
        return kept

    def tabulate(self, table: ClipTable) -> None:
        """`response/{smile,tilt,nod}` with their curves, where there are events."""
        for reaction in SHOWN_BY:
            if all(f"{reaction}/at" in record.arrays for record in table.records):
                self._row(table, reaction)

    def _row(self, table: ClipTable, reaction: str) -> None:
        true, own = (table[f"{reaction}/{side}"] for side in ("true", "generated"))
        users = [Events(a, s) for a, s in zip(table[f"{reaction}/at"], table[f"{reaction}/size"], strict=True)]
        if table.partner is None:
            strangers = [_shifted(e, len(c), len(c) // 2) for e, c in zip(users, own, strict=True)]
        else:
            strangers = [users[j] for j in table.partner]
        others = [_shifted(e, len(c), len(c) // 3) for e, c in zip(strangers, own, strict=True)]

        def chosen(avatars: Sequence[Float[np.ndarray, " T"]], events: Sequence[Events]) -> list[Events]:
            if reaction == "nod":
                return list(events)
            causes = (onsets(avatar, both_ways=reaction == "tilt") for avatar in avatars)
            return [unprompted(e, c) for e, c in zip(events, causes, strict=True)]

        sides = {
            "generated": (own, chosen(own, users)),
            "true": (true, chosen(true, users)),
            "stranger": (own, chosen(own, strangers)),
            "stranger, true": (true, chosen(true, strangers)),
            "other": (own, chosen(own, others)),
        }
        found = {side: [responses(c, e) for c, e in zip(*pair, strict=True)] for side, pair in sides.items()}
        sums = {side: _sums(parts) for side, parts in found.items()}
        if not all(part[:, -1].any() for part in sums.values()):
            return
        pairs = {
            "generated": ("generated", "stranger"),
            "true": ("true", "stranger, true"),
            "null": ("other", "stranger"),
        }
        both = {side: np.concatenate([sums[after], sums[chance]], axis=-1) for side, (after, chance) in pairs.items()}
        tag = f"response/{reaction}"
        text = f"mean over the 2 s after the event − the 0.5 s before, minus a stranger's; {table.null_is}, shifted"
        table.add(tag, both["generated"], _after, true=both["true"], null=both["null"], protocol=text)
        series = {}
        middle = float(np.median(np.abs(np.concatenate([e.size for e in users]))))
        for size in ("large", "small") if reaction != "nod" else ("",):
            mean = {}
            for side, (_, of) in sides.items():
                parts = [
                    part[(np.abs(e.size) > middle) == (size == "large")] if size else part
                    for part, e in zip(found[side], of, strict=True)
                ]
                mean[side] = curve_from_sums(_sums(parts).sum(0))
            for side, (after, chance) in pairs.items():
                series[f"{side}, {size}" if size else side] = mean[after] - mean[chance]
        seconds = np.arange(-BEFORE, AFTER + 1) / FPS
        what = {"smile": "smiles", "tilt": "tilts", "nod": "ends of phrases"}[reaction]
        title = f"the avatar's {reaction} after the user's {what}"
        table.result.curves[tag] = Curve(seconds, series, title, "seconds after the event", f"change of {reaction}")


def _shifted(events: Events, frames: int, by: int) -> Events:
    return Events((events.at + by) % frames, events.size)


def _sums(parts: Sequence[Float[np.ndarray, "E L"]]) -> Clip:
    """Of each clip the sum of its events' curves and their number."""
    return np.stack([curve_sums(part).sum(0) for part in parts])


def _after(sums: Float[np.ndarray, "... S"]) -> Float[np.ndarray, ...]:
    own, stranger = (curve_from_sums(part)[..., BEFORE + 1 :].mean(-1) for part in np.split(sums, 2, axis=-1))
    return own - stranger
