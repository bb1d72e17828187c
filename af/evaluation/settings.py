"""Settings of an evaluation: the values of the configuration group `evaluation`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import torch
from torch import nn

from af.errors import UserError, require_choice
from af.evaluation.extractors import Extractor, Tracker
from af.evaluation.syncnet import SyncNet
from af.forcing.dead_band import check_dead_band
from af.forcing.dropout import SIGNALS, named_subset
from af.forcing.solvers import SCHEDULES, SOLVERS
from af.ingest.landmarks import FaceLandmarker
from af.metrics.base import ClipMetric
from af.metrics.records import Protocol
from af.pipeline.rolling import RolloutSettings
from af.pipeline.sampling import over
from af.values import require_number

#: A remark on numbers from the tracker of synthetic faces.
ONLY_DRAWN: Final = "read by the tracker of drawn faces (af synth); of filmed people it says nothing"


@dataclass(frozen=True, kw_only=True)
class Tools:
    """The tracker and networks that measure frames.

    `tracker` reads faces; `networks` are image and video networks by name; `embedder` measures identity, `syncnet`
    lips. `metrics` are families of the user's beside ours.
    """

    tracker: Tracker | None = None
    networks: Mapping[str, Extractor] = field(default_factory=dict)
    embedder: Extractor | None = None
    syncnet: SyncNet | None = None
    metrics: Sequence[ClipMetric] = ()
    protocol: Protocol = Protocol()  # noqa: RUF009 (frozen)
    gallery: bool = True

    def __post_init__(self) -> None:
        for name, network in {**self.networks, "embedder": self.embedder}.items():
            wanted = ("identity",) if name == "embedder" else ("image", "video")
            if network is not None and (not isinstance(network, Extractor) or network.kind not in wanted):
                raise UserError(f"evaluation: {name} must be an extractor of kind {' or '.join(wanted)}")
        for metric in self.metrics:
            if not isinstance(metric, ClipMetric):
                raise UserError(f"evaluation.metrics: {type(metric).__name__} is no af.metrics.base.ClipMetric")
        if self.tracker is not None and not (hasattr(self.tracker, "track") and hasattr(self.tracker, "face_spec")):
            raise UserError("evaluation.tracker: give an object with `face_spec` and `track(frames)`")

    def on(self, device: torch.device) -> None:
        """Move all networks to a device."""
        networks = [e.network for e in (*self.networks.values(), self.embedder) if e is not None]
        for module in (*networks, self.syncnet, self.tracker):
            if isinstance(module, nn.Module):
                module.to(device)

    @property
    def reads_images(self) -> bool:
        """Whether anything besides the tracker reads frames."""
        return bool(self.networks or self.embedder or self.syncnet)

    @property
    def named_protocol(self) -> Protocol:
        """The protocol, with the names of the embedder and of SyncNet's crop."""
        crop = self.protocol.lip_crop if self.lip_tracker is None else "its own crop, around landmarks"
        embedder = self.protocol.embedder if self.embedder is None else self.embedder.tag
        return replace(self.protocol, embedder=embedder, lip_crop=crop)

    @property
    def lip_tracker(self) -> FaceLandmarker | None:
        """What SyncNet's crops can be made with; None: it sees the frames as they are."""
        return self.tracker if isinstance(self.tracker, FaceLandmarker) else None

    def signature(self) -> str:
        """Everything besides the clip that its numbers depend on."""
        tags = [[e.tag, *e.inputs] for e in (*self.networks.values(), self.embedder) if e is not None]
        faces = None if self.tracker is None else self.tracker.face_spec.tracker
        return json.dumps([faces, tags, None if self.syncnet is None else self.syncnet.version])


@dataclass(frozen=True, kw_only=True)
class CheckpointSettings(Tools):
    """Settings for evaluating a model on a split.

    `data` is the split's folder or URL. `autoencoder` decodes frames, or faces are a linear function of the latents,
    fitted on the split `linear_probe`. How the model is sampled (`steps` … `dead_band`) is, where it is None, as the model
    says (`af.pipeline.sampling.usual_sampling`); `unguided`: one branch with all signals. `limit` clips are rolled out,
    `batch` at a time, with the signals `conditions` ("all": every subset), and `videos` of them are written (None: 4, or all
    without a tracker). `drift` adds roll-outs of 4 minutes, `lpips` the LPIPS of the reconstruction.
    """

    data: str | None = None
    autoencoder: str | None = None
    linear_probe: str | None = None
    limit: int | None = None
    batch: int = 16
    steps: int | None = None
    solver: str | None = None
    schedule: str | None = None
    guidance_audio: float | None = None
    guidance_user: float | None = None
    guidance_joint: float | None = None
    unguided: bool = False
    anchor_sink: int | None = None
    anchor_pull: float | None = None
    dead_band: float | None = None
    conditions: str | None = None
    seed: int = 0
    videos: int | None = None
    drift: bool = False
    lpips: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("limit", 1), ("batch", 1), ("steps", 1), ("anchor_sink", 0), ("seed", 0), ("videos", 0)):
            if (value := getattr(self, name)) is not None:
                require_number(name, value, least=least, whole=True)
        for name in ("guidance_audio", "guidance_user", "guidance_joint", "anchor_pull"):
            require_number(name, getattr(self, name), least=0, optional=True)
        if self.dead_band is not None:
            check_dead_band(self.dead_band)
        for name, value, allowed in (("solver", self.solver, SOLVERS), ("schedule", self.schedule, SCHEDULES)):
            if value is not None:
                require_choice(f"evaluation.{name}", name, value, allowed)
        if self.autoencoder is not None and self.linear_probe is not None:
            raise UserError("evaluation.autoencoder and linear_probe exclude each other: decode, or read the latents")
        _ = self.signals

    def split(self, *, denoiser: bool) -> str:
        """The split. UserError when it is not set, or, of a `denoiser`, when nothing is that makes faces of latents."""
        if self.data is None:
            raise UserError("evaluation.data is not set: give the split to evaluate on")
        if denoiser and (self.autoencoder is None) == (self.linear_probe is None):
            raise UserError("give evaluation.autoencoder, which decodes, or evaluation.linear_probe, a split to fit to")
        return self.data

    @property
    def signals(self) -> tuple[str, ...]:
        """The signals for the model. Raises UserError for an unknown name."""
        return SIGNALS if self.conditions in (None, "all") else tuple(named_subset(str(self.conditions)))

    def rollout(self, usual: Mapping[str, Any]) -> RolloutSettings:
        """Settings of the roll-outs of a model that is usually sampled so."""
        return RolloutSettings(seed=self.seed, batch=self.batch, signals=self.signals, **over(usual, vars(self)))


@dataclass(frozen=True, kw_only=True)
class FilesSettings(Tools):
    """Settings for comparing the files of any system with true ones.

    Arrays of face parameters come from `tracker_of_arrays` (e.g. emoca/2); the first `expression` of their columns,
    called `names`, are expressions. Sides that differ by at most `max_length_difference` frames are cut.
    """

    tracker_of_arrays: str = "arrays/unnamed"
    expression: int | None = None
    names: Sequence[str] | None = None
    max_length_difference: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("expression", "max_length_difference"):
            if (value := getattr(self, name)) is not None:
                require_number(name, value, least=0, whole=True)

    def signature(self) -> str:
        """Everything besides its files that a clip's numbers depend on."""
        arrays: list[Any] = [self.tracker_of_arrays, self.expression, self.names and list(self.names)]
        return json.dumps([super().signature(), *arrays, self.max_length_difference])
