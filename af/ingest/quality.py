"""Faults of recordings: frozen images, lips out of sync with the voice, files of different lengths, drift. What is
measured of clips is in `measures`.

Estimates are for reports only and are never used to shift anything. They are None where uncertain.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Bool, Float32, Float64
from scipy.fft import irfft, next_fast_len, rfft
from scipy.ndimage import gaussian_filter1d

from af.clock import FPS, SAMPLE_RATE, frames_to_samples, frames_to_seconds, samples_to_seconds
from af.data.audio import fit_audio
from af.data.container import MediaError, Notes
from af.data.schema import spans
from af.ingest.detection import STEPS_A_LEVEL, Look
from af.ingest.options import IngestOptions
from af.ingest.sources import Source

_HZ: Final = 100  # time steps per second of the bands
_BANDS: Final = 16
_SHORTEST_S: Final = 6.0
_SHORTEST_LIPS_S: Final = 8.0
_STILL: Final = 1.5  # grey levels: change by coding and noise in a still image
_FROZEN_FRAMES: Final = 25  # a second without any change
_NOTED_S: Final = 0.08  # two frames: smaller offsets are within the estimates' error
_LENGTHS_S: Final = 0.2
_DRIFT: Final = 2e-4  # 12 ms per minute

Path = Float64[np.ndarray, "N 3"]  # centre x, y, side of a face at each look; NaN if not found


@dataclass(frozen=True)
class Lag:
    """`seconds` by which the second recording is late; `sureness` is the height of the peak in standard deviations of
    the correlation at other lags.
    """

    seconds: float
    sureness: float


def voice_changes(audio: Float32[np.ndarray, " S"], frames: int) -> Float64[np.ndarray, " T"]:
    """Change of log loudness around each frame; lips move when syllables begin and end."""
    energy = (fit_audio(audio, frames).reshape(frames, -1).astype(np.float64) ** 2).mean(1)
    return np.abs(np.gradient(np.log10(energy + 1e-6))) if frames > 1 else np.zeros(frames)


def _contours(lips: np.ndarray, voice: np.ndarray, shortest_s: float) -> tuple[np.ndarray, np.ndarray] | None:
    """Both signals at unit variance for a comparison; None if they are too short or one is constant."""
    if len(lips) < FPS * shortest_s or not lips.std() or not voice.std():
        return None

    def contour(values: np.ndarray) -> np.ndarray:  # keep syllables, remove noise and slow changes
        smooth = gaussian_filter1d(values, 1.5) - gaussian_filter1d(values, 12.0)
        return (smooth - smooth.mean()) / max(float(smooth.std()), 1e-9)

    return contour(np.log(lips + 0.1)), contour(voice)


def _correlation(one: np.ndarray, other: np.ndarray, reach: int) -> Float64[np.ndarray, " L"]:
    """Correlation over common frames, with `other` late by -reach..reach steps."""
    n = len(one)
    pairs = (
        (one[max(0, -lag) : n - max(0, lag)], other[max(0, lag) : n - max(0, -lag)]) for lag in range(-reach, reach + 1)
    )
    return np.array([float((x * y).mean()) for x, y in pairs])


def lips_follow(lips: Float64[np.ndarray, " T"], voice: Float64[np.ndarray, " T"]) -> float:
    """Best correlation of a face's movement with `voice_changes` within a quarter of a second; 0 for a still face."""
    contours = _contours(lips, voice, 2)
    return 0.0 if contours is None else float(_correlation(*contours, FPS // 4).max())


def lip_lag(lips: Float64[np.ndarray, " T"], voice: Float64[np.ndarray, " T"]) -> Lag | None:
    """The delay of the voice relative to the lips, up to a second.

    None unless the whole recording has a clear peak and both halves have one at the same lag.
    """
    if (contours := _contours(lips, voice, _SHORTEST_LIPS_S)) is None:
        return None
    reach = FPS
    whole, place, height = _peak(_correlation(*contours, reach), apart=FPS // 4)
    middle = len(lips) // 2
    halves = [
        _correlation(contours[0][half], contours[1][half], reach) for half in (slice(middle), slice(middle, None))
    ]
    agree = all(abs(int(h.argmax()) - reach - place) <= 2 for h in halves)
    return Lag(frames_to_seconds(place), whole) if agree and whole >= 4.5 and height >= 0.2 else None


def _peak(correlation: np.ndarray, apart: int) -> tuple[float, int, float]:
    """(height in standard deviations of the correlation beyond `apart`, lag, height) of the highest peak."""
    reach = len(correlation) // 2
    at = int(correlation.argmax())
    rest = correlation[np.abs(np.arange(len(correlation)) - at) > apart]
    return float((correlation[at] - rest.mean()) / max(float(rest.std()), 1e-9)), at - reach, float(correlation[at])


def shared_lag(
    one: Float32[np.ndarray, " S"], other: Float32[np.ndarray, " R"], reach_s: float = 10.0
) -> tuple[Lag | None, float | None]:
    """(delay of `other`, drift) from audio in both recordings, such as a voice that reached both microphones.

    Drift is the change of the lag per second between the first and last thirds, if both lags are certain. Accurate to
    10 ms; comparing the loudness of bands is robust to codecs, microphones and slow drift.
    """
    bands = [_band_changes(audio) for audio in (one, other)]
    steps = min(map(len, bands))
    if steps < _SHORTEST_S * _HZ:
        return None, None
    bands = [b[:steps] for b in bands]
    lag = _bands_lag(bands[0], bands[1], int(min(reach_s * _HZ, steps // 3)))
    if lag is None:
        return None, None
    third = steps // 3
    ends = [_bands_lag(bands[0][p], bands[1][p], min(third // 3, 2 * _HZ)) for p in (slice(third), slice(-third, None))]
    if ends[0] is None or ends[1] is None or abs(lag.seconds) > min(third // 3, 2 * _HZ) / _HZ:
        return lag, None
    return lag, (ends[1].seconds - ends[0].seconds) / ((steps - third) / _HZ)


def _band_changes(audio: Float32[np.ndarray, " S"]) -> Float32[np.ndarray, "T bands"]:
    """Changes of log loudness in bands from 100 to 4,000 Hz, at unit variance, a hundred per second."""
    hop, window = SAMPLE_RATE // _HZ, 512
    count = max(0, (len(audio) - window) // hop + 1)
    edges = np.geomspace(100, 4000, _BANDS + 1) * window / SAMPLE_RATE
    out = np.zeros((count, _BANDS), np.float32)
    shape, frames = np.hanning(window).astype(np.float32), np.arange(window)
    for start in range(0, count, 6000):  # a minute at a time
        rows = np.arange(start, min(start + 6000, count))
        power = np.abs(rfft(audio[rows[:, None] * hop + frames] * shape)) ** 2
        for band in range(_BANDS):
            low = round(edges[band])
            out[rows, band] = power[:, low : max(low + 1, round(edges[band + 1]))].mean(1)
    change = np.diff(np.log(out + 1e-7), axis=0)
    spread = np.maximum(change.std(0), 1e-6)
    return np.clip(change / spread, -3, 3)


def _bands_lag(one: np.ndarray, other: np.ndarray, reach: int) -> Lag | None:
    size = next_fast_len(len(one) + reach)
    product = (np.conj(rfft(one, size, axis=0)) * rfft(other, size, axis=0)).sum(1)
    whole = irfft(product, size)
    sureness, place, _ = _peak(np.concatenate([whole[-reach:], whole[: reach + 1]]), apart=_HZ // 5)
    return Lag(place / _HZ, sureness) if sureness >= 8 else None


def _around(look: Look, path: Path, box: tuple[float, float, float, float], whole: bool) -> Float64[np.ndarray, " T"]:
    """Mean change per frame, in grey levels, within `box` (left, top, right, bottom; in face sides from its centre), or
    with `whole` the change of the cell that changes most. 0 at cuts and without a face.
    """
    out = np.zeros(look.frames)
    for n, ((x, y, side), start) in enumerate(zip(path, look.looks, strict=True)):
        stop = look.looks[n + 1] if n + 1 < len(look.looks) else look.frames
        if not np.isnan(x):
            cells = look.change_in(x + box[0] * side, y + box[1] * side, x + box[2] * side, y + box[3] * side)[
                start:stop
            ]
            out[start:stop] = (cells.max((1, 2)) if whole else cells.mean((1, 2))) / STEPS_A_LEVEL
    out[[c for c in look.cuts if c < look.frames]] = 0
    return out


def mouth_changes(look: Look, path: Path) -> Float64[np.ndarray, " T"]:
    """Change in the lower half of a face, in grey levels per frame."""
    return _around(look, path, (-0.35, 0.05, 0.35, 0.6), whole=False)


def _still(look: Look, path: Path) -> Bool[np.ndarray, " T"]:
    """Frames in which no part of a face changes by more than coding and noise."""
    return _around(look, path, (-0.5, -0.5, 0.5, 0.6), whole=True) < _STILL


def stands_still(look: Look, path: Path) -> bool:
    """Whether the video shows one still image (nearly) all the time."""
    return float(_still(look, path).mean()) > 0.95


def note_movement(look: Look, path: Path, name: str, notes: Notes) -> None:
    """Note stretches with a still image, such as a frozen call."""
    runs = [(b - a, a) for a, b in spans(_still(look, path)) if b - a >= _FROZEN_FRAMES]
    if runs:
        total, (longest, start) = sum(length for length, _ in runs), max(runs)
        notes.add(
            "movement",
            f"{name}: the image is frozen for {frames_to_seconds(total):.1f} of {frames_to_seconds(look.frames):.1f} s, "
            f"longest for {frames_to_seconds(longest):.1f} s from {frames_to_seconds(start):.1f} s on",
        )


def check_lag(lag: Lag | None, path: str, what: str, options: IngestOptions, notes: Notes, mend: str) -> None:
    """Note a certain lag, or raise MediaError if it exceeds the limit; `what` describes it, `mend` says what to do."""
    if lag is None or abs(lag.seconds) < _NOTED_S:
        return
    seconds, where = abs(lag.seconds), "behind" if lag.seconds > 0 else "ahead of"
    text = f"{what.format(where=f'about {seconds:.2f} s {where}')} (a peak of {lag.sureness:.0f} sigma)"
    if seconds > options.offset_limit_s:
        raise MediaError(path, "offset", f"{text}, more than --offset-limit {options.offset_limit_s:g}; {mend}")
    notes.add("offset", f"{path}: {text}; kept unchanged; {mend}")


def check_lips(
    look: Look, path: Path, voice: Float64[np.ndarray, " T"], name: str, options: IngestOptions, notes: Notes
) -> Lag | None:
    """Note or refuse a voice (`voice_changes`) out of sync with the lips of the face at `path`; returns its lag."""
    apart = lip_lag(mouth_changes(look, path), voice)
    shift = 0 if apart is None else -apart.seconds
    mend = f"ffmpeg -i OLD -itsoffset {shift:.2f} -i OLD -map 0:v -map 1:a -c copy NEW moves the audio"
    check_lag(apart, name, "its audio is {where} its lips", options, notes, mend)
    return apart


def check_shared(source: Source, audio: Mapping[str, np.ndarray], options: IngestOptions, notes: Notes) -> Lag | None:
    """Note or refuse an offset between two recordings, estimated from audio present in both; returns the second's lag."""
    lag, drift = shared_lag(audio["a"], audio["b"])
    if lag is None:
        return None
    notes.add("bleed", f"{source.a} and {source.b}: a voice is heard in both; separated voices train better")
    given = options.offset_s if source.offset is None else source.offset
    fitting = given - lag.seconds  # b was started earlier if the shared audio is later in b
    what = f"what is heard in both files is {{where}} {source.a}"
    check_lag(lag, str(source.b), what, options, notes, f"--offset {fitting:.2f} would fit")
    if drift is not None and abs(drift) > _DRIFT:
        text = f"{source.b}: drifts by {drift * 100:+.2f} % against {source.a} ({drift * 60:+.2f} s a minute)"
        notes.add("drift", f"{text}; kept unchanged: its reactions will be late or early")
    return lag


def common_length(
    source: Source,
    images: Mapping[str, int],
    audio: Mapping[str, Float32[np.ndarray, " S"] | None],
    tolerance_s: float,
    notes: Notes,
    late_s: float,
) -> int:
    """Number of frames shared by all files (`images`: frames by file; 16 kHz `audio` by role) from `late_s` into the
    earlier recording. A partial frame of audio counts. Raises `MediaError` for lengths more than `tolerance_s`
    apart.
    """
    lengths_s = {source.file(role): frames_to_seconds(images[role]) for role in source.roles}
    shortest = min(images.values())
    for role, heard in audio.items():
        if heard is not None:
            path = getattr(source, f"audio_{role}") or f"the audio of {source.file(role)}"
            lengths_s[path] = samples_to_seconds(len(heard))
            shortest = min(shortest, -(-len(heard) // frames_to_samples(1)))
    short, long = (pick(lengths_s, key=lambda path: lengths_s[path]) for pick in (min, max))
    apart_s = lengths_s[long] - lengths_s[short]
    since = f", counted from where both record ({late_s:g} s into the one that began first)" if late_s else ""
    text = f"lasts {lengths_s[short]:.2f} s, {{but}}{long} lasts {lengths_s[long]:.2f} s{since}"
    if apart_s > tolerance_s:
        raise MediaError(short, "length_mismatch", f"{text.format(but='but ')}; both must cover the same instants")
    if apart_s > _LENGTHS_S:
        text = f"{text.format(but='')}: all files are cut to the shortest"
        notes.add("lengths", f"{short}: {text}; check that both began at the same instant (--offset)")
    return shortest
