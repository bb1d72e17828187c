"""Live sessions of a loaded avatar: its models connected to `af.forcing.stream`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import psutil
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


_had = _gave = 0  # torch's number of threads before and after the limit


def free_cores(seconds: float = 0.1, spared: int = 0) -> int:
    """Cores of this process that nothing else used for `seconds`, rounded, but `spared`; at least one."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    before = time.process_time()
    busy = psutil.cpu_percent(seconds, percpu=True)
    own = (time.process_time() - before) / seconds
    idle = sum(1 - busy[core] / 100 for core in allowed if core < len(busy))
    return max(1, min(len(allowed), round(idle + own) - spared))


def use_free_cores(spared: int = 0) -> int:
    """Limit torch's threads to the free cores but `spared`, unless OMP_NUM_THREADS or MKL_NUM_THREADS sets their number,
    which is returned. A thread that waits for a core holds up all the others.
    """
    global _had, _gave
    if not os.environ.keys() & {"OMP_NUM_THREADS", "MKL_NUM_THREADS"}:
        if torch.get_num_threads() != _gave:  # set by the user
            _had = torch.get_num_threads()
        torch.set_num_threads(_gave := min(_had, free_cores(spared=spared)))
    return torch.get_num_threads()
