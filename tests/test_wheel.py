"""A wheel works outside the checkout: configurations and shipped weights travel in it, one's own are found."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory) -> Path:
    """The wheel built from this checkout, unpacked as pip would; without hatchling at hand pip fetches it."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    if importlib.util.find_spec("hatchling"):
        build += ["--no-build-isolation", "--no-index"]
    subprocess.run([*build, "--wheel-dir", str(folder), str(ROOT)], check=True, timeout=300)
    (wheel,) = folder.glob("avatar_forcing-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def af(unpacked: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(unpacked)}
    command = [sys.executable, "-m", "af.cli.main", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


def test_it_is_the_wheel_that_runs(unpacked, tmp_path):
    code = "import af, af.cli.config as c; print(af.__file__); print(c.config_folder())"
    environment = {**os.environ, "PYTHONPATH": str(unpacked)}
    said = subprocess.check_output([sys.executable, "-c", code], cwd=tmp_path, env=environment, text=True).splitlines()
    assert all(Path(path).is_relative_to(unpacked) for path in said)


def test_the_wheel_carries_what_is_needed_and_nothing_else(unpacked):
    assert {f.name for f in unpacked.iterdir()} == {"af", "hydra_plugins", "avatar_forcing-0.1.0.dist-info"}
    for folder in ("conf", "af", "hydra_plugins"):
        theirs = unpacked / ("af/conf" if folder == "conf" else folder)
        for file in (ROOT / folder).rglob("*"):
            if file.suffix in (".py", ".yaml", ".html", ".safetensors", ".typed", ".png", ".wav", ".md"):
                assert (theirs / file.relative_to(ROOT / folder)).is_file(), file
    assert (unpacked / "af/py.typed").is_file()
    entry = (unpacked / "avatar_forcing-0.1.0.dist-info/entry_points.txt").read_text()
    assert "af = af.cli.main:main" in entry


def test_its_configurations_and_ones_own_compose_outside_the_checkout(unpacked, tmp_path):
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    own = "# @package _global_\ndefaults: [vae_demo]\nname: my_faces\nmodule: {lr: 0.123}\n"
    (tmp_path / "mine" / "experiment" / "my_faces.yaml").write_text(own)
    arguments = ["train", "--config-dir", "mine", "experiment=my_faces", "--print-config", "data.root=x"]
    done = af(unpacked, tmp_path, *arguments)
    assert done.returncode == 0, done.stderr
    assert "run: runs/my_faces" in done.stdout
    assert "lr: 0.123" in done.stdout
    assert "_target_: af.training.vae.VaeModule" in done.stdout


def test_its_shipped_tracker_loads(unpacked, tmp_path):
    code = "from af.models.tracker import load_tracker; print(load_tracker().face_spec.tracker)"
    environment = {**os.environ, "PYTHONPATH": str(unpacked)}
    said = subprocess.check_output([sys.executable, "-c", code], cwd=tmp_path, env=environment, text=True)
    assert said.strip()
