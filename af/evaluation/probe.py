"""Probes of motion latents: what they contain, what they do not, and whether they move as smoothly as the face.

All probes are linear (ridge) and evaluated on people left out of the fit. Each has a null (input and target decoupled)
and, where meaningful, a reference: the same probe on the true face parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image

from af.console import doing
from af.data.generated import png_metadata
from af.data.index import Index
from af.data.shards import ShardReader
from af.errors import UserError
from af.evaluation import transfer
from af.evaluation.reconstruction import reconstruction_rows
from af.evaluation.transfer import COLOURS, SHAPES, synthetic_person
from af.files import atomic_path
from af.images import image_array, image_tensor
from af.metrics.arrays import r_squared
from af.metrics.likeness import psnr
from af.metrics.records import MetricRow
from af.metrics.ridge import fit_ridge
from af.models.autoencoder import MotionAutoencoder
from af.models.tracker import FaceTracker
from af.pipeline.side_by_side import enlarged
from af.synth.face import FACE_NAMES, FACE_SPEC
from af.types import Identity

STEPS = (-3.0, -1.5, 0.0, 1.5, 3.0)
ROWS_SHOWN = 8
_FOLDS = 4
_BATCH = 32


@dataclass(frozen=True)
class Person:
    """One person's encoded video and its ground truth."""

    coefficients: Float[np.ndarray, "T K"]
    codes: Float[np.ndarray, "T D"]
    face: Float[np.ndarray, "T P"]
    appearance: Float[np.ndarray, " A"]
    portrait: UInt8[np.ndarray, "Y X 3"]


@torch.inference_mode()
def read_people(
    model: MotionAutoencoder, index: Index, conversations: int, frames: int, advance: Callable[[], None] = lambda: None
) -> list[Person]:
    """Read the first `frames` frames of both people in the first conversations. Raises UserError unless synthetic."""
    reader, directions = ShardReader(index), model.directions()
    device = directions.device
    people = []
    for i in range(min(conversations, len(index.samples))):
        clip = reader.read(i, {"video", "face"})
        for role in index.samples[i].roles:
            video, face, looks = synthetic_person(index, clip, role)
            identities = [
                model.identity(image_tensor(video[:frames][t : t + _BATCH], device), check=False)
                for t in range(0, min(frames, len(video)), _BATCH)
            ]
            codes = torch.cat([identity.code for identity in identities])
            motion = torch.cat([model.reference_motion(identity) for identity in identities])
            people.append(
                Person(
                    (motion @ directions).cpu().double().numpy(),
                    codes.cpu().double().numpy(),
                    face[:frames].astype(np.float64),
                    np.concatenate([np.atleast_1d(getattr(looks, name)) for name in (*COLOURS, *SHAPES)]),
                    video[0],
                )
            )
            advance()
    if len(people) < 2 * _FOLDS:
        raise UserError(f"{index.folder}: probes need at least {_FOLDS} conversations, found {len(people) // 2}")
    return people


def probe_r2(inputs: Sequence[np.ndarray], targets: Sequence[np.ndarray]) -> Float[np.ndarray, " O"]:
    """Cross-validated R² of each target on people left out of the fit; one array of rows per person."""
    found = []
    for fold in range(_FOLDS):
        fitted = [n for n in range(len(inputs)) if n % _FOLDS != fold]
        x, y = (np.concatenate([side[n] for n in fitted]) for side in (inputs, targets))
        weights, offset = fit_ridge(x, y)
        found += [(n, inputs[n] @ weights + offset) for n in range(fold, len(inputs), _FOLDS)]
    predictions = [rows for _, rows in sorted(found, key=lambda pair: pair[0])]
    return r_squared(np.concatenate(list(targets)), np.concatenate(predictions))


def identity_from(people: Sequence[Person], inputs: Sequence[np.ndarray]) -> float:
    """Mean R² of colours and proportions read from one frame's `inputs`, on unseen people."""
    targets = [np.tile(p.appearance, (len(rows), 1)) for p, rows in zip(people, inputs, strict=True)]
    return float(np.nanmean(probe_r2(inputs, targets)))


