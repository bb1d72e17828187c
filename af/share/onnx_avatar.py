"""An exported avatar in the place of one on torch, for `af.forcing.stream` and `af live`: tensors in, tensors out."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, Final

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from af.data.container import Notes
from af.errors import UserError
from af.forcing.anchor import Anchor
from af.forcing.guidance import Guidance
from af.forcing.solvers import STEPS, UNNAMED, UNNAMED_SCHEDULE
from af.images import to_bytes, to_float
from af.models.artifact import Artifact
from af.nn.kv_cache import WindowLayout
from af.pipeline.avatar import Avatar
from af.share.export import export
from af.share.runtime import Face, Runtime
from af.share.runtime_sampler import SIGNALS, Rows
from af.specs import FeatureSpec
from af.types import Condition, Identity

_CPU: Final = torch.device("cpu")


def live_avatar(
    images: Artifact,
    motion: Artifact,
    sampling: Mapping[str, Any],
    *,
    device: torch.device | str = "cpu",
    precision: str | None = None,
    runtime: str = "auto",
    threads: int | None = None,
    notes: Notes | None = None,
) -> Avatar | OnnxAvatar:
    """Two models as an avatar for live sessions that are sampled so, on torch or ONNX Runtime with `threads`.

    `runtime` "auto" is ONNX Runtime on a CPU, where a small avatar is about twice as fast on it, if it is installed and
    can do what is asked for; otherwise torch, and `notes` gets the reason. Raises UserError for models that do not fit
    together, and when "onnx" cannot do it.
    """
    avatar = Avatar.of(images, motion, device, precision)
    able = avatar.device.type == "cpu" and precision is None
    if runtime == "onnx" and not able:
        raise UserError("--runtime onnx: without --precision, on the CPU")
    notes = Notes() if notes is None else notes
    if runtime == "torch" or not able:
        return avatar
    if runtime == "auto" and not (find_spec("onnx") and find_spec("onnxruntime")):
        notes.add("runtime", "torch computes, more slowly than ONNX Runtime: pip install 'avatar-forcing[export]'")
        return avatar
    try:
        with tempfile.TemporaryDirectory() as folder:
            about = export(images, motion, sampling, Path(folder))
            exported = Runtime(folder, threads)
            for graph in about["graphs"]:
                exported.load(graph)
    except UserError as error:
        if runtime == "onnx":
            raise
        notes.add("runtime", f"torch computes, not ONNX Runtime: {error}")
        return avatar
    return OnnxAvatar(exported)


class OnnxAvatar:
    """What `af.pipeline.avatar.Avatar` is for a live session."""

    device = _CPU
    anchored: ClassVar[bool] = False

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.autoencoder, self.denoiser, self.features = _Images(runtime), OnnxDenoiser(runtime), _Speech(runtime)

    def identity(self, portrait: UInt8[np.ndarray, "Y X 3"]) -> tuple[Identity, Float[Tensor, "1 L"]]:
        """As `Avatar.identity`."""
        face = self.runtime.face(portrait)
        code, *maps = map(torch.from_numpy, face.appearance.values())
        return Identity(code, tuple(maps)), torch.from_numpy(face.reference)


class _Images:
    """What `MotionAutoencoder` is for a live session."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime, self.image_size = runtime, runtime.image_size

    def motion(self, image: Float[Tensor, "1 3 Y X"], *, check: bool = True) -> Float[Tensor, "1 L"]:
        return torch.from_numpy(self.runtime.user_motion(to_bytes(image)[0].permute(1, 2, 0).numpy()))[None]

    def decode(self, identity: Identity, motion: Float[Tensor, "B T L"]) -> Float[Tensor, "B T 3 Y X"]:
        names = [given["name"] for given in self.runtime.about["graphs"]["decoder"]["inputs"]][1:]
        made = []
        for row in range(len(motion)):
            parts = [part[row : row + 1].numpy() for part in (identity.code, *identity.features)]
            face = Face(np.zeros(0, np.float32), dict(zip(names, parts, strict=True)))
            made.append(np.stack(list(self.runtime.frames(face, [motion[row : row + 1].numpy()]))))
        return to_float(torch.from_numpy(np.stack(made)).permute(0, 1, 4, 2, 3))


