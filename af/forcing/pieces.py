"""Checks and conversion of input pushed into a live session: samples, latents and times."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Final

import numpy as np
import soxr
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from af.clock import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME, seconds_to_samples
from af.errors import UserError, did_you_mean
from af.types import Condition
from af.values import require_number

PUSHED: Final = ("avatar_audio", "user_audio", "user_motion", "user_frames", "user_times")
#: Larger floats are not audio in [-1, 1] (most likely 16-bit numbers in floats).
LOUDEST: Final = 8.0
#: No camera's next frame is further ahead: such times have another origin.
LONGEST_LEAP_S: Final = 60.0
#: How far a resampled frame of audio depends on samples after its end: the reach of the filter.
RESAMPLING_S: Final = 0.01


@dataclass(frozen=True)
class Rates:
    """Rates of a session's input: audio in samples per second, user frames or motion latents per second.

    Rates other than 16,000 and 25 are converted on arrival: audio by a linear-phase filter, which adds a delay of 10
    ms; frames by taking the nearest in time. Raises UserError for impossible rates.
    """

    avatar_audio: int = SAMPLE_RATE
    user_audio: int = SAMPLE_RATE
    user_frames: float | Fraction = FPS

    def __post_init__(self) -> None:
        for name in ("avatar_audio", "user_audio"):
            rate = getattr(self, name)
            require_number(f"rates.{name}", rate, least=4000, most=384_000)
            if rate % FPS:
                raise UserError(
                    f"rates.{name}: {rate!r} samples a second; give a whole multiple of {FPS} from 4,000 to 384,000, "
                    f"such as {SAMPLE_RATE}, 44100 or 48000"
                )
            object.__setattr__(self, name, int(rate))  # of any kind of number
        require_number("rates.user_frames", self.user_frames, least=1, most=1000)

    @property
    def frame_step(self) -> Fraction:
        """Time between two user frames, in frames of the clock; rates such as 29.97 are taken literally."""
        rate = self.user_frames
        return FPS / Fraction(rate if isinstance(rate, Fraction) else float(rate)).limit_denominator(1001)


@dataclass(frozen=True)
class Signals:
    """The signals of a session; an absent signal is dropped (zeros), as in guidance and training."""

    avatar_audio: bool = True
    user_audio: bool = True
    user_motion: bool = True

    def of(self, condition: Condition) -> Condition:
        """The condition without the other signals."""
        used = vars(self).items()
        return replace(condition, **{n: torch.zeros_like(getattr(condition, n)) for n, there in used if not there})


@dataclass
class Faults:
    """Corrected faults of the input, counted in samples and in frames at 25 fps.

    NaN samples (silenced); user frames without a face (last motion held); frames filled up in a pause or in a gap
    between times; samples and user frames dropped because they came too late, too early or were too many; and the
    furthest that a signal has been behind the audio (if this keeps growing, the signal's declared rate is wrong).
    """

    bad_samples: int = 0
    frames_without_face: int = 0
    filled_frames: int = 0
    dropped_samples: int = 0
    dropped_frames: int = 0
    furthest_behind_frames: int = 0


def unfit(name: str, expected: str, found: Any) -> UserError:
    """The error for an unexpected value, naming what was expected and found."""
    numbers = f" {found.dtype} {tuple(found.shape)}" if hasattr(found, "dtype") else ""
    return UserError(f"{name}: expected {expected}, got {type(found).__name__}{numbers}")


def check_names(given: Iterable[str], known: Sequence[str], what: str) -> None:
    """Raise UserError for the first unknown name, suggesting the nearest known one."""
    for name in given:
        if name not in known:
            near = did_you_mean(name, known) or f"; it takes {', '.join(known)}"
            raise UserError(f"{name}: {what} takes no such argument{near}")


def check_settings(
    signals: Any, rates: Any, encode_user: Any, generator: Any, patience_frames: Any, speech: Any
) -> None:
    """Raise UserError for settings that no session can have."""
    for name, value, kind in (("signals", signals, Signals), ("rates", rates, Rates)):
        if not isinstance(value, kind):
            raise unfit(name, f"af.{kind.__name__}(...)", value)
    heard = signals.avatar_audio or signals.user_audio
    if not heard and not signals.user_motion:
        raise UserError("signals: a session needs the avatar's audio, the user's audio or the user's motion")
    if heard and speech is None:
        raise UserError("speech: audio signals need speech features")
    if encode_user is not None and not callable(encode_user):
        raise unfit("encode_user", "a function of one frame", encode_user)
    if generator is not None and not hasattr(generator, "set_state"):
        raise unfit("generator", "torch.Generator().manual_seed(NUMBER)", generator)
    require_number("patience_frames", patience_frames, least=0, whole=True, optional=True)


def pushed(given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a push that are not None. Raises UserError for unknown or conflicting ones."""
    if "sample_rate" in given:
        rate = given["sample_rate"]
        raise UserError(
            f"sample_rate: the rate is the session's, not a push's: make it with rates=Rates(user_audio={rate})"
        )
    check_names(given, PUSHED, "push")
    found = {name: value for name, value in given.items() if value is not None}
    if "user_frames" in found and "user_motion" in found:
        raise UserError("user_motion: give it, or user_frames, not both")
    if "user_times" in found and not {"user_frames", "user_motion"} & set(found):
        raise UserError("user_times: there are no user_frames or user_motion that they belong to")
    return found


def mono_samples(name: str, audio: Any) -> Float32[np.ndarray, " S"]:
    """The caller's array, tensor or list as float32 samples in about [-1, 1]; 16- and 32-bit integers are scaled.

    Keeps non-finite numbers. Raises UserError for other shapes and types, and for floats beyond audio in [-1, 1].
    """
    array = _array(name, audio)
    kind, shape = array.dtype, tuple(array.shape)
    if array.ndim != 1 or not (kind.kind == "f" or (kind.kind == "i" and kind.itemsize in (2, 4))):
        raise unfit(name, "mono samples (S,), floating-point in [-1, 1] or integers of 16 or 32 bits", array)
    if kind.kind == "i":
        return (array / float(2 ** (8 * kind.itemsize - 1))).astype(np.float32)
    level = np.abs(array, where=np.isfinite(array), out=np.zeros(shape, kind)).max(initial=0)
    if level > LOUDEST:
        raise UserError(
            f"{name}: samples up to {level:.5g}, where audio lies in [-1, 1]; divide 16-bit numbers by 32,768, or push "
            "them as int16"
        )
    return np.ascontiguousarray(array, np.float32)


def motion_rows(name: str, motion: Any, width: int) -> Float[Tensor, "t L"]:
    """The caller's array, tensor or list of motion latents as a floating-point tensor, on the same device."""
    found = motion.detach() if isinstance(motion, Tensor) else _array(name, motion)
    floating = found.is_floating_point() if isinstance(found, Tensor) else found.dtype.kind == "f"
    if not floating or found.ndim != 2 or found.shape[1] != width:
        raise unfit(name, f"floating-point latents (frames, {width})", found)
    # a copy, whatever view or byte order the caller had
    return found if isinstance(found, Tensor) else torch.from_numpy(found.astype(np.float64, "C"))


def frame_list(frames: Any) -> list[Any]:
    """The pushed frames as a list. Raises UserError for anything that holds no frames."""
    if isinstance(frames, (str, bytes)) or not isinstance(frames, Iterable) or getattr(frames, "ndim", 1) == 0:
        raise unfit("user_frames", "a list of frames (None for one without a face)", frames)
    if isinstance(frames, (np.ndarray, Tensor)) and frames.ndim == 3:
        raise UserError(f"user_frames: expected a list of frames, got a single one {tuple(frames.shape)}: give [frame]")
    return list(frames)


def frame_times(times: Any, count: int, known_s: float) -> list[Fraction]:
    """Times in seconds as exact frames of the clock. Raises UserError for leaps of a minute (also from `known_s`)."""
    array = _array("user_times", times)
    if array.shape != (count,) or (count and array.dtype.kind not in "fiu"):
        raise unfit("user_times", f"a time in seconds for each of {count} frames", array)
    if not np.isfinite(array).all():
        raise UserError("user_times: not a finite number of seconds")
    leaps = np.diff(np.concatenate(([known_s], array.astype(np.float64))))
    if count and leaps.max() > LONGEST_LEAP_S:
        raise UserError(
            f"user_times: {array[leaps.argmax()]:.10g} s is far ahead of the audio and of the time before; give seconds "
            "since the session's start (not since 1970, and no milliseconds)"
        )
    return [Fraction(float(time)) * FPS for time in array]


def _array(name: str, values: Any) -> np.ndarray:
    if isinstance(values, (bytes, bytearray)):
        raise UserError(f"{name}: bytes do not say what they hold; give numpy.frombuffer({name}, numpy.int16)")
    try:
        if isinstance(values, Tensor):
            values = values.detach()
            values = (values.float() if values.is_floating_point() else values).cpu()
        array = np.asarray(values)
    except (TypeError, ValueError) as error:
        raise UserError(f"{name}: cannot be read as numbers ({error})") from None
    return array


class Resampler:
    """Resamples audio to 16 kHz, one frame of the clock at a time; equal output however the input is cut.

    Each frame is resampled separately, 10 ms after its end, with enough audio around it to equal the resampled whole up
    to float32 rounding. (soxr's own stream takes 35 to 115 ms and cannot be reset.)
    """

    def __init__(self, rate: int) -> None:
        self.rate = rate
        self._per_frame, self._reach = rate // FPS, math.ceil(RESAMPLING_S * rate)
        self._raw = np.zeros(self._per_frame, np.float32)  # the frame before the first is silence

    def push(self, samples: Float32[np.ndarray, " S"], *, last: bool = False) -> Float32[np.ndarray, " S"]:
        """Add audio and return the part that is ready; the `last` push returns everything left."""
        if self.rate == SAMPLE_RATE:
            return samples
        whole, frame = np.concatenate((self._raw, samples)), self._per_frame
        given = None
        if last:
            given = seconds_to_samples((len(whole) - frame) / self.rate)
            whole = np.pad(whole, (0, -len(whole) % frame + self._reach))
        frames = max(0, (len(whole) - frame - self._reach) // frame)
        made = [self._frame(whole[k * frame : (k + 2) * frame + self._reach]) for k in range(frames)]
        self._raw = whole[frames * frame :].copy()
        return np.concatenate([np.zeros(0, np.float32), *made])[:given]

    def _frame(self, around: np.ndarray) -> np.ndarray:
        return soxr.resample(around, self.rate, SAMPLE_RATE)[SAMPLES_PER_FRAME : 2 * SAMPLES_PER_FRAME]


def checked_reference(reference: Float[Tensor, "1 L"], width: int) -> Float[Tensor, "1 L"]:
    """Return `reference`. Raises UserError unless it is one finite latent."""
    if not isinstance(reference, Tensor) or reference.shape != (1, width) or not reference.is_floating_point():
        raise unfit("reference", f"the motion of one portrait (1, {width}) as a floating-point tensor", reference)
    if not torch.isfinite(reference).all():
        raise UserError("reference: holds numbers that are not finite")
    return reference
