"""Which metric sees which fault: controlled degradations of synthetic conversations against every metric.

    python experiments/003_metric_calibration/run.py

A perfect model gives another sample, not a copy: every fault is built into "another sample", which has the true lips,
head beats and reactions, but blinks, gaze, sway and own smiles of somebody else. A fault is seen when a metric moves from
that sample's value by at least three bootstrap standard errors of the difference (the same sessions drawn on both sides).
"a third sample" has no fault: what it triggers is a false alarm. Stopped? The same command goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from conditions import BASE, BLIND, CONDITIONS, LEAST_IN_FOLD, Condition, Material, Motion, person
from jaxtyping import Float, UInt8
from report import METRICS, write
from rich.progress import track
from scipy.ndimage import gaussian_filter

import af
from af.evaluation.extractors import thumbnail
from af.files import atomic_path
from af.images import image_tensor
from af.metrics import evaluate_clips, families, two_sample
from af.metrics.bootstrap import bootstrap_values, finish_mean, mean_sums
from af.metrics.frechet import distance_from_sums, gaussian_sums, kernel_distance
from af.metrics.likeness import csim, l1, psnr, ssim
from af.metrics.reaction import ReactionGain, ReactionModel
from af.metrics.records import EvaluationClip, Protocol, digest
from af.metrics.smoothness import sharpness
from af.synth.face import FACE_SPEC
from af.synth.render import render

FRAMES, SIZE = 100, 64  # of the rendered clips
COARSE, FINE = thumbnail(4), thumbnail(8)
#: Conditions whose reaction gain is shown by lag.
BY_LAG = (BASE, "reactions 0.4 s late", BLIND)


@dataclass(frozen=True)
class Settings:
    """What decides the numbers, besides the code."""

    sessions: int
    rendered: int
    seed: int
    resamples: int


@dataclass(frozen=True)
class Result:
    """Of one condition: {tag: value, truth, null, better}, bootstrap draws by tag, the gain by lag where it is shown."""

    values: dict[str, dict]
    draws: dict[str, Float[np.ndarray, " R"]]
    by_lag: list[list[float]] | None

    def save(self, path: Path) -> None:
        """Written whole or not at all."""
        header = np.array(json.dumps([self.values, self.by_lag]))
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, header=header, **self.draws)

    @classmethod
    def load(cls, path: Path) -> Result:
        """What `save` wrote."""
        with np.load(path, allow_pickle=False) as file:
            values, by_lag = json.loads(str(file["header"]))
            return cls(values, {tag: file[tag] for tag in file.files if tag != "header"}, by_lag)


class Laboratory:
    """The material, and what is computed once for all conditions: fits on the truth, true pictures."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.material = Material.make(settings.sessions, settings.seed)
        protocol = Protocol(
            block=10, clusters=((40, 20),), resamples=settings.resamples, seed=settings.seed, gain_bands=()
        )
        self.metrics = families(protocol)
        for metric in self.metrics:
            if isinstance(metric, two_sample.TwoSample):
                metric.alone = False  # no classifier of single parameters, whose rows are not among METRICS
        self.known: dict[str, tuple[dict, dict]] = {}
        self.true_pictures: list[UInt8[np.ndarray, "T Y X 3"]] = []
        for session in track(self.material.sessions[: settings.rendered], description="true pictures"):
            self.true_pictures.append(render(session.b.face[:FRAMES], session.b.appearance, SIZE))

    def measure(self, condition: Condition) -> Result:
        """Every metric under one condition; of motion that is known already (faults of the pictures), only theirs."""
        motions = [condition.motion(self.material, i, self.settings.seed) for i in range(self.settings.sessions)]
        motion = digest(np.stack(motions))
        if motion not in self.known:
            self.known[motion] = self.faces(motions)
        values, draws = (dict(part) for part in self.known[motion])
        by_lag = None
        if condition.name in BY_LAG and (model := self.gain_model()):
            bands = model.gain_by_lag(motions)
            by_lag = [[(lo + hi - 1) / 50 for lo, hi, _ in bands], [g for *_, g in bands]]
        self.pictures(condition, motions, values, draws)
        return Result(values, draws, by_lag)

    def gain_model(self) -> ReactionModel | None:
        """The regressors of the reaction gain, fitted on the truth."""
        model = next(metric.model for metric in self.metrics if isinstance(metric, ReactionGain))
        return model if model is not None and model.usable else None

    def faces(self, motions: Sequence[Motion]) -> tuple[dict, dict]:
        """Values and draws of the metrics of face parameters."""
        seed, resamples = self.settings.seed, self.settings.resamples
        clips = [
            EvaluationClip(
                person(i), person(i), s.a.face, s.b.face, motion, FACE_SPEC, s.b.audio, s.a.audio, s.a.phrase_ends
            )
            for i, (s, motion) in enumerate(zip(self.material.sessions, motions, strict=True))
        ]
        report = evaluate_clips(clips, metrics=self.metrics)
        values = {
            row.tag: {"value": row.value, "truth": row.ground_truth, "null": row.null, "better": row.better}
            for row in report.rows
            if row.tag in METRICS and row.tag in report.draws
        }
        draws = {tag: report.draws[tag] for tag in values}
        if model := self.gain_model():
            model.shift = "user"
            literal, truth = (model.gain(m, resamples) for m in (motions, [s.b.face for s in self.material.sessions]))
            values["reaction_gain/user"] = {
                "value": literal.value,
                "truth": truth.value,
                "null": None,
                "better": "true",
            }
            draws["reaction_gain/user"] = literal.draws(resamples, seed)
            model.shift = "increment"
        return values, draws

    def pictures(self, condition: Condition, motions: Sequence[np.ndarray], values: dict, draws: dict) -> None:
        """Metrics of drawn frames. The embedder of `csim` is a stand-in (centred thumbnails), not a face network."""
        columns: dict[str, list[float]] = {}
        sums = []
        for i, true in enumerate(self.true_pictures):
            person = self.material.sessions[self.material.other(i) if condition.swap else i].b.appearance
            own = render(motions[i][:FRAMES].astype(np.float32), person, SIZE)
            if condition.blur:
                own = gaussian_filter(own, (0, condition.blur, condition.blur, 0))
            features = COARSE(true), COARSE(own)
            sums.append(np.concatenate([gaussian_sums(f) for f in features]))
            first, second = image_tensor(own), image_tensor(true)
            for tag, value in {
                f"kd_img/{COARSE.tag}": kernel_distance(features[0], features[1])[0],
                f"csim/{FINE.tag}": float(np.mean(csim(FINE(own) - 0.5, FINE(true[:1]) - 0.5))),
                "psnr": min(psnr(first, second), 99.0),
                "ssim": ssim(first, second),
                "l1": l1(first, second),
                "sharpness": float(sharpness(own).mean()),
            }.items():
                columns.setdefault(tag, []).append(value)
        dims, bootstrapped = 48, {"resamples": self.settings.resamples, "seed": self.settings.seed}
        if sums:
            tag, stacked = f"fd_img/{COARSE.tag}", np.stack(sums)
            value = float(distance_from_sums(stacked.sum(0), dims))
            values[tag] = {"value": value, "truth": 0.0, "null": None, "better": "lower"}
            draws[tag] = bootstrap_values(stacked, lambda s: distance_from_sums(s, dims), **bootstrapped)
        true_sharpness = float(np.mean([sharpness(p).mean() for p in self.true_pictures or ()] or [np.nan]))
        for tag, column in columns.items():
            kept = mean_sums(np.array(column))
            better = {"k": "lower", "l": "lower", "s": "higher", "c": "higher", "p": "higher"}[tag[0]]
            values[tag] = {"value": float(finish_mean(kept.sum(0))), "truth": None, "null": None, "better": better}
            if tag == "sharpness":
                values[tag] |= {"truth": true_sharpness, "better": "true"}
            draws[tag] = bootstrap_values(kept, finish_mean, **bootstrapped)