class _Speech:
    """What `SpeechFeatures` is for a live session."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime, self.spec = runtime, FeatureSpec.from_json(runtime.about["feature_spec"])

    def block(self, windows: Float[Tensor, "1 S"]) -> Float[Tensor, "1 T F"]:
        return torch.from_numpy(self.runtime.speech_of(windows[0].numpy()))[None]


class _Space:
    """What `MotionSpace` is for a live session."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.latent_dim = runtime.shape("latent", "latents")[2]

    def to_model(self, motion: Float[Tensor, "1 L"]) -> Float[Tensor, "1 M"]:
        return torch.from_numpy(self.runtime.run("model", motion.float().numpy())[0])

    def from_model(self, x: Float[Tensor, "1 *t M"]) -> Float[Tensor, "1 *t L"]:
        rows = x.reshape(-1, x.shape[-1]).numpy()
        whole = np.zeros(self.runtime.shape("latent", "motion"), np.float32)
        whole[0, : len(rows)] = rows
        latents = self.runtime.latents(whole)[0, : len(rows)]
        return torch.from_numpy(latents).reshape(*x.shape[:-1], -1)


class OnnxDenoiser:
    """What `MotionDenoiser` is for a live session: conditions are raw signals, and the samplers are its own."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime, self.layout = runtime, WindowLayout(**runtime.about["layout"])
        self.motion_space = _Space(runtime)

    def condition(self, *signals: Tensor | None) -> Condition:
        """The raw signals; zeros for those that are dropped."""
        frames = next(len(signal[0]) for signal in signals if signal is not None)
        widths = [self.runtime.shape("condition", name)[2] for name in SIGNALS]
        return Condition(
            *(torch.zeros(1, frames, n) if s is None else s.float() for s, n in zip(signals, widths, strict=True))
        )

    def sampler(self, reference: Float[Tensor, "1 M"], **sampling: Any) -> OnnxSampler:
        """A roll-out; `sampling` as in `BlockSampler`."""
        return OnnxSampler(self, reference, **sampling)


class OnnxSampler:
    """What `BlockSampler` is for a live session."""

    def __init__(
        self,
        denoiser: OnnxDenoiser,
        reference: Float[Tensor, "1 M"],
        *,
        steps: int = STEPS,
        guidance: Guidance = Guidance(),  # noqa: B008 (frozen)
        anchor: Anchor = Anchor(),  # noqa: B008 (frozen)
        schedule: str = UNNAMED_SCHEDULE,
        solver: str = UNNAMED,
        dead_band: float = 0.0,
    ) -> None:
        if anchor != Anchor():
            raise UserError("exports are sampled without an anchor")
        self.denoiser, self.layout = denoiser, denoiser.layout
        chosen: dict[str, Any] = {"solver": solver, "schedule": schedule, "guidance": guidance, "dead_band": dead_band}
        self._inner = denoiser.runtime.sampler(denoiser.runtime.rest, steps=steps, **chosen)
        self.change_reference(reference)

    @property
    def state(self) -> Any:
        """The portrait's motion, and the block that waits to be cached."""
        return SimpleNamespace(portrait=torch.from_numpy(self._inner.reference), pending=self._inner.pending)

    @property
    def frames(self) -> int:
        """Frames so far."""
        return self._inner.frames

    @frames.setter
    def frames(self, count: int) -> None:
        self._inner.frames = count

    def step(self, condition: Condition, noise: Float[Tensor, "1 T M"]) -> Float[Tensor, "1 T M"]:
        """The next block."""
        return torch.from_numpy(self._inner.step(*_rows(condition), noise=noise.numpy()))

    def give(self, condition: Condition, motion: Float[Tensor, "1 T M"]) -> None:
        """Append existing motion."""
        self._inner.give(*_rows(condition), motion=motion.numpy())

    def commit(self) -> None:
        """Put the newest block into the cache."""
        self._inner.commit()

    def change_reference(self, reference: Float[Tensor, "1 M"]) -> None:
        """Replace the portrait's motion."""
        self._inner.reference = reference.numpy()

    def saved(self) -> Any:
        """The current state: arrays are never changed in place."""
        return copy.copy(self._inner)

    def restore(self, saved: Any) -> None:
        """Return to a state from `saved`."""
        self._inner = copy.copy(saved)


def _rows(condition: Condition) -> list[Rows]:
    return [signal[0].numpy() if signal.any() else None for signal in vars(condition).values()]
