"""The rows and images of `af probe`: probes of a motion VAE's latents on synthetic people."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from af.console import doing
from af.data.index import Index
from af.evaluation import probe, transfer
from af.evaluation.reconstruction import reconstruction_rows
from af.files import atomic_path
from af.images import image_tensor
from af.metrics.arrays import r_squared
from af.metrics.likeness import psnr
from af.metrics.records import MetricRow
from af.models.autoencoder import MotionAutoencoder
from af.models.tracker import FaceTracker
from af.pipeline.side_by_side import enlarged
from af.synth.face import FACE_NAMES, FACE_SPEC

STEPS = (-3.0, -1.5, 0.0, 1.5, 3.0)
ROWS_SHOWN = 8


@dataclass(frozen=True)
class Probe:
    """A motion VAE, a synthetic split and its amount to read: `pairs`, `conversations`, `frames` per person."""

    model: MotionAutoencoder
    tracker: FaceTracker
    index: Index
    out: Path
    pairs: int = 128
    conversations: int = 32
    frames: int = 100
    seed: int = 0

    def run(self, advance: Callable[[], None] = lambda: None) -> tuple[list[MetricRow], str]:
        """All rows, and a text on what each direction moves; writes directions.png and transfer.png to `out`.

        `advance` is called once per person. Raises UserError when the split is not synthetic or too small.
        """
        people = probe.read_people(self.model, self.index, self.conversations, self.frames, advance)
        with doing("transferring motion"):
            rows = [r for r in reconstruction_rows(self.model, self.index, seed=self.seed) if r.tag in ("psnr", "ssim")]
            rows += self.transfer_rows()
        return rows + probe_rows(people), self.directions(people)

    def transfer_rows(self) -> list[MetricRow]:
        """One person's motion on another's portrait, compared with the true image."""
        pairs = transfer.draw_pairs(self.index, self.pairs, seed=self.seed)
        made, right = transfer.transfer(self.model, pairs.portraits, pairs.driving), pairs.truth
        step = max(1, len(made) // ROWS_SHOWN)  # different portraits, as many as there are
        _save_grid(self.out / "transfer.png", [c[::step] for c in (pairs.portraits, pairs.driving, made, right)])
        on = "motion on another's portrait; null: portrait unchanged"

        def row(tag: str, values: Sequence[float | None], protocol: str, better: str = "higher") -> MetricRow:
            value, true, null = values
            assert value is not None
            return MetricRow(f"transfer/{tag}", value, None, self.pairs, true, null, protocol, better)  # type: ignore[arg-type]

        likeness = [psnr(image_tensor(images), image_tensor(right)) for images in (made, pairs.portraits)]
        rows = [row("psnr", (likeness[0], None, likeness[1]), on)]
        read = [self.tracker.track(images) for images in (made, right, pairs.portraits)]
        groups = {"expression": slice(FACE_SPEC.expression), "pose": slice(FACE_SPEC.expression, None)}
        groups |= {name: slice(n, n + 1) for n, name in enumerate(FACE_NAMES)}
        for tag, truth, told in (
            ("r2", pairs.driving_faces, "truth"),
            ("agreement", read[1], "tracker's reading of the true image"),
        ):
            r2 = [r_squared(truth, faces) for faces in read]
            protocol = f"R² against the {told}, {self.tracker.face_spec.tracker}; {on}"
            rows += [row(f"{tag}/{n}", [_mean(x[chosen]) for x in r2], protocol) for n, chosen in groups.items()]
        spread = transfer.appearance_spread()
        shown = (made, transfer.with_faces_off(pairs, seed=self.seed), pairs.driving)
        errors = [transfer.identity_error(images, pairs, spread) for images in shown]
        protocol = (
            f"root mean square over portraits of the mean of {transfer.DRIVEN} images, in standard deviations between "
            f"people; truth: the right person, face parameters off by {transfer.FACES_OFF:.0%} of their range; "
            "null: the driving person shown"
        )
        parts = {"colours": transfer.COLOURS, "proportions": transfer.SHAPES} | {name: (name,) for name in spread}
        for tag, members in parts.items():
            joined = [np.concatenate([found[m] for m in members], 1) for found in errors]
            rows.append(
                row(f"identity/{tag}", [float(np.sqrt(np.square(e).mean())) for e in joined], protocol, "lower")
            )
        return rows

    def directions(self, people: Sequence[probe.Person]) -> str:
        """Save the portrait with each direction in turn; returns what it moves most, in standard deviations."""
        images = probe.traversal(self.model, people, STEPS)
        _save_grid(self.out / "directions.png", list(images.swapaxes(0, 1)), rows=len(images))
        spread = np.concatenate([p.face for p in people]).std(0)
        lines = [f"What each direction moves (from {STEPS[0]:g} to {STEPS[-1]:g} of its standard deviations):", ""]
        for k, row in enumerate(images):
            tracked = self.tracker.track(row)
            change = (tracked[-1] - tracked[0]) / spread
            largest = np.argsort(-np.abs(change))[:3]
            lines.append(f"- {k}: " + ", ".join(f"{FACE_NAMES[i]} {change[i]:+.1f}" for i in largest))
        return "\n".join(lines)


def probe_rows(people: Sequence[probe.Person]) -> list[MetricRow]:
    """Rows of linear probes on motion and identity code, and of the coefficients' smoothness."""
    motion, faces, codes = ([getattr(p, name) for p in people] for name in ("coefficients", "face", "codes"))
    count, half, held_out = len(people), len(people) // 2, "R² on people left out"
    strangers = motion[half:] + motion[:half]
    read = probe.probe_r2(motion, faces)
    rows = [
        MetricRow(f"probe/face_from_motion/{name}", value, n=count, protocol=held_out, better="higher")
        for name, value in zip(("mean", *FACE_NAMES), (float(read.mean()), *read.tolist()), strict=True)
    ]
    from_faces, from_another = "truth: from the true face parameters", "null: another person's motion"
    measured = (
        ("probe/identity_from_motion", *(probe.identity_from(people, x) for x in (motion, faces, strangers)),
         f"{held_out}; {from_faces}; {from_another}", "lower"),
        ("probe/person_named_from_motion", probe.recognised(motion), probe.recognised(faces), 1 / count,
         f"share of frames; {from_faces}; null: chance", "lower"),
        ("probe/motion_from_code", probe.motion_from_codes(people, codes), probe.motion_from_codes(people, faces),
         probe.motion_from_codes(people, codes, other=half),
         f"{held_out}, from another frame half a video away; truth: from its face; null: another person's", "lower"),
        ("smoothness/roughness", probe.roughness(motion), probe.roughness(faces), None,
         "|second| / |first difference| on video; truth: of the face parameters", "true"),
    )  # fmt: skip
    return rows + [
        MetricRow(tag, value, None, count, true, null, protocol, better)  # type: ignore[arg-type]
        for tag, value, true, null, protocol, better in measured
    ]


def _save_grid(path: Path, columns: Sequence[np.ndarray], rows: int = ROWS_SHOWN) -> None:
    """Columns of images side by side."""
    grid = np.concatenate([np.concatenate(list(column[:rows])) for column in columns], 1)
    with atomic_path(path) as temporary:
        Image.fromarray(enlarged(grid[None], rows * 128)[0]).save(temporary, format="PNG")


def _mean(values: Sequence[float] | np.ndarray) -> float:
    return float(np.nanmean(values))
