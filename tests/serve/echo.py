"""An avatar made by hand whose reaction is known: it does what the user did `LAG` frames ago, if it sees them.

Its autoencoder reads drawn faces with the shipped tracker and draws them again; its denoiser's velocity leads from any
noise to the user's past motion in one step.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from af.images import image_array, image_tensor
from af.models.speech import LogMel
from af.models.tracker import load_tracker
from af.nn.kv_cache import KeysValues, WindowLayout
from af.serve.puppet import Puppet
from af.synth.face import FACE_NAMES, FACE_RANGES
from af.synth.render import render
from af.types import Condition, Identity

LAG, BLOCK, SIZE = 8, 5, 64
WIDTH = len(FACE_NAMES)
LOW, HIGH = (np.array(limits, np.float32) for limits in zip(*FACE_RANGES.values(), strict=True))


class Drawn(nn.Module):
    """In place of a motion autoencoder: motion is the face's parameters."""

    image_size, latent_dim = SIZE, WIDTH

    def __init__(self) -> None:
        super().__init__()
        self.tracker = load_tracker()
        self.appearance = Puppet(5, SIZE).appearance

    def motion(self, image: Tensor, *, check: bool = True) -> Tensor:
        return torch.from_numpy(self.tracker.track(image_array(image)))

    def identity(self, image: Tensor, *, check: bool = True) -> Identity:
        return Identity(self.motion(image), ())

    def reference_motion(self, identity: Identity) -> Tensor:
        return identity.code

    def decode(self, identity: Identity, motion: Tensor) -> Tensor:
        faces = np.clip(motion.flatten(0, 1).numpy(), LOW, HIGH)
        return image_tensor(render(faces, self.appearance, SIZE)).unflatten(0, motion.shape[:2])


@dataclass(frozen=True)
class Plain:
    """A motion space without conversion."""

    latent_dim: int = WIDTH

    def to_model(self, motion: Tensor) -> Tensor:
        return motion

    def from_model(self, x: Tensor) -> Tensor:
        return x


class Times:
    def frames(self, index: Tensor) -> Times:
        return self


@dataclass(frozen=True)
class Plan:
    rope: Plan | None = None
    turns: Tensor = torch.zeros(1, 1, dtype=torch.complex64)  # noqa: RUF009 (never changed)


class Echo(nn.Module):
    """In place of a denoiser: the user's motion, `LAG` frames later."""

    causal_condition, dim, hidden, heads = True, WIDTH, WIDTH, 1
    layout = WindowLayout(BLOCK, 0, 4 * BLOCK, 0)
    motion_space = Plain()

    def __init__(self) -> None:
        super().__init__()
        self.device_of = nn.Parameter(torch.zeros(1))

    def condition(self, avatar_audio: Tensor, user_audio: Tensor, user_motion: Tensor) -> Condition:
        return Condition(avatar_audio, user_audio, user_motion)

    def embed_reference(self, reference: Tensor) -> Tensor:
        return reference[:, None]

    def embed(self, noisy: Tensor, reference: Tensor) -> Tensor:
        return noisy

    def modulation(self, flow_time: Tensor) -> Times:
        return Times()

    def encode_condition(self, condition: Condition, first_position: int = 0) -> Tensor:
        motion = condition.user_motion
        return torch.cat((torch.zeros_like(motion[:, :1]).expand(-1, LAG, -1), motion), 1)[:, : motion.shape[1]]

    def condition_keys(self, vectors: Tensor) -> list[KeysValues]:
        return [KeysValues(vectors[:, None], vectors[:, None])]

    def plans(self, frames: Tensor, keys: Tensor, condition: Tensor) -> list[Plan]:
        return [Plan(Plan())]

    def velocity(self, x, modulation, condition, plans, past=None, newest=None) -> Tensor:
        target = condition[0].keys[:, 0]
        return target[:, -newest:] - x[:, -newest:]

    def keys_values(self, x, modulation, condition, plans, past=None) -> list[KeysValues]:
        empty = torch.zeros(len(condition[0].keys), 1, x.shape[1], 2)
        return [KeysValues(empty, empty)]


@dataclass(frozen=True)
class EchoAvatar:
    """What a `Service` needs of `af.Avatar`."""

    autoencoder: Drawn
    denoiser: Echo
    features: LogMel

    device, anchored = torch.device("cpu"), True

    def identity(self, portrait: np.ndarray) -> tuple[Identity, Tensor]:
        with torch.inference_mode():
            identity = self.autoencoder.identity(image_tensor(portrait[None]))
            return identity, identity.code


def echo() -> EchoAvatar:
    return EchoAvatar(Drawn(), Echo(), LogMel(dim=WIDTH, hops=1, block_frames=BLOCK, window_frames=4 * BLOCK))
