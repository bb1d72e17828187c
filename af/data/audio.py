"""Reading any audio as 16 kHz mono: choice of track, mix of channels, level, and faults.

A track is decoded twice: once to measure its channels, once to mix them. Only the mix is kept in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import av
import numpy as np
import soxr
from av.stream import Disposition
from jaxtyping import Float32, Float64

from af.clock import SAMPLE_RATE, frames_to_samples, samples_to_seconds, seconds_to_samples
from af.data.container import (
    MediaError,
    Notes,
    announced_bytes,
    damaged_packet,
    opened,
    ranked,
    refuse_still,
    says_s,
    start_s,
    uncounted_bytes,
)

#: Gaps in the time stamps longer than this are filled with silence (dropped packets).
_GAP_S: Final = 0.04
#: Mixing weights of the channels if there is a centre: ITU-R BS.775's, with the centre (speech) at full level.
_SHARES: Final = {"FC": 1.0, "FL": 0.5**0.5, "FR": 0.5**0.5, "LFE": 0.0, "LFE2": 0.0}
_SURROUND_SHARE: Final = 0.5
#: A channel weaker than the strongest by this factor in energy (30 dB) carries no audio.
_CARRIES: Final = 1e-3
#: A channel with a correlation to the strongest below this would cancel it.
_OPPOSITE: Final = -0.5
#: Below this level (RMS, full scale = 1) the loudest second counts as silence: -50 dB.
_SILENT: Final = 10 ** (-50 / 20)
#: Means of the audio above this (full scale = 1) are noted.
_CONSTANT: Final = 0.02
#: Floating-point samples above this are unscaled integers of 16, 24 or 32 bits.
_LOUD: Final = 32.0
_MOST_CHANNELS: Final = 64  # swresample's limit

#: A channel layout of a stretch of a track: the names of its channels ("NONE": unnamed).
Layout = tuple[str, ...]


@dataclass
class _Block:
    time: Fraction | None  # seconds from the start of the file
    rate: int
    layout: Layout
    samples: Float32[np.ndarray, "S C"]


@dataclass
class _Channels:
    """Measures of the channels of one layout; NaN counts as silence."""

    products: Float64[np.ndarray, "C C"]
    peaks: Float64[np.ndarray, " C"]
    samples: int = 0
    at_full_scale: int = 0

    def add(self, samples: Float32[np.ndarray, "S C"]) -> None:
        """Measure more samples."""
        exact = samples.astype(np.float64)
        self.products += exact.T @ exact
        loud = np.abs(exact)
        self.peaks = np.maximum(self.peaks, loud.max(0, initial=0.0))
        self.samples += len(samples)
        self.at_full_scale += int((loud.max(1, initial=0.0) >= 0.999).sum())


@dataclass
class _Heard:
    """Results of the first pass over a track."""

    channels: dict[Layout, _Channels] = field(default_factory=dict)
    rates: dict[int, Fraction | None] = field(default_factory=dict)  # rate -> time of its first sample
    not_finite: int = 0
    damaged: int = 0

    @property
    def samples(self) -> int:
        return sum(c.samples for c in self.channels.values())

    @property
    def peak(self) -> float:
        return max((float(c.peaks.max()) for c in self.channels.values()), default=0.0)

    @property
    def rms(self) -> float:
        """RMS of the strongest channel."""
        energy = max((float(np.diag(c.products).max()) for c in self.channels.values()), default=0.0)
        return float(np.sqrt(energy / max(1, self.samples)))


def _blocks(path: Path | str, number: int, heard: _Heard | None = None) -> Iterator[_Block]:
    """Decode track `number` as float; damaged packets are skipped, and counted in `heard`."""
    with opened(path) as container:
        stream, start = container.streams.audio[number], start_s(container)
        described, resampler, follows = None, None, None
        for packet in container.demux(stream):
            try:
                decoded = packet.decode()
            except av.error.FFmpegError as error:
                if not damaged_packet(error):
                    raise
                if heard is not None:
                    heard.damaged += 1
                continue
            for raw in decoded:
                layout = tuple(channel.name for channel in raw.layout.channels)
                if len(layout) > _MOST_CHANNELS:
                    text = (
                        f"has {len(layout)} audio channels; at most {_MOST_CHANNELS} can be read: supply a mix of them"
                    )
                    raise MediaError(path, "channels", text)
                if described != (described := (raw.format.name, layout, raw.sample_rate)):
                    # packed: more than seven planes of samples crash PyAV
                    resampler = av.AudioResampler(format="flt", layout=raw.layout, rate=raw.sample_rate)
                time = None if raw.pts is None or raw.pts == follows else raw.pts * raw.time_base - start
                follows = _assumed_next(packet, raw)
                assert resampler is not None
                for block in resampler.resample(raw):
                    samples = block.to_ndarray().reshape(-1, len(layout))
                    finite = np.isfinite(samples)
                    if heard is not None:
                        heard.not_finite += int((~finite.all(1)).sum())
                    yield _Block(time, raw.sample_rate, layout, np.where(finite, samples, 0))
                    time = None


def _assumed_next(packet: Any, raw: Any) -> int | None:
    """The time stamp that a demuxer assumes for the next packet when it misjudges this one's length, as it does after a
    change of the rate; None while the length is right.
    """
    if raw.pts is None or not packet.duration:
        return None
    lasts = Fraction(raw.samples, raw.sample_rate) / packet.time_base
    return None if abs(packet.duration - lasts) <= lasts / 10 else raw.pts + packet.duration


def _hear(path: Path | str, number: int) -> _Heard:
    heard = _Heard()
    for block in _blocks(path, number, heard):
        heard.rates.setdefault(block.rate, block.time)
        count = len(block.layout)
        measured = heard.channels.setdefault(block.layout, _Channels(np.zeros((count, count)), np.zeros(count)))
        measured.add(block.samples)
    return heard


def mixing(layout: Layout, products: Float64[np.ndarray, "C C"]) -> tuple[Float64[np.ndarray, " C"], str]:
    """Weights of the channels in a mono mix, and a remark on what is unusual ("" if nothing).

    `products`: sums over time of products of two channels. Channels without audio get no weight. With a centre, weights
    are `_SHARES`, without one the rest is averaged; channels that would cancel others are inverted.
    """
    names, energy = np.array(layout), np.diag(products)
    carries = (energy >= _CARRIES * energy.max()) & ~np.char.startswith(names, "LFE")
    if not energy.any() or not carries.any():
        return np.full(len(layout), 1 / len(layout)), ""
    said = []
    if (carries & (names == "FC")).any():
        shares = carries * np.array([_SHARES.get(name, _SURROUND_SHARE) for name in layout])
    else:
        shares = carries / carries.sum()
    if len(layout) > 1 and not carries.all():
        said.append(f"audio in {_named(layout, carries)} of {len(layout)} channels")
    elif len(layout) > 2:
        said.append(f"{len(layout)} channels mixed")
    strongest = int(np.argmax(energy * carries))
    likeness = products[strongest] / np.sqrt(np.maximum(energy * energy[strongest], 1e-30))
    if (turned := carries & (likeness < _OPPOSITE)).any():
        shares = np.where(turned, -shares, shares)
        said.append(f"{_named(layout, turned)} is the opposite of another channel and was inverted")
    return shares, "; ".join(said)


def _named(layout: Layout, chosen: np.ndarray) -> str:
    words = {"FL": "left", "FR": "right", "FC": "centre"}
    layout = ("FL", "FR") if len(layout) == 2 else layout  # many files do not declare it
    return ", ".join(words.get(n, f"number {i + 1}") for i, n in enumerate(layout) if chosen[i])


def _choose(path: Path | str, notes: Notes) -> tuple[int, _Heard, str]:
    """The default track, unless it is silent and another is not; its measures, and why it is taken."""
    with opened(path) as container:
        refuse_still(path, container)
        tracks = container.streams.audio
        order = ranked(tracks)
        numbers = [tracks.index(stream) for stream in order]
        default = any(stream.disposition & Disposition.default for stream in order[:1])
    if not numbers:
        raise MediaError(path, "no_audio", "has no audio")
    first, heard = numbers[0], _hear(path, numbers[0])
    why = "the first" if first == 0 else "the default one" if default else "the first that is not a commentary"
    chosen, best = first, heard
    for number in numbers[1:]:
        if best.rms > 0.1 * _SILENT:
            break
        other = _hear(path, number)
        if other.rms > 0.1 * _SILENT:
            chosen, best, why = number, other, f"the first that is not silent (number {first + 1} is)"
    if len(numbers) > 1:
        notes.add("tracks", f"{path}: {len(numbers)} audio tracks: number {chosen + 1} is taken, {why}")
    return chosen, best, f"{chosen + 1} of {len(numbers)}: {why if len(numbers) > 1 else 'the only one'}"


def _scale(path: Path | str, peak: float, notes: Notes) -> float:
    """The factor that scales samples up to `peak` to at most 1."""
    if peak <= 1:
        return 1.0
    if peak <= _LOUD:
        if peak > 2:
            notes.add("level", f"{path}: {20 * np.log10(peak):.0f} dB over full scale: made quieter")
        return 1 / peak
    for bits in (16, 24, 32):
        if peak <= 2.0 ** (bits - 1):
            text = f"floating-point samples up to {peak:.0f}: treated as {bits}-bit integers and scaled"
            notes.add("level", f"{path}: {text}")
            return 2.0 ** (1 - bits)
    raise MediaError(path, "bad_level", f"floating-point samples up to {peak:.3g}; write it with samples in [-1, 1]")


def _announced_s(path: Path | str, number: int, ends_s: float) -> float | None:
    """Declared duration in seconds; for uncompressed audio from the header's size, since FFmpeg uses the file's."""
    with opened(path) as container:
        stream = container.streams.audio[number]
        declared, context = says_s(path, container, stream, ends_s), stream.codec_context
        size = announced_bytes(path) if context.name.startswith("pcm_") else None
        return max(declared or 0.0, 8 * size / context.bit_rate) if size and context.bit_rate else declared


def read_audio(
    path: Path | str,
    *,
    channel: int | None = None,
    notes: Notes | None = None,
    facts: dict[str, Any] | None = None,
) -> Float32[np.ndarray, " S"]:
    """The audio of a file as 16 kHz mono in [-1, 1], sample 0 at the start of the file.

    Of several tracks it takes the default one, or the first that is not silent. Channels are mixed (see `mixing`), or
    only `channel` (0 left, 1 right) is used. Gaps in the time stamps become silence; changes of rate or channels are
    followed. `notes` collects remarks, `facts` gets which track and channels are used and why. Raises `MediaError` for
    unreadable or truncated files, files without audio, and samples that are NaN or far beyond full scale.
    """
    notes = Notes() if notes is None else notes
    number, heard, why = _choose(path, notes)
    if not heard.samples:
        if (empty_s := _announced_s(path, number, 0.0) or 0.0) > 0.5:
            text = f"cut off: declares {empty_s:.2f} s but its audio track holds no samples"
            raise MediaError(path, "truncated", text)
        raise MediaError(path, "no_audio", "its audio track holds no samples")
    if 2 * heard.not_finite > heard.samples:
        text = f"{heard.not_finite} of {heard.samples} samples are not numbers (NaN or infinity)"
        raise MediaError(path, "not_finite", text)
    shares: dict[Layout, np.ndarray] = {}
    used = ""
    for layout, measured in heard.channels.items():
        if channel is None:
            shares[layout], said = mixing(layout, measured.products)
            used = said or ("mono" if len(layout) == 1 else f"mean of {len(layout)}")
            if said:
                notes.add("channels", f"{path}: {said}")
        elif channel >= len(layout):
            raise MediaError(path, "no_audio", f"has {len(layout)} audio channel, not {channel + 1}")
        else:
            shares[layout], used = np.eye(len(layout))[channel], f"number {channel + 1} of {len(layout)}, as asked for"
    if facts is not None:
        facts |= {"track": why, "channels": used, "rate_hz": list(heard.rates)}
    loudest = max(float((m.peaks * (shares[n] != 0)).max()) for n, m in heard.channels.items())
    scale = _scale(path, loudest, notes)
    out, missing_s = _mixed(path, number, {n: (s * scale).astype(np.float32) for n, s in shares.items()})
    declared = _announced_s(path, number, samples_to_seconds(len(out)))
    missing = 0 if declared is None else seconds_to_samples(declared) - len(out)
    text = f"declares {declared or 0:.2f} s but the audio ends at {samples_to_seconds(len(out)):.2f} s"
    if missing > SAMPLE_RATE // 2:
        raise MediaError(path, "truncated", f"cut off: {text}")
    if missing > SAMPLE_RATE // 10:
        notes.add("lengths", f"{path}: {text}")
    if (more := uncounted_bytes(path)) and (announced := announced_bytes(path)) and declared:
        text = "is not counted by its header and not read; ffmpeg -ignore_length 1 -i OLD NEW repairs it"
        if (more_s := declared * more / announced) > 0.1:
            notes.add("lengths", f"{path}: {more_s:.2f} s behind the first {declared:.2f} s {text}")
    top = float(np.abs(out).max(initial=0.0))
    if top > 1:  # channels add up to more than each alone
        out /= top
    for kind, said in _remarks(heard, missing_s, out):
        notes.add(kind, f"{path}: {said}")
    return out


def _mixed(path: Path | str, number: int, shares: dict[Layout, np.ndarray]) -> tuple[np.ndarray, float]:
    """(the mix at 16 kHz, missing seconds within it)."""
    pieces: list[np.ndarray] = []
    rate, resampler = 0, None
    position, missing = Fraction(0), Fraction(0)  # seconds

    def append(block: np.ndarray) -> None:
        nonlocal position
        position += Fraction(len(block), rate)
        pieces.append(block if resampler is None else resampler.resample_chunk(np.ascontiguousarray(block)))

    def end() -> None:
        if resampler is not None:
            pieces.append(resampler.resample_chunk(np.zeros(0, np.float32), last=True))

    for block in _blocks(path, number):
        if block.rate != rate:
            end()
            rate = block.rate
            resampler = None if rate == SAMPLE_RATE else soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32")
        mono = block.samples @ shares[block.layout]
        if block.time is not None:
            shift = round((block.time - position) * rate)
            if shift > _GAP_S * rate or (position == 0 and shift > 0):
                missing += Fraction(shift, rate) if position else 0
                append(np.zeros(shift, np.float32))
            elif shift < -_GAP_S * rate or (position == 0 and shift < 0):
                mono = mono[-shift:]
        append(mono)
    end()
    return np.concatenate(pieces), float(missing)


def _remarks(heard: _Heard, missing_s: float, audio: Float32[np.ndarray, " S"]) -> Iterator[tuple[str, str]]:
    """Kinds and texts of notes on what is wrong with a track and its mix, `audio`."""
    if len(heard.rates) > 1:
        seen = ", ".join(f"{rate} Hz from {float(time or 0):.2f} s" for rate, time in heard.rates.items())
        yield "rate", f"the audio's rate changes and was followed: {seen}"
    if heard.damaged or missing_s > 0:
        packets = f" ({heard.damaged} damaged packets)" if heard.damaged else ""
        yield "corruption", f"{missing_s:.2f} s of audio is missing{packets}: silence in their place"
    if heard.not_finite:
        yield "corruption", f"{heard.not_finite} of {heard.samples} samples are NaN or infinite: silenced"
    clipped = sum(c.at_full_scale for c in heard.channels.values())
    if heard.peak <= 2 and clipped > 1e-3 * heard.samples:
        yield "clipping", f"{clipped / heard.samples:.1%} of the audio is at full scale (clipped)"
    second = min(len(audio), SAMPLE_RATE)
    whole = audio[: len(audio) // second * second].reshape(-1, second)
    loudest, constant = float(whole.std(1, dtype=np.float64).max()), float(audio.mean(dtype=np.float64))
    if abs(constant) > _CONSTANT:
        yield "level", f"the audio has a mean of {constant:.2f}, not 0: a fault of the recording; remove the DC offset"
    if loudest == 0:
        yield "level", "silent throughout"
    elif loudest < _SILENT:
        yield "level", f"nearly silent: the loudest second is at {20 * np.log10(loudest):.0f} dB"


def fit_audio(audio: Float32[np.ndarray, " S"], frames: int) -> Float32[np.ndarray, " S"]:
    """`audio` cut, or padded with silence, to exactly the samples of `frames` frames."""
    wanted = frames_to_samples(frames)
    return np.pad(audio[:wanted], (0, max(0, wanted - len(audio))))