def code_digest() -> str:
    """Changes with the code that makes the numbers: results of other code are not mixed in."""
    package = Path(af.__file__).parent
    here = [Path(__file__).with_name(name) for name in ("run.py", "conditions.py")]
    files = [*here, *package.glob("metrics/*.py"), *package.glob("synth/*.py")]
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:10]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is missing, then write README.md's results, results.json and the plots."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, default=120, help="conversations of 16 s (default 120)")
    parser.add_argument("--rendered", type=int, default=32, help="how many of them are drawn (default 32)")
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("--resamples", type=int, default=2000, help="bootstrap draws (default 2000)")
    parser.add_argument("--cache", type=Path, default=Path("runs/metric_calibration"), help="results of conditions")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    args = parser.parse_args(arguments)
    if args.sessions < (least := LEAST_IN_FOLD * two_sample.FOLDS):
        parser.error(f"--sessions {args.sessions}: at least {least}")
    torch.set_num_threads(1)
    settings = Settings(args.sessions, args.rendered, args.seed, args.resamples)
    args.cache.mkdir(parents=True, exist_ok=True)
    stem = f"{code_digest()}-{settings.sessions}-{settings.rendered}-{settings.seed}-{settings.resamples}"
    paths = {c.name: args.cache / f"{stem}-{n:02d}.npz" for n, c in enumerate(CONDITIONS)}
    missing = [c for c in CONDITIONS if not paths[c.name].is_file()]
    if missing:
        laboratory = Laboratory(settings)
        for condition in track(missing, description="conditions"):
            laboratory.measure(condition).save(paths[condition.name])
    write(args.out, {name: Result.load(path) for name, path in paths.items()}, vars(settings))


if __name__ == "__main__":
    main()
