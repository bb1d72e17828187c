from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests import fake_device

# Autograd counts the devices at the first backward pass of a process, whichever test makes it.
fake_device.install()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, so that no worker is left alone with a long one at the end."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(scope="session")
def shared_folder() -> Path:
    """Material beside the checkout that is not ours to ship; tests that use it skip when it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("no ../shared beside the checkout")
    return folder


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    """Commands choose their threads; the last bit of a product depends on them, and other tests compare bits."""
    before = torch.get_num_threads()
    yield
    if torch.get_num_threads() != before:
        torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def no_closed_streams() -> None:
    """Logging set up while another test's output was captured would write an error into this one's."""
    for logger in (logging.root, logging.getLogger("hydra")):
        for handler in list(logger.handlers):
            if getattr(getattr(handler, "stream", None), "closed", False):
                logger.removeHandler(handler)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="module")
def one_thread():
    """This process computes as those that tests start with OMP_NUM_THREADS=1 do, to the last bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def avatar(generator: torch.Generator):
    """A small avatar with random weights: 16 px, blocks of 5 frames."""
    from tests.toy_avatar import toy_avatar

    return toy_avatar(generator)


@pytest.fixture(scope="session")
def dyads(tmp_path_factory) -> Path:
    """Synthetic conversations as shards: 3 to train on, 1 to validate, 2 to test; 4 s, 32 px."""
    from af.cli.main import main

    folder = tmp_path_factory.mktemp("dyads")
    sizes = ["--train", "3", "--val", "1", "--test", "2", "--seconds", "4", "--size", "32", "--workers", "1"]
    assert main(["synth", "--out", str(folder), *sizes]) == 0
    return folder


AUTOENCODER = {
    "_target_": "af.models.autoencoder.MotionAutoencoder",
    "image_size": 32,
    "latent_dim": 16,
    "directions": 6,
    "channel_base": 128,
    "max_channels": 16,
}
DENOISER = {
    "_target_": "af.models.denoiser.MotionDenoiser",
    "motion_space": {
        "_target_": "af.models.motion_space.MotionSpace",
        "kind": "coefficients",
        "latent_dim": 16,
        "directions": 6,
    },
    "hidden": 16,
    "depth": 2,
    "heads": 2,
    "condition_dim": 16,
    "condition_heads": 2,
    "block_frames": 5,
    "window_frames": 20,
    "audio_feature_dim": 64,
}
FEATURES = {"_target_": "af.models.speech.LogMel", "block_frames": 5, "window_frames": 20}


@pytest.fixture(scope="session")
def autoencoder_folder(tmp_path_factory) -> Path:
    """An untrained motion autoencoder of 32 px as a model folder."""
    from af.models.artifact import build, save_model

    folder = tmp_path_factory.mktemp("autoencoder")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build(AUTOENCODER)
        for parameter in model.parameters():  # flows start at zero: motion would move nothing
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.5)
    save_model(folder, model, AUTOENCODER, {"stage": "vae"})
    return folder


@pytest.fixture(scope="session")
def latents(tmp_path_factory, dyads, autoencoder_folder) -> Path:
    """The conversations with motion latents and audio features."""
    from af.pipeline.encode import encode

    folder = tmp_path_factory.mktemp("latents")
    encode(dyads, folder, autoencoder_folder, FEATURES)
    return folder


@pytest.fixture(scope="session")
def filmed(tmp_path_factory, latents) -> Path:
    """The conversations to test on as `af ingest` describes them: nothing is known about whom they show."""
    from dataclasses import replace

    from af.data.index import build_index
    from af.data.shards import ShardReader, write_shard

    folder, reader = tmp_path_factory.mktemp("filmed"), ShardReader(latents / "test")
    samples = []
    for i, entry in enumerate(reader.index.samples):
        meta = replace(reader.read_meta(i), dataset="own", separation="tracks", face_spec=None, extra={})
        known = [name for name in entry.members if name != "json" and not name.endswith("face.npy")]
        samples.append((entry.key, meta, {name: reader.read_bytes(i, name) for name in known}))
    write_shard(folder / "test" / "000000.tar", samples)
    build_index(folder / "test")
    return folder


@pytest.fixture(scope="session")
def denoiser_folder(tmp_path_factory, latents) -> Path:
    """An untrained denoiser for those latents as a model folder."""
    from af.data.index import Index
    from af.models.artifact import build, save_model
    from af.pipeline.encode import read_statistics, spec_of

    folder = tmp_path_factory.mktemp("denoiser")
    audio, motion = spec_of(Index.load(latents / "train"))
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = build(DENOISER)
        for parameter in model.parameters():  # the zero initialisation would generate nothing but noise
            torch.nn.init.normal_(parameter, std=0.1)
    model.motion_space.fit(read_statistics(latents))
    info = {
        "stage": "denoiser",
        "features": FEATURES,
        "feature_spec": audio.to_json(),
        "motion_spec": motion.to_json(),
    }
    save_model(folder, model, DENOISER, info)
    return folder


#: A source of losers.
DROP_USER = {"_target_": "af.pipeline.losers.WeakUser", "steps": 2}


@pytest.fixture(scope="session")
def losers(tmp_path_factory, latents, denoiser_folder) -> Path:
    """Losers of the conversations: the denoiser without the user's signals."""
    from af.pipeline.losers import make_losers

    folder = tmp_path_factory.mktemp("losers")
    make_losers(latents, folder, DROP_USER, denoiser=denoiser_folder)
    return folder


@pytest.fixture(scope="session")
def teacher(tmp_path_factory, latents, denoiser_folder) -> Path:
    """What the denoiser makes of the conversations with full guidance, for a student."""
    from af.forcing.guidance import Guidance
    from af.pipeline.teacher import make_teacher

    folder = tmp_path_factory.mktemp("teacher")
    make_teacher(latents, folder, denoiser_folder, guidance=Guidance(user=1.5), steps=2, seed=3)
    return folder
