"""Checks of the members of a sample, shared by writer, index and validator."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import Any, Final

import numpy as np

from af.clock import frames_to_samples
from af.data import codecs
from af.data.schema import FIELDS, PERSON_PARTS, ROLES, ClipMeta
from af.data.stores import Location
from af.errors import UserError
from af.specs import FaceSpec

#: No motion, feature or face parameter exceeds the range of half precision.
LARGEST: Final = float(np.finfo(np.float16).max)


class ShardError(UserError):
    """A fault in a shard: file, member, a short `reason` for counting, and details."""

    def __init__(self, file: Location | str, member: str, reason: str, detail: str) -> None:
        super().__init__(f"{file}{': ' + member if member else ''}: {detail}")
        self.file, self.member, self.reason, self.detail = str(file), member, reason, detail

    def __reduce__(self) -> tuple[Any, ...]:  # errors travel from worker processes
        return (type(self), (self.file, self.member, self.reason, self.detail))


def roles_of(names: Collection[str]) -> tuple[str, ...]:
    """The roles that these members belong to: both, or only a (a one-sided sample)."""
    return ROLES[:1] if names and not any(name.startswith("b.") for name in names) else ROLES


def check_fields(file: Location | str, key: str, names: Collection[str], *, one_sided: bool = False) -> None:
    """Raise `ShardError` for unknown fields, a missing json, parts of only one of two people, and parts of b in a
    `one_sided` sample.
    """
    if unknown := sorted(set(names) - set(FIELDS)):
        raise ShardError(file, f"{key}.{unknown[0]}", "unknown_field", f"unknown field; known: {', '.join(FIELDS)}")
    if "json" not in names:
        raise ShardError(file, f"{key}.json", "half_sample", "the sample has no json")
    if one_sided and roles_of(names) == ROLES:
        surplus = next(name for name in names if name.startswith("b."))
        raise ShardError(file, f"{key}.{surplus}", "half_sample", "present, though the json calls the sample one-sided")
    for part in () if one_sided else PERSON_PARTS:
        present = [role for role in ROLES if f"{role}.{part}" in names]
        if len(present) == 1:
            missing = f"{'b' if present == ['a'] else 'a'}.{part}"
            raise ShardError(file, f"{key}.{missing}", "half_sample", f"missing, though {present[0]}.{part} is present")


def check_array(file: Location | str, member: str, field: str, array: np.ndarray, meta: ClipMeta) -> None:
    """Raise `ShardError` unless `array` is (frames, width of its spec), float16 or float32, with valid values."""
    if array.dtype not in (np.float16, np.float32):
        raise ShardError(file, member, "bad_dtype", f"dtype {array.dtype}, expected float16 or float32")
    if array.ndim != 2 or array.shape[0] != meta.frames:
        raise ShardError(file, member, "wrong_length", f"shape {array.shape}, expected ({meta.frames}, ...)")
    name = f"{field.split('.')[1]}_spec"
    spec = getattr(meta, name)
    if spec is None:
        raise ShardError(file, member, "no_spec", f"the json has no {name} that describes it")
    width = len(spec.names) if isinstance(spec, FaceSpec) else spec.dim
    if array.shape[1] != width:
        raise ShardError(file, member, "wrong_width", f"{array.shape[1]} numbers per frame, {name} says {width}")
    check_values(array, partial(ShardError, file, member))


def check_values(array: np.ndarray, error: Callable[[str, str], ShardError]) -> None:
    """Raise `error(reason, detail)` for values (float16 or float32) that are NaN, infinite or beyond ±`LARGEST`."""
    half = array.dtype == np.float16
    bits: np.ndarray = array.view(np.uint16 if half else np.uint32)
    magnitude = bits & (
        0x7FFF if half else 0x7FFF_FFFF
    )  # without the sign, bit patterns are ordered like numbers, NaN highest
    if array.size and magnitude.max() > np.array(LARGEST, array.dtype).view(bits.dtype):
        if np.isfinite(array).all():
            raise error("out_of_range", f"holds {np.abs(array).max():.3g}; numbers lie within ±{LARGEST:g}")
        raise error("not_finite", "holds NaN or infinity")


def check_member(file: Location | str, member: str, field: str, data: bytes, meta: ClipMeta, *, deep: bool) -> None:
    """Raise `ShardError` unless the bytes of a member agree with `meta`; `deep` decodes every video frame."""
    try:
        if field.endswith(".npy"):
            check_array(file, member, field, codecs.decode_npy(data), meta)
        elif field.endswith(".flac"):
            samples = len(codecs.decode_audio(data))
            if samples != frames_to_samples(meta.frames):
                raise ShardError(
                    file, member, "wrong_length", f"{samples} samples, expected {frames_to_samples(meta.frames)}"
                )
        elif field.endswith(".mp4"):
            frames, height, width = codecs.video_shape(data)
            if frames != meta.frames:
                raise ShardError(file, member, "wrong_length", f"{frames} frames, expected {meta.frames}")
            if (height, width) != (meta.image_size, meta.image_size):
                raise ShardError(file, member, "wrong_size", f"{width}x{height} pixels, expected {meta.image_size}")
            if deep:
                codecs.decode_video(data)
    except codecs.CodecError as error:
        reason = "pickle" if "pickle" in str(error) else "bad_" + field.rsplit(".", 1)[-1]
        raise ShardError(file, member, reason, str(error)) from None
