"""A package of one's own (tests/example_package) brings what configurations name; none of this project's files changes."""

from __future__ import annotations

import json
import re
import shutil
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from af.cli.main import main
from af.data.shards import ShardReader
from af.errors import UserError
from af.models.artifact import load_model
from tests.test_configs import ONE_STEP, SMALL

EXAMPLE = Path(__file__).parent / "example_package"
CONF = ["--config-dir", str(EXAMPLE / "af_example" / "conf")]
BLOCKS = ["features.block_frames=5", "features.window_frames=20"]


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """The package as pip leaves it: the folder, and what its pyproject.toml says about it."""
    site = tmp_path / "site"
    shutil.copytree(EXAMPLE / "af_example", site / "af_example")
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    about = site / f"af_example-{project['version']}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    lines = [
        line
        for group, points in project["entry-points"].items()
        for line in (f"[{group}]", *(f"{name} = {value}" for name, value in points.items()))
    ]
    (about / "entry_points.txt").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(site)
    yield about
    for name in [name for name in sys.modules if name.partition(".")[0] == "af_example"]:
        del sys.modules[name]


def af(*words: object) -> None:
    assert main([str(word) for word in words]) == 0, words


def test_what_the_docs_print_is_in_the_package():
    printed = re.findall(r"^```python\n(.*?)^```", (EXAMPLE.parents[1] / "docs/own_parts.md").read_text(), re.M | re.S)
    assert len(printed) == 4
    written = "".join(file.read_text() for file in (EXAMPLE / "af_example").glob("*.py"))
    for block in printed:
        assert block in written


def test_a_package_of_ones_own(installed, dyads, autoencoder_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    latents, run, models = tmp_path / "latents", tmp_path / "run", ["--autoencoder", autoencoder_folder]
    af("encode", "--data", dyads, *models, "--out", latents, "--workers", 1, *CONF, "features=loudness", *BLOCKS)
    index = ShardReader(latents / "train").index
    assert index.specs["audio"]["extractor"] == "loudness"

    small = [word for word in SMALL["denoiser"] if not word.startswith("features=")]
    af("train", "experiment=af_example", f"data.root={latents}", f"run={run}", *small, *ONE_STEP, *CONF)
    info = load_model(run / "export").info
    assert info["model"]["audio_feature_dim"] == info["features"]["dim"] == 4
    heard = float((tmp_path / "run.heard").read_text())
    loudest = max(np.abs(ShardReader(latents / "train").read_rows(i, f"{role}.audio.npy", 0, s.frames)).max()
                  for i, s in enumerate(index.samples) for role in "ab")  # fmt: skip
    assert 0 < heard <= loudest / 2

    af("losers", "--data", latents, "--denoiser", run, "--out", tmp_path / "losers", *CONF, "losers=still")
    rows = ShardReader(tmp_path / "losers" / "train").read_rows(0, "a.motion.npy", 0, 20)
    assert np.ptp(rows, axis=0).max() == 0

    models += ["--denoiser", run / "export"]
    table, nods = tmp_path / "table", "evaluation.metrics=[{_target_:af_example.metrics.Nods,level:0.4}]"
    few = ["evaluation.steps=1", "evaluation.limit=1", "evaluation.videos=1", "evaluation/tracker=brightness", nods]
    af("evaluate", *models, "--data", latents / "test", "--out", table, *CONF, *few)
    by_tracker = ["evaluation/tracker=brightness", nods, "evaluation.protocol.block=5"]
    af("compare", table / "manifest.csv", "--out", tmp_path / "compared", *CONF, *by_tracker)
    for folder in (table, tmp_path / "compared"):
        numbers = json.loads((folder / "metrics.json").read_text())
        assert numbers["nods/count"] is not None
        assert numbers["protocol"]["nods/count"].startswith("pitch above 0.4; af_example/1")
    af("shards", "extract", latents / "test", "--sample", 0, "--out", tmp_path / "clip")
    clip = tmp_path / "clip"
    inputs = [
        "--portrait",
        clip / "avatar.png",
        "--avatar-audio",
        clip / "avatar.wav",
        "--user-video",
        clip / "user.mp4",
    ]
    af("generate", *models, *inputs, "--no-crop", "--seconds", 1, "--steps", 1, "--out", tmp_path / "avatar.mp4")
    assert (tmp_path / "avatar.mp4").stat().st_size > 0


def test_without_its_entry_point_nothing_of_it_is_built_from_a_folder(
    installed, denoiser_folder, tmp_path, monkeypatch
):
    """A command may name any class; a model folder only those that an installed package has registered."""
    folder = shutil.copytree(denoiser_folder, tmp_path / "model")
    description = json.loads((folder / "model.json").read_text())
    description["features"] = {"_target_": "af_example.features.Loudness"}
    (folder / "model.json").write_text(json.dumps(description))
    load_model(folder)
    (installed / "entry_points.txt").unlink()
    sys.modules.pop("af_example.features", None)
    with pytest.raises(UserError, match="may be built from a file"):
        load_model(folder)
    assert "af_example.features" not in sys.modules
