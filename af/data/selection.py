"""Measures of clips by name, and expressions that select clips by them: "face_px >= 160 and sharpness > 40"."""

from __future__ import annotations

import ast
import math
import operator
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from af.clock import frames_to_seconds
from af.data.index import Index, SampleEntry
from af.errors import UserError, did_you_mean

#: What `af ingest` measures of each person in a clip, with units. A value that cannot be measured is None.
MEASURES: Final[Mapping[str, str]] = {
    "face_px": "side of the face as detected, in pixels of the source: the median",
    "sharpness": "variance of the Laplacian of the face at 128 pixels, in squared grey levels: the median",
    "brightness": "median grey level of the face, 0 to 255",
    "contrast": "grey levels between the 5th and 95th percentile of the face",
    "colour": "median of largest minus smallest of red, green, blue in the middle of the face, 0 to 255",
    "valid": "share of frames with a face found near enough in time",
    "yaw_deg": "head turned left or right: 95th percentile of the angle from the camera (needs landmarks)",
    "pitch_deg": "head up or down: 5th to 95th percentile (needs landmarks)",
    "roll_deg": "head tilted: 5th to 95th percentile (needs landmarks)",
    "loudness": "loudness of the person's audio, in LUFS (ITU-R BS.1770)",
    "voice": "share of frames with voice",
    "crosstalk": "the other's voice in this person's audio, in dB of its level in their own",
    "lip_lag": "seconds by which the audio is behind the lips, of the whole recording, where certain",
    "side_lag": "seconds by which what both recordings hear is late in the second, where certain",
    "source_fps": "images per second of the source",
}
#: Facts of a clip that need no measurement.
FACTS: Final = {"seconds": "length of the clip"}

Measured = Mapping[str, float | None]

_COMPARE: Final[Mapping[type, Callable[[float, float], bool]]] = {
    ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge,
    ast.Eq: operator.eq, ast.NotEq: operator.ne,
}  # fmt: skip


@dataclass(frozen=True)
class Keep:
    """A condition on a person's measures: comparisons of names and numbers, joined by and, or, not.

    A comparison with a missing value is neither true nor false, and a condition that depends on one is not met. `where`
    names the option in errors. Raises `UserError` for anything else, suggesting the nearest name.
    """

    text: str
    where: str = "keep"
    _tree: ast.expr = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        try:
            tree = ast.parse(self.text.strip(), mode="eval").body
            self._check(tree)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise self._error("not a condition") from None
        object.__setattr__(self, "_tree", tree)

    def _error(self, fault: str) -> UserError:
        return UserError(
            f"{self.where}={self.text!r}: {fault}; write a condition such as 'face_px >= 160 and sharpness > 40'"
        )

    def _check(self, node: ast.expr, number: bool = False) -> None:
        match node:
            case ast.Name(id=name) if number:
                if name not in (known := [*MEASURES, *FACTS]):
                    raise self._error(f"unknown {name}{did_you_mean(name, known)} (known: {', '.join(known)})")
            case ast.Constant(value=value) if number and type(value) in (int, float):
                pass
            case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=operand) if number:
                self._check(operand, number=True)
            case ast.BoolOp(values=values) if not number:
                for part in values:
                    self._check(part)
            case ast.UnaryOp(op=ast.Not(), operand=operand) if not number:
                self._check(operand)
            case ast.Compare(left=left, ops=ops, comparators=others) if not number and all(
                type(o) in _COMPARE for o in ops
            ):
                for part in (left, *others):
                    self._check(part, number=True)
            case _:
                what = ast.unparse(node)
                raise self._error(f"{what!r} is not {'a name or a number' if number else 'a comparison'}")

    def __call__(self, measured: Measured) -> bool | None:
        """Whether the condition is met; None if that depends on a missing value."""
        return _truth(self._tree, measured)

    @property
    def names(self) -> tuple[str, ...]:
        """The names in the condition."""
        return tuple(dict.fromkeys(node.id for node in ast.walk(self._tree) if isinstance(node, ast.Name)))

    def objection(self, quality: Mapping[str, Measured], seconds: float) -> str | None:
        """Why a clip is not kept: the first person who does not meet the condition, with the values; None if all do.

        `quality` has the measures by role of the people in the clip.
        """
        for role, measured in quality.items():
            values = {**measured, "seconds": seconds}
            if (met := self(values)) is not True:
                found = {name: values.get(name) for name in self.names}
                unknown = [name for name, value in found.items() if _known(value) is None]
                fault = f"{', '.join(unknown)} unknown" if met is None else f"not {self.text}"
                shown = ", ".join(f"{name} {value:.4g}" for name, value in found.items() if value is not None)
                return f"{role}: {fault}{f' ({shown})' if shown else ''}"
        return None


def _known(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else float(value)


def _truth(node: ast.expr, measured: Measured) -> bool | None:
    """Kleene's logic: None is unknown."""
    if isinstance(node, ast.BoolOp):
        decisive = isinstance(node.op, ast.Or)
        found = [_truth(value, measured) for value in node.values]
        return decisive if decisive in found else None if None in found else not decisive
    if isinstance(node, ast.UnaryOp):
        inner = _truth(node.operand, measured)
        return None if inner is None else not inner
    assert isinstance(node, ast.Compare)
    values = [_number(value, measured) for value in (node.left, *node.comparators)]
    links = [
        None if a is None or b is None else _COMPARE[type(op)](a, b)
        for op, a, b in zip(node.ops, values[:-1], values[1:], strict=True)
    ]
    return False if False in links else None if None in links else True


def _number(node: ast.expr, measured: Measured) -> float | None:
    if isinstance(node, ast.UnaryOp):
        value = _number(node.operand, measured)
        return -value if value is not None and isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.Name):
        return _known(measured.get(node.id))
    assert isinstance(node, ast.Constant)
    assert isinstance(node.value, (int, float))
    return float(node.value)


def objections(index: Index, keep: Keep) -> Iterator[tuple[SampleEntry, str | None]]:
    """Every sample of an index, with the reason why it is not kept (None: it is)."""
    for sample in index.samples:
        quality = {role: sample.quality.get(role, {}) for role in sample.roles}
        yield sample, keep.objection(quality, frames_to_seconds(sample.frames))


def selected(index: Index, keep: Keep) -> tuple[Index, str]:
    """The index with the samples that are kept, and a line that counts the others. Raises `UserError` when none is."""
    found = list(objections(index, keep))
    chosen = tuple(sample for sample, objection in found if objection is None)
    reasons = Counter("unknown" if "unknown" in o else "not met" for _, o in found if o is not None)
    counts = ", ".join(f"{n} {reason}" for reason, n in sorted(reasons.items()))
    line = f"{index.folder}: {len(chosen)} of {len(found)} clips are kept by {keep.where}={keep.text!r}"
    line += f" ({counts})" if counts else ""
    if not chosen and found:
        why = (
            "shards made without measures need `af ingest` again"
            if not any(s.quality for s, _ in found)
            else found[0][1]
        )
        raise UserError(f"{line}: {why}")
    return replace(index, samples=chosen), line
