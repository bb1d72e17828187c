"""What the motion VAE alone loses: the tracker's reading of images of the true motion, against that of the true images,
and how well a classifier tells the two apart (`c2st/motion`, all parameters together and each alone).

python experiments/021_midpoint/truth.py --autoencoder af/serve/weights/autoencoder --data data/demo-latents-package/test
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from af.data.shards import ShardReader
from af.evaluation.extractors import tracked
from af.images import image_array, image_tensor
from af.metrics.two_sample import WINDOW, auc_from_sums, describe, held_out_scores, score_sums
from af.models.artifact import load_as
from af.models.autoencoder import MotionAutoencoder
from af.models.tracker import load_tracker


@torch.inference_mode()
def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--autoencoder", type=Path, required=True, help="model folder or run")
    parser.add_argument("--data", type=Path, required=True, help="a split with its latents")
    parser.add_argument("--conversations", type=int, default=64)
    args = parser.parse_args()
    model, _ = load_as(args.autoencoder, MotionAutoencoder)
    tracker, reader = load_tracker(), ShardReader(args.data)
    true, shown, people = [], [], []
    for n in tqdm(range(args.conversations)):
        person = reader.read(n, {"motion", "video"}).person("b")
        assert person.video is not None
        assert person.motion is not None
        identity = model.identity(image_tensor(person.video[:1]))
        motion = torch.from_numpy(np.asarray(person.motion, np.float32))
        images = [image_array(model.decode(identity, few[None])[0]) for few in motion.split(50)]
        people.append(reader.index.samples[n].participants[-1])
        true.append(tracked(tracker, person.video))
        shown.append(tracked(tracker, np.concatenate(images)))
    of_true, of_shown = np.stack(true), np.stack(shown)
    variance = of_shown.var(1).mean(0) / of_true.var(1).mean(0)
    speed = [np.median(np.abs(np.diff(faces, axis=1)), (0, 1)) for faces in (of_shown, of_true)]
    print("| | variance, of the true | median speed, of the true | classifier |\n| --- | ---: | ---: | ---: |")
    for n, (name, spread, moved, truly) in enumerate(zip(tracker.face_spec.names, variance, *speed, strict=True)):
        told = told_apart(of_shown[..., [n]], of_true[..., [n]], people)
        print(f"| {name} | {spread:.2f} | {moved / truly:.2f} | {told:.2f} |")
    print(f"| all | | | {told_apart(of_shown, of_true, people):.2f} |")


def told_apart(shown: np.ndarray, true: np.ndarray, people: Sequence[str]) -> float:
    """The classifier's AUC on windows of clips (N, T, P), as in `c2st/motion`."""
    starts = np.arange(0, true.shape[1] - WINDOW + 1, WINDOW)
    windows = ([describe(clip, starts) for clip in side] for side in (shown, true))
    return float(auc_from_sums(score_sums(*held_out_scores(*windows, people)).sum(0)))


if __name__ == "__main__":
    main()
