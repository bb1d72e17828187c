"""Two small models as training exports them, and what an evaluation of them writes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from af.data.provenance import SOURCES
from af.evaluation.table import write_metrics
from af.files import write_json
from af.metrics.records import MetricRow
from af.models.artifact import save_model
from af.pipeline.encode import motion_spec_of
from tests.toy_avatar import toy_avatar

SPACE = {"_target_": "af.models.motion_space.MotionSpace", "kind": "coefficients", "latent_dim": 8, "directions": 3}
AUTOENCODER = {
    "_target_": "af.models.autoencoder.MotionAutoencoder", "image_size": 16, "latent_dim": 8, "directions": 3,
    "channel_base": 64, "max_channels": 8,
}  # fmt: skip
DENOISER = {
    "_target_": "af.models.denoiser.MotionDenoiser", "motion_space": SPACE, "hidden": 16, "depth": 2, "heads": 2,
    "block_frames": 5, "look_ahead": 1, "window_frames": 20, "condition_dim": 8, "condition_heads": 2,
    "audio_feature_dim": 8,
}  # fmt: skip
FEATURES = {"_target_": "af.models.speech.LogMel", "dim": 8, "hops": 2, "block_frames": 5, "window_frames": 20}
DRAWN = {"dataset": "synthetic", "licence": "CC0-1.0", "consent": "shows no real people", "frames": 90_000}
FILMED = {"dataset": "Seamless Interaction", "licence": "CC-BY-NC-4.0", "consent": "unknown", "frames": 45_000}


def save_models(folder: Path, sources=(DRAWN,), **info) -> tuple[Path, Path]:
    """The folders of autoencoder and denoiser; `info` is added to the denoiser's description."""
    avatar = toy_avatar(torch.Generator().manual_seed(0))
    recipe = {"command": ["train", "experiment=x", "run=/home/ann/x", "seed=3"], "git_commit": "abc1", "changed": False}
    about = {"data": "/home/ann/shards", "recipe": recipe, "steps": 70, SOURCES: list(sources)}
    digest = save_model(folder / "vae", avatar.autoencoder, AUTOENCODER, {"stage": "vae", **about})
    specs = {
        "features": FEATURES,
        "feature_spec": avatar.features.spec.to_json(),
        "motion_spec": motion_spec_of(avatar.autoencoder, digest).to_json(),
    }
    save_model(folder / "denoiser", avatar.denoiser, DENOISER, {"stage": "denoiser", **about, **specs, **info})
    return folder / "vae", folder / "denoiser"


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> tuple[Path, Path]:
    return save_models(tmp_path_factory.mktemp("models"))


def evaluate(folder: Path, models: tuple[Path, Path]) -> Path:
    """What `af evaluate` writes of numbers."""
    from af.models.artifact import read_description

    settings = {"steps": 3, "guidance": {"audio": 1.5, "user": 1.0, "joint": 0.0}, "anchor": {"sink_frames": 2}}
    digests = {
        key: read_description(place)["sha256"] for key, place in zip(("autoencoder", "denoiser"), models, strict=True)
    }
    write_json(folder / "evaluation.json", {**settings, **digests})
    rows = [
        MetricRow(
            "react/smile", 0.25, n=8, ground_truth=0.3, null=0.01, standard_error=0.02, headline=True, protocol="a|b"
        ),
        MetricRow("lip/corr", 0.1, n=8, ground_truth=0.8, null=0.4, better="higher", headline=True),
        MetricRow("sid/exp", float("nan"), note="why"),
        MetricRow("latency/mean_ms", 280.7, n=3, better="lower", protocol="ms"),
    ]
    machine = {"processor": "Some CPU", "cores": 2, "gpus": []}
    write_metrics(folder, rows, {"people": "held out", "clips": 8, "machine": machine}, notes="## Remarks\n\n- `x`: y")
    return folder
