"""Reaction gain: does the avatar react to the user?

It measures how much the user's signal helps to predict the avatar beyond the avatar's own speech. Two ridge regressors
are fitted on true data only, never on the identities they are evaluated on: (a) avatar motion from its own audio, lags
1 … L; (b) the same plus the user's motion and audio, lags 1 … L.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
from jaxtyping import Float, Int

from af.clock import FPS, SAMPLES_PER_FRAME, seconds_to_frames
from af.mel import mel_filters
from af.metrics.arrays import Array, Clip, as_array, safe_divide, undefined
from af.metrics.base import FACES, ClipMetric, ClipTable
from af.metrics.bootstrap import Interval, bootstrap, bootstrap_values, group_sums
from af.metrics.records import LAG_BANDS, Curve, EvaluationClip, MetricRow
from af.metrics.ridge import LaggedGram, fold_of_groups, lagged_filter, solve_ridge

STRENGTHS = (0.01, 0.1, 1.0, 3.0, 10.0, 30.0, 100.0)
#: Columns and the strength of their penalty.
Blocks = list[tuple[Int[np.ndarray, " C"], float]]


def log_mel(audio: Float[np.ndarray, " S"], frames: int, bands: int = 8) -> Float[np.ndarray, "T M"]:
    """ln(mel energy + 1e-6) of each video frame's own 640 samples (Hann, 1024-point FFT), 80 – 7600 Hz.

    Audio is cut or padded with silence to `frames`. A frame's value uses only its own samples.
    """
    padded = np.zeros(frames * SAMPLES_PER_FRAME)
    audio = as_array(audio).ravel()[: len(padded)]
    padded[: len(audio)] = audio
    windowed = padded.reshape(frames, SAMPLES_PER_FRAME) * np.hanning(SAMPLES_PER_FRAME)
    power = np.abs(np.fft.rfft(windowed, 1024, axis=1)) ** 2 / SAMPLES_PER_FRAME
    return np.log(power @ mel_filters(bands, 1024, low_hz=80.0) + 1e-6)


@dataclass(frozen=True)
class Gain:
    """How much better the user predicts the avatar than shifted users do, in nats; 0: no reaction.

    `errors` (identities, 2 + shifts): squared errors of (a), of (b), and of (b) for each circular shift of the user.
    """

    value: float
    interval: Interval | None
    errors: Float[np.ndarray, "I E"]

    def draws(self, resamples: int = 1000, seed: int = 0) -> Float[np.ndarray, " R"]:
        """Bootstrap values over identities; draws depend only on seed and identities (for paired differences)."""
        return bootstrap_values(self.errors, gain_from_errors, None, resamples, seed)


def gain_from_errors(errors: Float[np.ndarray, "... E"]) -> Float[np.ndarray, ...]:
    """ln(E_a/E_b) minus its mean over the shifts, from summed squared errors."""
    with np.errstate(divide="ignore", invalid="ignore"):
        gains = np.log(errors[..., :1] / errors[..., 1:])
    return gains[..., 0] - gains[..., 1:].mean(axis=-1)


@dataclass
class ReactionModel:
    """The fitted pairs of regressors per fold; `gain` evaluates any avatar motion for the same users and audio.

    `lags` frames of history (2 s by default), `folds` identity-disjoint folds, `shifts` circular shifts of the user by
    at least `min_shift` frames. Every clip is centred, then divided by the true data's deviations per dimension, so
    resting pose and level do not matter.

    `shift` is what the null shifts. "user", the literal definition, also breaks the dependence between the two voices.
    The own-audio part of (b) then lacks its counterpart, the shifted error is too large, and avatars that ignore the
    user are rewarded (experiments/003_metric_calibration: moving lips in a still face score as high as a perfect
    sample). "increment" (default) shifts the prediction of (b) minus that of (a), without its projection on the latter
    (nonzero for ridge): it is near 0 for every avatar that ignores the user.
    """

    lags: int = 50
    folds: int = 5
    shifts: int = 20
    min_shift: int = seconds_to_frames(2)
    min_frames: int = seconds_to_frames(8)
    strengths: Sequence[float] = STRENGTHS
    seed: int = 0
    shift: Literal["increment", "user"] = "increment"
    _kept: list[int] = field(default_factory=list, init=False)
    _shapes: list[tuple[int, ...]] = field(default_factory=list, init=False)
    _bands: dict[tuple[int, int], list[Array]] = field(default_factory=dict, init=False)

    def fit(
        self,
        user: Sequence[Clip],
        true: Sequence[Clip],
        user_audio: Sequence[Clip],
        avatar_audio: Sequence[Clip],
        identities: Sequence[str],
    ) -> ReactionModel:
        """Fit on true clips: motion (T, P), audio as log-mel frames (T, M), `identities` of the avatars.

        Clips below `min_frames` are left out; `usable` is False if fewer than two identities remain.
        """
        users, trues, user_mels, avatar_mels = (
            [as_array(c) for c in side] for side in (user, true, user_audio, avatar_audio)
        )
        self._kept = [
            i
            for i, parts in enumerate(zip(users, trues, user_mels, avatar_mels, strict=True))
            if len(parts[0]) >= self.min_frames and all(np.isfinite(p).all() for p in parts)
        ]
        self._shapes, self._bands = [t.shape for t in trues], {}
        self.identities = [identities[i] for i in self._kept]
        self.usable = len(set(self.identities)) >= 2
        if not self.usable:
            return self
        self.frames = [len(users[i]) for i in self._kept]
        self._scale = _deviation([trues[i] for i in self._kept])
        own = _standardise([avatar_mels[i] for i in self._kept])
        other = _standardise([np.concatenate([users[i], user_mels[i]], axis=1) for i in self._kept])
        self._own, self._other = own, other
        targets = self._targets(trues)
        self.fold = fold_of_groups(self.identities, self.folds)
        grams = []
        for f in range(int(self.fold.max()) + 1):
            index = np.flatnonzero(self.fold == f)
            inputs = [np.concatenate([own[i], other[i]], axis=1) for i in index]
            grams.append(LaggedGram.of_clips(inputs, [targets[i] for i in index], self.lags))
        self._grams = grams
        channels, own_channels = own[0].shape[1] + other[0].shape[1], own[0].shape[1]
        is_own = np.tile(np.arange(channels) < own_channels, self.lags)
        self._columns = np.flatnonzero(is_own), np.flatnonzero(~is_own)
        self.strength_a, self._filters_a = self._select(lambda s: [(self._columns[0], s)])
        # The own audio keeps its strength; a separate one for the user's block shrinks a user without information to
        # zero at no cost to the rest.
        self.strength_b, self._filters_b = self._select(lambda s: self._blocks(s))
        return self

    def _blocks(self, strength: float, user: Int[np.ndarray, " C"] | None = None) -> Blocks:
        """The columns of (b) with their strengths; `user` selects some of the user's columns (None: all)."""
        return [(self._columns[0], self.strength_a), (self._columns[1] if user is None else user, strength)]

    def _targets(self, motion: list[Clip]) -> list[Clip]:
        return [(motion[i] - motion[i].mean(0)) / self._scale for i in self._kept]

    def _select(self, blocks: Callable[[float], Blocks]) -> tuple[float, list[Array]]:
        """The ridge strength with the least error on held-out identities of the true data, and the filters per fold."""
        best: tuple[float, float, list[Array]] | None = None
        for strength in self.strengths:
            filters = self._fit_folds(blocks(strength))
            error = sum(held.error(w) for held, w in zip(self._grams, filters, strict=True))
            if best is None or error < best[0]:
                best = (error, strength, filters)
        assert best is not None
        return best[1], best[2]

    def _fit_folds(self, blocks: Blocks) -> list[Array]:
        """A filter per fold, fitted on the identities of the other folds."""
        total = sum(self._grams[1:], self._grams[0])
        return [solve_ridge(total - held, blocks) for held in self._grams]

    def errors(self, avatar: Sequence[Clip], filters_b: Sequence[Array] | None = None) -> Float[np.ndarray, "N E"]:
        """Squared errors per kept clip of (a), of (b), and of (b) for each shift; sums over frames and dims.

        `filters_b`: filters of (b) by fold (default: the fitted ones). Raises ValueError for shapes other than the
        truth's.
        """
        clips = [as_array(clip) for clip in avatar]
        if len(clips) != len(self._shapes):
            raise ValueError(f"avatar has {len(clips)} clips where the model was fitted on {len(self._shapes)}")
        for i, (clip, shape) in enumerate(zip(clips, self._shapes, strict=True)):
            if clip.shape != shape:
                raise ValueError(f"avatar[{i}] has shape {clip.shape} where the true clip has {shape}")
        rng, rows, dims = np.random.default_rng(self.seed), [], self._own[0].shape[1]
        for i, target in enumerate(self._targets(clips)):
            alone, both = (
                filters[self.fold[i]].reshape(self.lags, -1, target.shape[1])
                for filters in (self._filters_a, self._filters_b if filters_b is None else filters_b)
            )
            only_own, own = (lagged_filter(self._own[i], weights[:, :dims]) for weights in (alone, both))
            other = lagged_filter(self._other[i], both[:, dims:])
            # Filters wrap around the clip's end, so shifting the input shifts the output. Frames before `lags` would
            # use wrapped input and are left out.
            frames = len(target)
            # Every clip shifts by the same share of its free range, with one draw per shift, the same for all systems.
            shares = (np.arange(self.shifts) + rng.random(self.shifts)) / self.shifts
            offsets = self.min_shift + np.floor(shares * (frames - 2 * self.min_shift + 1)).astype(int)
            fixed, moving = (own, other) if self.shift == "user" else (only_own, own + other - only_own)
            parts = [np.roll(moving, o, axis=0)[self.lags :] for o in (0, *offsets)]
            base, judged = fixed[self.lags :], target[self.lags :]
            if self.shift == "increment":
                parts = [_without(part, base) for part in parts]
            rows.append(
                [np.square(e).sum() for e in (judged - only_own[self.lags :], *(judged - base - p for p in parts))]
            )
        return np.asarray(rows)

    def gain(self, avatar: Sequence[Clip], resamples: int = 1000) -> Gain:
        """Reaction gain of `avatar` (true or generated motion), with a bootstrap interval over identities."""
        grouped, _ = group_sums(self.errors(avatar), self.identities)
        value = float(gain_from_errors(grouped.sum(axis=0)))
        interval = bootstrap(grouped, gain_from_errors, resamples=resamples, seed=self.seed)
        if not np.isfinite(value):
            undefined("reaction_gain", "the avatar's motion is not finite, or never changes")
        return Gain(value, interval, grouped)

    def gain_by_lag(
        self, avatar: Sequence[Clip], bands: Sequence[tuple[int, int]] = LAG_BANDS
    ) -> list[tuple[int, int, float]]:
        """Gain if (b) sees the user only at lags lo … hi − 1, for each band (lo, hi) in frames."""
        channels = self._own[0].shape[1] + self._other[0].shape[1]
        lag_of = np.repeat(np.arange(1, self.lags + 1), channels)
        user = np.zeros(lag_of.size, bool)
        user[self._columns[1]] = True
        result = []
        for low, high in bands:
            if (low, high) not in self._bands:
                columns = np.flatnonzero(user & (lag_of >= low) & (lag_of < high))
                self._bands[low, high] = self._fit_folds(self._blocks(self.strength_b, columns))
            errors = self.errors(avatar, self._bands[low, high])
            result.append((low, high, float(gain_from_errors(errors.sum(axis=0)))))
        return result


