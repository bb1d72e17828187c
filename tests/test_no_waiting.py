"""Roll-outs, steps and encoding ask the host for nothing: on `tests.fake_device` and torch's meta device."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from af.forcing.rollout import rollout
from af.forcing.solvers import SOLVERS
from af.models.artifact import build, load_model
from af.models.denoiser import for_inference
from af.models.speech import LogMel
from af.pipeline.encode import video_motion
from tests import fake_device
from tests.conftest import AUTOENCODER, DENOISER
from tests.test_devices import device, syncs

__all__ = ["device"]  # a fixture


def test_a_roll_out_waits_for_nothing_and_encoding_once_a_batch(autoencoder_folder, denoiser_folder, device):
    denoiser = load_model(denoiser_folder).model.to(device)
    drawn = torch.Generator().manual_seed(0)
    signals = (torch.randn(2, 30, size, generator=drawn).to(device) for size in (64, 64, 16))
    reference, noise = (torch.randn(2, *shape, generator=drawn).to(device) for shape in ((6,), (30, 6)))
    with torch.no_grad():
        condition = denoiser.condition(*signals)
        rollout(denoiser, condition, reference, steps=2, noise=noise)  # its schedule is on the device from now on
        copies = len(fake_device.State.copies)
        assert syncs(lambda: rollout(denoiser, condition, reference, steps=2, noise=noise)) == []
        assert fake_device.State.copies[copies:] == []
    autoencoder = load_model(autoencoder_folder).model.to(device)
    frames = np.zeros((10, 32, 32, 3), np.uint8)
    waited = syncs(lambda: video_motion(autoencoder, frames, batch=5))
    assert len(waited) == 2, waited
    assert all("copy from the device" in where for where in waited)


# What needs no number of the host also runs on torch's meta device


def test_steps_and_roll_outs_run_on_meta():
    """Nothing looks at a value, and nothing of the CPU is mixed in."""
    denoiser = build(DENOISER)
    denoiser.motion_space.fitted = True  # numbers do not matter
    autoencoder = build({**AUTOENCODER, "variational": True})
    denoiser.to("meta")
    autoencoder.to("meta")
    windows = torch.empty(2, 20, 64, device="meta"), torch.empty(2, 20, 16, device="meta")
    condition = denoiser.condition(windows[0], windows[0], windows[1])
    reference = torch.empty(2, 6, device="meta")
    velocity = denoiser(reference[:, None].expand(-1, 20, -1), torch.empty(2, 20, device="meta"), condition, reference)
    velocity.square().mean().backward()
    for solver in SOLVERS:
        motion = rollout(
            denoiser, condition, reference, steps=2, solver=solver, noise=torch.empty(2, 20, 6, device="meta")
        )
        assert (motion.device.type, motion.shape) == ("meta", (2, 20, 6))
    images = torch.empty(2, 3, 32, 32, device="meta")
    output = autoencoder(images, images, torch.empty(2, 6, device="meta"))
    output.image.abs().mean().backward()
    features = LogMel(block_frames=5, window_frames=20).to("meta")
    assert features.block(torch.empty(3, 8 * 640, device="meta")).shape == (3, 5, 64)


def test_packed_weights_do_not_move_silently():
    with pytest.raises(RuntimeError, match="packed"):
        for_inference(build(DENOISER)).to("meta")
