"""All rows that face parameters and sound allow, from a list of clips: what `af evaluate` and the demo print."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from jaxtyping import Float

from af.evaluation.clips import MOUTH_NAMES, EvaluationClip, Fitted, ParameterReport, Protocol, fit_length, partners
from af.evaluation.rows import MetricRow
from af.metrics import coupling, diversity, frechet, lipsync, reaction, smoothness
from af.metrics.arrays import Clip, UndefinedMetricWarning, nan_max, nan_mean
from af.metrics.audio import log_mel
from af.metrics.bootstrap import Interval, bootstrap_values, finish_mean, interval_of, mean_sums

Sums = Float[np.ndarray, "N S"]
Finish = Callable[[np.ndarray], np.ndarray]


def evaluate_parameters(clips: Sequence[EvaluationClip], protocol: Protocol | None = None) -> list[MetricRow]:
    """Every row of the table that face parameters and audio allow, in a fixed order.

    All clips must share one tracker and layout, and each clip's three arrays one length (ValueError otherwise). Rows
    whose input is absent (audio, phrase ends, block) are left out; rows without a value are NaN with a note.
    """
    return parameter_report(clips, protocol).rows


def parameter_report(
    clips: Sequence[EvaluationClip], protocol: Protocol | None = None, fitted: Fitted | None = None
) -> ParameterReport:
    """`evaluate_parameters` with the curves and the values of single clips.

    `fitted` (of an earlier report with the same true clips, users, sound and protocol) spares the fitting.
    """
    return _Report(clips, protocol or Protocol(), fitted).run()


@dataclass
class _Report:
    clips: Sequence[EvaluationClip]
    protocol: Protocol
    fitted: Fitted | None = None
    centres: dict[str, Float[np.ndarray, "K D"] | None] = field(default_factory=dict)
    model: reaction.ReactionModel | None = None
    rows: list[MetricRow] = field(default_factory=list)
    curves: dict[str, tuple[np.ndarray, dict[str, np.ndarray]]] = field(default_factory=dict)
    per_clip: dict[str, dict[str, float]] = field(default_factory=dict)
    draws: dict[str, np.ndarray] = field(default_factory=dict)

    def run(self) -> ParameterReport:
        """Check, then one family after the other."""
        clips = self.clips
        if not clips:
            raise ValueError("evaluate_parameters needs at least one clip")
        face = clips[0].face
        for clip in clips:
            if clip.face.names != face.names or clip.face.tracker != face.tracker:
                raise ValueError(f"{clip.name}: tracker {clip.face.tracker!r} beside {face.tracker!r}: never mix them")
            shapes = {name: getattr(clip, name).shape for name in ("user", "true", "generated")}
            if len(set(shapes.values())) != 1 or shapes["user"][1] != len(face.names):
                raise ValueError(f"{clip.name}: shapes {shapes} for {len(face.names)} parameters")
        self.face = face
        self.identities = [c.identity for c in clips]
        by_identity = len(set(self.identities)) >= 8
        self.groups = self.identities if by_identity else None
        self.base = f"{face.tracker}, 25 fps, interval over {'identities' if by_identity else 'clips'}"
        self.user, self.true, self.generated = (
            [np.asarray(getattr(c, name), np.float64) for c in clips] for name in ("user", "true", "generated")
        )
        self.partner = partners(clips)
        if self.partner is None:  # a single clip: its own user, half the clip later
            self.other = [np.roll(x, len(x) // 2, axis=0) for x in self.user]
            self.null_is = "null: user shifted by half the clip"
        else:
            self.other = [fit_length(self.user[j], len(x)) for j, x in zip(self.partner, self.user, strict=True)]
            self.null_is = "null: user of another clip"
        self.per_clip = {c.name: {} for c in clips}
        parts = {"exp": slice(0, face.expression), "pose": slice(face.expression, None)}
        groups = {k: s for k, s in parts.items() if len(face.names[s])}
        for name, part in groups.items():
            self.coupling(name, part)
        for i, (name, part) in enumerate(groups.items()):
            self.richness(name, part, column=i if name == "exp" else 1)
        for name, part in groups.items():
            self.distance(name, part)
        self.reaction_gain()
        self.known_reactions()
        self.lips()
        for name, part in groups.items():
            self.smoothness(name, part)
        return ParameterReport(self.rows, self.curves, self.per_clip, self.draws, Fitted(self.centres, self.model))

    def add(
        self,
        tag: str,
        sums: Sums,
        finish: Finish,
        *,
        true: float | Sums | None = None,
        null: Sums | None = None,
        protocol: str = "",
        better: Literal["lower", "higher", "true"] = "true",
        per_clip: bool = True,
        note: str = "",
    ) -> None:
        """A row from per-clip sums: value, bootstrap interval, the same of the truth and of the null."""
        own = np.asarray(finish(sums), np.float64)
        if per_clip:
            for clip, value in zip(self.clips, own, strict=True):
                self.per_clip[clip.name][tag] = float(value)
        ground = float(finish(true.sum(0))) if isinstance(true, np.ndarray) else true
        value = float(finish(sums.sum(axis=0)))
        if not np.isfinite(value) and not note:
            note = "undefined: a series is constant, not finite or too short"
        self.rows.append(
            MetricRow(
                tag,
                value,
                self.interval(tag, sums, finish),
                int(np.isfinite(own).sum()) if per_clip else len(self.clips),
                ground,
                None if null is None else float(finish(null.sum(axis=0))),
                f"{protocol}; {self.base}" if protocol else self.base,
                better,
                note=note,
            )
        )

    def interval(self, tag: str, sums: Sums, finish: Finish) -> Interval | None:
        """The bootstrap interval, its draws kept; None when there is nothing to resample."""
        if len(set(self.groups) if self.groups is not None else sums) < 2:
            return None
        values = bootstrap_values(sums, finish, self.groups, self.protocol.resamples, self.protocol.seed)
        self.draws[tag] = values
        return interval_of(values)

    def coupling(self, name: str, part: slice) -> None:
        """rPCC in three poolings with both signed PCCs, and TLCC."""
        x, y, g, z = ([c[:, part] for c in clips] for clips in (self.user, self.true, self.generated, self.other))
        pair = [np.stack([coupling.pcc_sums(a, b) for a, b in zip(*p, strict=True)]) for p in ((x, y), (x, g), (z, g))]
        true, generated, null = (p.reshape(len(x), -1) for p in pair)  # N, D * 6
        dims = pair[0].shape[1]

        def pooled(sums: np.ndarray) -> np.ndarray:
            return coupling.pcc_from_sums(sums.reshape(*sums.shape[:-1], dims, 6).sum(axis=-2))

        def residual(sums: np.ndarray) -> np.ndarray:
            first, second = np.split(sums, 2, axis=-1)
            return np.abs(pooled(first) - pooled(second))

        def residual_dim(sums: np.ndarray) -> np.ndarray:
            each = coupling.pcc_from_sums(sums.reshape(*sums.shape[:-1], 2, dims, 6))
            return nan_mean(np.abs(each[..., 0, :] - each[..., 1, :]))

        null_is = self.null_is
        both, broken = np.concatenate([true, generated], 1), np.concatenate([true, null], 1)
        self.add(f"rpcc/{name}", both, residual, true=0.0, null=broken, protocol=f"pooled; {null_is}", better="lower")
        own, other = mean_sums(residual(both)), mean_sums(residual(broken))
        self.add(
            f"rpcc/{name}/clip", own, finish_mean, true=0.0, null=other, protocol="mean over clips", better="lower"
        )
        self.add(
            f"rpcc/{name}/dim", both, residual_dim, true=0.0, null=broken, protocol="mean over dims", better="lower"
        )
        self.add(f"pcc/{name}", generated, pooled, true=true, null=null, protocol="signed, pooled")

        lag = self.protocol.max_lag
        curves = {
            key: coupling.tlcc_curves(a, b, lag) for key, a, b in (("true", x, y), ("generated", x, g), ("null", z, g))
        }
        sums = {key: coupling.curve_sums(curve) for key, curve in curves.items()}
        self.curve_rows(f"tlcc/{name}", sums, lag, f"lags ±{lag}; {null_is}")

    def curve_rows(self, tag: str, sums: dict[str, Sums], lag: int, protocol: str, better: str = "true") -> None:
        """Two rows from curves over lags (height and lag of the peak of the mean curve), and the curve itself."""
        lags = np.arange(-lag, lag + 1)

        def peak(s: np.ndarray) -> np.ndarray:
            return nan_max(coupling.curve_from_sums(s))

        def where(s: np.ndarray) -> np.ndarray:
            curve = coupling.curve_from_sums(s)
            best = lags[np.where(np.isnan(curve), -np.inf, curve).argmax(axis=-1)]
            return np.where(np.isnan(curve).all(axis=-1), np.nan, best)

        true, null = sums.get("true"), sums.get("null")
        suffix = ("corr", "lag") if tag in ("lip", "mouth") else ("peak", "lag")
        literal: Literal["higher", "true"] = "higher" if better == "higher" else "true"
        self.add(f"{tag}/{suffix[0]}", sums["generated"], peak, true=true, null=null, protocol=protocol, better=literal)
        self.add(f"{tag}/{suffix[1]}", sums["generated"], where, true=true, protocol=f"frames; {protocol}")
        self.curves[tag] = (lags / 25, {k: coupling.curve_from_sums(s.sum(axis=0)) for k, s in sums.items()})

    def richness(self, name: str, part: slice, column: int) -> None:
        """SID with every cluster count, variance in both poolings, and the ratio per parameter."""
        y, g = ([c[:, part] for c in clips] for clips in (self.true, self.generated))
        for i, pair in enumerate(self.protocol.clusters):
            clusters = pair[column]
            tag = f"sid/{name}" if i == 0 else f"sid/{name}/k{clusters}"
            text = f"K = {clusters}, bound {np.log2(clusters):.3f} bits, k-means on true frames"
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", UndefinedMetricWarning)
                centres = self.fitted.centres[tag] if self.fitted else diversity.fit_clusters(y, clusters, tag)
            self.centres[tag] = centres
            if centres is None:
                self.rows.append(
                    MetricRow(
                        tag, float("nan"), protocol=text, note=str(caught[-1].message) if caught else "no clusters"
                    )
                )
                continue
            true, own = (
                np.stack([diversity.cluster_counts(c, centres) for c in clips]).astype(float) for clips in (y, g)
            )
            self.add(tag, own, diversity.entropy_bits, true=true, protocol=text)
        true_variance, own_variance = (diversity.clip_variances(c) for c in (y, g))
        sums = [mean_sums(v.mean(axis=1)) for v in (own_variance, true_variance)]
        self.add(f"var/{name}", sums[0], finish_mean, true=sums[1], protocol="over time, mean of features, then clips")
        flat = [np.stack([[c.size, c.sum(), np.square(c).sum()] for c in clips]) for clips in (g, y)]

        def pooled(s: np.ndarray) -> np.ndarray:
            return s[..., 2] / s[..., 0] - np.square(s[..., 1] / s[..., 0])

        self.add(f"var/{name}/pooled", flat[0], pooled, true=flat[1], protocol="of everything flattened")

        dims = own_variance.shape[1]
        both = np.concatenate([np.nan_to_num(own_variance), np.nan_to_num(true_variance)], axis=1)

        def ratios(s: np.ndarray) -> np.ndarray:
            return diversity.variance_ratio(s[..., :dims], s[..., dims:])

        self.add(f"var_ratio/{name}", both, lambda s: nan_mean(ratios(s)), true=1.0, protocol="mean over parameters")
        for d, parameter in enumerate(self.face.names[part]):
            self.add(
                f"var_ratio/{parameter}",
                both[:, [d, dims + d]],
                lambda s: diversity.variance_ratio(s[..., 0], s[..., 1]),
                true=1.0,
                protocol="generated / true variance over time",
                per_clip=False,
            )

    def distance(self, name: str, part: slice) -> None:
        """FD and P-FD. The null of P-FD shifts the user by half the clip: same users, coupling broken."""
        x, y, g = ([c[:, part] for c in clips] for clips in (self.user, self.true, self.generated))
        own = np.array([frechet.clip_frechet(a, b) for a, b in zip(y, g, strict=True)])
        self.add(f"fd/{name}", mean_sums(own), finish_mean, true=0.0, protocol="per clip, ddof 1", better="lower")

        def paired(users: list[Clip]) -> Sums:
            joined = [
                (np.concatenate([u, a], 1), np.concatenate([v, b], 1))
                for u, v, a, b in zip(x, users, y, g, strict=True)
            ]
            return mean_sums(np.array([frechet.clip_frechet(*j) for j in joined]))

        null = paired([np.roll(u, len(u) // 2, axis=0) for u in x])
        self.add(
            f"pfd/{name}",
            paired(x),
            finish_mean,
            true=0.0,
            null=null,
            protocol="per clip, ddof 1; null: user shifted by half the clip",
            better="lower",
        )

    def reaction_gain(self) -> None:
        """Reaction gain of generated and true motion, and by lag, over the clips with both voices."""
        heard = [i for i, c in enumerate(self.clips) if c.avatar_audio is not None and c.user_audio is not None]
        if not heard:
            return
        user, truth, generated = ([side[i] for i in heard] for side in (self.user, self.true, self.generated))
        bands = self.protocol.mel_bands
        if self.fitted and self.fitted.reaction:
            model = self.fitted.reaction
        else:
            mels = [
                [log_mel(getattr(self.clips[i], side), len(self.clips[i].user), bands) for i in heard]
                for side in ("user_audio", "avatar_audio")
            ]
            model = reaction.ReactionModel(seed=self.protocol.seed)
            model.fit(user, truth, mels[0], mels[1], [self.identities[i] for i in heard])
        self.model = model
        text = f"ridge, lags 1–{model.lags}, {bands} mel bands, {model.shifts} shifts, interval over identities; nats"
        if not model.usable:
            note = f"fewer than two identities with clips of {model.min_frames} frames"
            self.rows.append(MetricRow("reaction_gain", float("nan"), protocol=text, note=note))
            return
        own, true = (model.gain(m, self.protocol.resamples) for m in (generated, truth))
        if own.interval is not None:
            self.draws["reaction_gain"] = own.draws(self.protocol.resamples, self.protocol.seed)
        shifted = [np.roll(g, len(g) // 2, axis=0) for g in generated]
        null = model.gain(shifted, self.protocol.resamples)
        self.rows.append(
            MetricRow(
                "reaction_gain",
                own.value,
                own.interval,
                len(model.identities),
                true.value,
                null.value,
                f"{text}; null: avatar shifted by half the clip; {self.face.tracker}, 25 fps",
                "true",
                true_standard_error=None if true.interval is None else true.interval.standard_error,
                standard_error=None if own.interval is None else own.interval.standard_error,
                null_standard_error=None if null.interval is None else null.interval.standard_error,
            )
        )
        if not self.protocol.gain_bands:
            return
        by_lag = {
            name: model.gain_by_lag(m, self.protocol.gain_bands)
            for name, m in (("true", truth), ("generated", generated))
        }
        middle = np.array([(lo + hi - 1) / 2 / 25 for lo, hi, _ in by_lag["true"]])
        self.curves["reaction_gain"] = (middle, {k: np.array([v for *_, v in rows]) for k, rows in by_lag.items()})

    def known_reactions(self) -> None:
        """react/*: the reactions whose causes the synthetic dyads know."""
        if all(c.phrase_ends is None for c in self.clips):
            return
        names, p = self.face.names, self.protocol
        for tag, parameter, lag in (("smile", "smile", p.smile_lag), ("tilt", "roll", p.tilt_lag)):
            if parameter not in names:
                continue
            d = names.index(parameter)
            x, y, g, z = ([c[:, d] for c in clips] for clips in (self.user, self.true, self.generated, self.other))
            values = [reaction.react_correlation(u, a, lag) for u, a in ((x, g), (x, y), (z, g))]
            self.react_row(f"react/{tag}", values, f"correlation at lag {lag} frames; {self.null_is}")
        if "pitch" in names:
            d = names.index("pitch")
            ends = [c.phrase_ends or () for c in self.clips]
            lengths = [len(c.user) for c in self.clips]
            if self.partner is not None:
                other: list[Sequence[int]] = [
                    [e for e in ends[j] if e < n] for j, n in zip(self.partner, lengths, strict=True)
                ]
            else:
                other = [[(e + n // 2) % n for e in mine] for mine, n in zip(ends, lengths, strict=True)]
            y, g = ([c[:, d] for c in clips] for clips in (self.true, self.generated))
            values = [reaction.react_nod(c, e) for c, e in ((g, ends), (y, ends), (g, other))]
            self.react_row(
                "react/nod", values, f"pitch in the 1 s after the user's phrase ends − elsewhere; {self.null_is}"
            )

    def react_row(self, tag: str, values: list[reaction.React], protocol: str) -> None:
        """Mean ± standard error over sessions, of generated, true and null."""
        own, true, null = values
        for clip, value in zip(self.clips, own.values, strict=True):
            self.per_clip[clip.name][tag] = float(value)
        error = own.standard_error
        self.interval(tag, mean_sums(own.values), finish_mean)
        self.rows.append(
            MetricRow(
                tag,
                own.mean,
                Interval(own.mean - 1.96 * error, own.mean + 1.96 * error, error) if np.isfinite(error) else None,
                int(np.isfinite(own.values).sum()),
                true.mean,
                null.mean,
                f"{protocol}; ± standard error over sessions; {self.face.tracker}, 25 fps",
                "true",
                error,
                true.standard_error,
                null.standard_error,
                note="" if np.isfinite(own.mean) else "undefined: nothing varies or no phrase ends inside a clip",
            )
        )

    def lips(self) -> None:
        """Lips against sound and against the true lips."""
        mouth = next((self.face.names.index(n) for n in MOUTH_NAMES if n in self.face.names), None)
        if mouth is None:
            return
        true, own = ([c[:, mouth] for c in clips] for clips in (self.true, self.generated))
        if any(c.avatar_audio is not None for c in self.clips):
            lag = self.protocol.lip_max_lag
            silence = np.zeros(0)  # a clip without sound has no curve and does not count
            audio = [silence if c.avatar_audio is None else np.asarray(c.avatar_audio, np.float64) for c in self.clips]
            other = [lipsync.shifted(a) for a in audio]
            sums = {
                key: coupling.curve_sums(np.stack([lipsync.lip_curve(m, a, lag) for m, a in zip(*pair, strict=True)]))
                for key, pair in (("true", (true, audio)), ("generated", (own, audio)), ("null", (own, other)))
            }
            text = (
                f"{self.face.names[mouth]} vs 0–10 Hz envelope, voiced frames, lags ±{lag}; null: audio half a clip off"
            )
            self.curve_rows("lip", sums, lag, text, "higher")
        lag = self.protocol.mouth_max_lag
        wrong = (
            [fit_length(true[j], len(m)) for j, m in zip(self.partner, true, strict=True)]
            if self.partner is not None
            else [np.roll(m, len(m) // 2) for m in true]
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UndefinedMetricWarning)
            sums = {
                key: coupling.curve_sums(
                    np.stack([lipsync.mouth_corr(a, b, lag).correlation for a, b in zip(*pair, strict=True)])
                )
                for key, pair in (("true", (true, true)), ("generated", (true, own)), ("null", (wrong, own)))
            }
        text = f"generated vs true {self.face.names[mouth]}, lags ±{lag}; null: mouth of another clip"
        self.curve_rows("mouth", sums, lag, text, "higher")

    def smoothness(self, name: str, part: slice) -> None:
        """Jerk, and border ratio where the block size is known."""
        y, g = ([c[:, part] for c in clips] for clips in (self.true, self.generated))
        block = self.protocol.block
        if block is not None:
            true, own = (
                np.stack([smoothness.border_sums(c, block, self.protocol.first_border) for c in clips])
                for clips in (y, g)
            )
            self.add(
                f"border_ratio/{name}",
                own,
                smoothness.border_from_sums,
                true=true,
                protocol=f"blocks of {block} frames",
            )
        true, own = (np.stack([smoothness.jerk_sums(c) for c in clips]) for clips in (y, g))
        self.add(f"jerk/{name}", own, finish_mean, true=true, protocol="units/s³")