def _without(part: Clip, base: Clip) -> Clip:
    """`part` minus its projection on `base`, per dimension."""
    return part - base * safe_divide((part * base).sum(0), (base * base).sum(0), fill=0.0)


def _deviation(clips: list[Clip]) -> Float[np.ndarray, " D"]:
    """Standard deviation within centred clips per dim; infinite for constant dims, which then count 0."""
    variance = np.concatenate([c - c.mean(0) for c in clips]).var(axis=0)
    return np.where(variance > 1e-18, np.sqrt(variance), np.inf)


def _standardise(clips: list[Clip]) -> list[Clip]:
    scale = _deviation(clips)
    return [(c - c.mean(0)) / scale for c in clips]


class ReactionGain(ClipMetric):
    """`reaction_gain` (nats) of generated and true motion, also by lag; null: the avatar shifted by half the clip.

    Fitted on user and true motion, evaluated on generated motion; 0 means no reaction to the user. NaN with fewer than
    two identities with clips of at least 8 s. Source: the idea of R-DGG.
    """

    needs: ClassVar = {"reaction_gain": f"{FACES} and the sound of both, avatar and user"}
    headline = ("reaction_gain",)

    def __init__(self, mel_bands: int = 8, gain_bands: Sequence[tuple[int, int]] = LAG_BANDS, **draws: int) -> None:
        super().__init__(**draws)
        self.mel_bands, self.gain_bands = mel_bands, gain_bands
        #: Fitted on the true clips of the last `compute`, and reused for the same clips.
        self.model: ReactionModel | None = None
        self._fitted_on = ""

    def takes(self, clip: EvaluationClip) -> bool:
        """Whether the clip has faces and both voices."""
        return clip.face is not None and clip.avatar_audio is not None and clip.user_audio is not None

    def measure(self, clip: EvaluationClip) -> dict[str, Any]:
        """The series and the voices' log-mel frames, for a model fitted on all clips."""
        kept: dict[str, Any] = {side: getattr(clip, side) for side in ("user", "true", "generated")}
        for voice in ("user_audio", "avatar_audio"):
            kept[voice] = log_mel(getattr(clip, voice), len(kept["user"]), self.mel_bands)
        return kept

    def _fit(self, table: ClipTable) -> ReactionModel:
        names = ("user", "true", "user_audio", "avatar_audio")
        content = table.contents(*names)
        if self.model is None or content != self._fitted_on:
            user, true, user_audio, avatar_audio = (table[name] for name in names)
            self.model = ReactionModel(seed=self.seed).fit(user, true, user_audio, avatar_audio, table.identities)
            self._fitted_on = content
        return self.model

    def tabulate(self, table: ClipTable) -> None:
        """`reaction_gain`, and its curve over lags."""
        model, tag = self._fit(table), "reaction_gain"
        bands = f"{self.mel_bands} mel bands"
        text = f"ridge, lags 1–{model.lags}, {bands}, {model.shifts} shifts, interval over identities; nats"
        if not model.usable:
            note = f"fewer than two identities with clips of {model.min_frames} frames"
            table.row(MetricRow(tag, float("nan"), protocol=text, note=note))
            return
        sides = {side: table[side] for side in ("generated", "true")}
        sides["null"] = [np.roll(g, len(g) // 2, axis=0) for g in sides["generated"]]
        own, true, null = (model.gain(motion, self.resamples) for motion in sides.values())
        if own.interval is not None:
            table.result.draws[tag] = own.draws(self.resamples, self.seed)
        error = [None if gain.interval is None else gain.interval.standard_error for gain in (own, true, null)]
        text += f"; null: avatar shifted by half the clip; {table.face.tracker}, 25 fps"
        n = len(model.identities)
        table.row(
            MetricRow(
                tag, own.value, own.interval, n, true.value, null.value, text, "true", error[0], error[1], error[2]
            )
        )
        if self.gain_bands:
            by_lag = {side: model.gain_by_lag(sides[side], self.gain_bands) for side in ("true", "generated")}
            table.result.curves[tag] = Curve(
                np.array([(low + high - 1) / 2 / FPS for low, high in self.gain_bands]),
                {side: np.array([value for *_, value in gains]) for side, gains in by_lag.items()},
                "reaction gain by lag of the user's signal",
                "lag of the user's signal (s)",
                "gain (nats)",
            )
