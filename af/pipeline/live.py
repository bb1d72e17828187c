"""Live sessions of a loaded avatar: its models connected to `af.forcing.stream`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from af.errors import UserError
from af.forcing.inputs import SpeechStream
from af.forcing.stream import LiveSession
from af.images import image_tensor
from af.models.speech import SpeechFeatures, block_window
from af.pipeline.avatar import Avatar
from af.pipeline.encode import face_crop
from af.pipeline.threads import use_free_cores


def speech_stream(features: SpeechFeatures) -> SpeechStream:
    """Streaming features for a session. Raises UserError for features of whole utterances."""
    spec = features.spec
    if spec.block_frames is None:
        raise UserError(
            f"features: {spec.extractor} in mode {spec.mode!r} reads a whole recording before its first frame; "
            "a live session needs a denoiser trained on mode 'streaming'"
        )
    return SpeechStream(features.block, partial(block_window, spec=spec), spec.block_frames, spec.right_context_frames)


def live_session(avatar: Avatar, reference: Float[Tensor, "1 D"], **options: Any) -> LiveSession:
    """A session that takes user frames: face crops at the autoencoder's size (see `af.FaceCropper`), or None.

    On a CPU, limits torch's threads to the cores free at this moment (`use_free_cores`). `options` as in `LiveSession`.
    Raises UserError for features of whole utterances.
    """
    if avatar.device.type == "cpu":
        use_free_cores()
    options.setdefault("encode_user", user_encoder(avatar))
    return LiveSession(avatar.denoiser, reference, speech_stream(avatar.features), **options)


def user_encoder(avatar: Avatar) -> Callable[[UInt8[np.ndarray, "Y X 3"]], Float[Tensor, " D"]]:
    """A function from one face crop of the user to a motion latent, which raises UserError for another size."""
    size = avatar.autoencoder.image_size

    def encode_user(frame: UInt8[np.ndarray, "Y X 3"]) -> Float[Tensor, " D"]:
        image = image_tensor(face_crop("user_frames", frame, size)[None], avatar.device)
        with torch.no_grad():
            return avatar.autoencoder.motion(image, check=False)[0]

    return encode_user