def recognised(inputs: Sequence[np.ndarray]) -> float:
    """Accuracy of a linear classifier of the person, fitted on the first half and tested on the last quarter of each
    video. The head's posture in a conversation helps it, so compare it with the accuracy on true faces.
    """
    first = [rows[: len(rows) // 2] for rows in inputs]
    last = [rows[len(rows) - len(rows) // 4 :] for rows in inputs]
    names = np.eye(len(inputs))
    everything = np.concatenate(first)
    scale = everything.std(0) + 1e-12
    weights, offset = fit_ridge(everything / scale, np.repeat(names, [len(rows) for rows in first], 0))
    truth: Int[np.ndarray, " N"] = np.repeat(np.arange(len(inputs)), [len(rows) for rows in last])
    return float(((np.concatenate(last) / scale @ weights + offset).argmax(1) == truth).mean())


def motion_from_codes(people: Sequence[Person], inputs: Sequence[np.ndarray], *, other: int = 0) -> float:
    """Mean R² of a frame's coefficients read from `inputs` of another frame, half a video away.

    With `other` that frame is from another person (this many further on), for the null.
    """
    targets = [people[(n + other) % len(people)].coefficients for n in range(len(people))]
    shifted = [np.roll(rows, len(rows) // 2, 0)[: len(inputs[n])] for n, rows in enumerate(targets)]
    return float(np.nanmean(probe_r2(inputs, shifted)))


def roughness(tracks: Sequence[Float[np.ndarray, "T C"]]) -> float:
    """Mean absolute second over first difference, per coefficient in units of its spread."""
    scale = np.concatenate(list(tracks)).std(0) + 1e-12
    first, second = (np.concatenate([np.diff(t / scale, order, axis=0) for t in tracks]) for order in (1, 2))
    return float(np.abs(second).mean() / np.abs(first).mean())


@torch.inference_mode()
def traversal(
    model: MotionAutoencoder, people: Sequence[Person], steps: Sequence[float]
) -> UInt8[np.ndarray, "K S Y X 3"]:
    """The first person with each coefficient in turn moved by `steps` standard deviations from the portrait's."""
    portrait = image_tensor(people[0].portrait[None], model.direction_weight.device)
    identity: Identity = model.identity(portrait)
    spread = torch.from_numpy(np.concatenate([p.coefficients for p in people]).std(0)).float().to(portrait.device)
    offsets = torch.tensor(steps, device=portrait.device)[None, :, None] * torch.diag(spread)[:, None]
    motion = model.reference_motion(identity) + offsets @ model.directions().T  # (K, S, D)
    images = model.decode(identity, motion.flatten(0, 1)[None], chunk_frames=_BATCH)[0]
    return image_array(images).reshape(*motion.shape[:2], *people[0].portrait.shape)


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
        people = read_people(self.model, self.index, self.conversations, self.frames, advance)
        with doing("transferring motion"):
            rows = [r for r in reconstruction_rows(self.model, self.index, seed=self.seed) if r.tag in ("psnr", "ssim")]
            rows += self.transfer_rows()
        return rows + probe_rows(people), self.directions(people)

    def transfer_rows(self) -> list[MetricRow]:
        """One person's motion on another's portrait, compared with the true image."""
        pairs = transfer.draw_pairs(self.index, self.pairs, seed=self.seed)
        made, right = transfer.transfer(self.model, pairs.portraits, pairs.driving), pairs.truth
        step = max(1, len(made) // ROWS_SHOWN)  # different portraits, as many as there are
        save_grid(self.out / "transfer.png", [c[::step] for c in (pairs.portraits, pairs.driving, made, right)])
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
        parts = {"colours": COLOURS, "proportions": SHAPES} | {name: (name,) for name in spread}
        for tag, members in parts.items():
            joined = [np.concatenate([found[m] for m in members], 1) for found in errors]
            rows.append(
                row(f"identity/{tag}", [float(np.sqrt(np.square(e).mean())) for e in joined], protocol, "lower")
            )
        return rows

    def directions(self, people: Sequence[Person]) -> str:
        """Save the portrait with each direction in turn; returns what it moves most, in standard deviations."""
        images = traversal(self.model, people, STEPS)
        save_grid(self.out / "directions.png", list(images.swapaxes(0, 1)), rows=len(images))
        spread = np.concatenate([p.face for p in people]).std(0)
        lines = [f"What each direction moves (from {STEPS[0]:g} to {STEPS[-1]:g} of its standard deviations):", ""]
        for k, row in enumerate(images):
            tracked = self.tracker.track(row)
            change = (tracked[-1] - tracked[0]) / spread
            largest = np.argsort(-np.abs(change))[:3]
            lines.append(f"- {k}: " + ", ".join(f"{FACE_NAMES[i]} {change[i]:+.1f}" for i in largest))
        return "\n".join(lines)


def probe_rows(people: Sequence[Person]) -> list[MetricRow]:
    """Rows of linear probes on motion and identity code, and of the coefficients' smoothness."""
    motion, faces, codes = ([getattr(p, name) for p in people] for name in ("coefficients", "face", "codes"))
    count, half, held_out = len(people), len(people) // 2, "R² on people left out"
    strangers = motion[half:] + motion[:half]
    read = probe_r2(motion, faces)
    rows = [
        MetricRow(f"probe/face_from_motion/{name}", value, n=count, protocol=held_out, better="higher")
        for name, value in zip(("mean", *FACE_NAMES), (float(read.mean()), *read.tolist()), strict=True)
    ]
    from_faces, from_another = "truth: from the true face parameters", "null: another person's motion"
    measured = (
        ("probe/identity_from_motion", *(identity_from(people, x) for x in (motion, faces, strangers)),
         f"{held_out}; {from_faces}; {from_another}", "lower"),
        ("probe/person_named_from_motion", recognised(motion), recognised(faces), 1 / count,
         f"share of frames; {from_faces}; null: chance", "lower"),
        ("probe/motion_from_code", motion_from_codes(people, codes), motion_from_codes(people, faces),
         motion_from_codes(people, codes, other=half),
         f"{held_out}, from another frame half a video away; truth: from its face; null: another person's", "lower"),
        ("smoothness/roughness", roughness(motion), roughness(faces), None,
         "|second| / |first difference| on video; truth: of the face parameters", "true"),
    )  # fmt: skip
    return rows + [
        MetricRow(tag, value, None, count, true, null, protocol, better)  # type: ignore[arg-type]
        for tag, value, true, null, protocol, better in measured
    ]


def save_grid(path: Path, columns: Sequence[np.ndarray], rows: int = ROWS_SHOWN) -> None:
    """Columns of images side by side, generated ones among them."""
    grid = np.concatenate([np.concatenate(list(column[:rows])) for column in columns], 1)
    with atomic_path(path) as temporary:
        Image.fromarray(enlarged(grid[None], rows * 128)[0]).save(temporary, format="PNG", pnginfo=png_metadata())


def _mean(values: Sequence[float] | np.ndarray) -> float:
    return float(np.nanmean(values))
