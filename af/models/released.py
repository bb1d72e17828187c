"""Checkpoints released with the paper, read into our modules. Their licence is CC BY-NC 4.0: bring your own files.

Layouts are facts of the files (keys and shapes); every key and shape is checked before anything is loaded.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from af.errors import UserError
from af.models.denoiser import MotionDenoiser
from af.models.motion_space import MotionSpace

if TYPE_CHECKING:
    from af.models.autoencoder import MotionAutoencoder

LICENCE_NOTE = (
    "The released weights are licensed CC BY-NC 4.0 (non-commercial, attribution). A converted file is the same weights "
    "under the same licence."
)

_PARTS = {  # our module -> theirs
    "audio_projection.": "audio_encoder.audio_projection.",
    "condition_encoder.motion_embedder.": "flow_transformer.c_embedder.motion_embedder.",
    "condition_encoder.user_attention.": "flow_transformer.c_embedder.dual_modal_attn.",
    "condition_encoder.user_norm.": "flow_transformer.c_embedder.ln1.",
    "condition_encoder.avatar_attention.": "flow_transformer.c_embedder.user_agent_attn.",
    "condition_encoder.avatar_norm.": "flow_transformer.c_embedder.ln2.",
    "condition_encoder.out.": "flow_transformer.c_embedder.to_cond_user.",
    "input.": "flow_transformer.x_embedder.proj.",
    "time_embedding.fc1.": "flow_transformer.t_embedder.mlp.0.",
    "time_embedding.fc2.": "flow_transformer.t_embedder.mlp.2.",
    "block_modulation.": "flow_transformer.adaLN_modulation.1.",
    "blocks.": "flow_transformer.blocks.",
    "head_modulation.": "flow_transformer.final_layer.adaLN_modulation.1.",
    "head.": "flow_transformer.final_layer.linear.",
}
_INSIDE = {  # within the parts
    ".attention.": ".attn.",
    ".cross_attention.": ".cross_attn.",
    ".in_proj.weight": ".in_proj_weight",
    ".in_proj.bias": ".in_proj_bias",
}


@dataclass(frozen=True)
class ReleasedSizes:
    """Sizes of the released denoiser; smaller ones serve tests."""

    dim: int = 512
    hidden: int = 1024
    depth: int = 8
    heads: int = 8
    mlp_ratio: float = 4.0
    condition_dim: int = 512
    condition_heads: int = 4
    audio_feature_dim: int = 12 * 768

    def denoiser(self) -> MotionDenoiser:
        """An untrained denoiser that computes what the released one does: blocks of 10 in windows of 50, look-ahead 2."""
        return MotionDenoiser(
            MotionSpace("identity", self.dim, min(20, self.dim)),
            hidden=self.hidden,
            depth=self.depth,
            heads=self.heads,
            mlp_ratio=self.mlp_ratio,
            block_frames=10,
            look_ahead=2,
            window_frames=50,
            mask="frame_lookahead",
            causal_condition=False,
            condition_dim=self.condition_dim,
            condition_heads=self.condition_heads,
            audio_feature_dim=self.audio_feature_dim,
        )


def released_key(key: str) -> str:
    """The released name of one of our denoiser's parameters. KeyError for a parameter that has none."""
    for ours, theirs in _PARTS.items():
        if key.startswith(ours):
            key = theirs + key.removeprefix(ours)
            break
    else:
        raise KeyError(key)
    for ours, theirs in _INSIDE.items():
        key = key.replace(ours, theirs)
    return key


def read_denoiser(
    source: str | os.PathLike[str] | Mapping[str, Tensor], sizes: ReleasedSizes | None = None
) -> MotionDenoiser:
    """The denoiser of `flow_transformer.pth` (path, or its flat state dict), or of a file written by `write_model`.

    Evaluation mode, fp32. It predicts x_1 − x_0 at t = 1 − τ/1000; the file's x_0 − x_1 is negated in the last linear.
    Raises UserError listing every missing, unexpected and misshapen key.
    """
    if not isinstance(source, Mapping) and _is_safetensors(source):
        model = _read_model(Path(source), "denoiser")
        assert isinstance(model, MotionDenoiser)
        return model
    state, name = _flat_state(source, "flow_transformer.pth")
    denoiser = (sizes or ReleasedSizes()).denoiser()
    names = {released_key(key): key for key in denoiser.state_dict()}
    expected = {theirs: denoiser.get_parameter(ours).shape for theirs, ours in names.items()}
    check_layout(state, expected, name)
    converted = {names[theirs]: tensor.to(torch.float32) for theirs, tensor in state.items()}
    for key in ("head.weight", "head.bias"):
        converted[key] = -converted[key]
    denoiser.load_state_dict(converted)
    return denoiser.eval()


def read_autoencoder(source: str | os.PathLike[str] | Mapping[str, Tensor]) -> MotionAutoencoder:
    """The autoencoder of `motion_autoencoder.pth` (path or flat state dict), or of a file written by `write_model`.

    Evaluation mode, fp32. Raises UserError listing every missing, unexpected and misshapen key.
    """
    from af.models import released_autoencoder

    return released_autoencoder.read_autoencoder(source)


def check_layout(state: Mapping[str, Tensor], expected: Mapping[str, torch.Size], name: str) -> None:
    """UserError listing every missing, unexpected and misshapen key of `state` (called `name` in the message)."""
    faults = [f"missing: {key} {tuple(shape)}" for key, shape in expected.items() if key not in state]
    faults += [f"unexpected: {key} {tuple(tensor.shape)}" for key, tensor in state.items() if key not in expected]
    faults += [
        f"shape: {key} is {tuple(state[key].shape)}, expected {tuple(shape)}"
        for key, shape in expected.items()
        if key in state and state[key].shape != shape
    ]
    if faults:
        raise UserError(
            f"{name}: not the released layout ({len(faults)} differences); is it the file you meant?\n  "
            + "\n  ".join(faults)
        )


def write_model(model: MotionDenoiser | MotionAutoencoder, path: str | os.PathLike[str], source: Path | None) -> None:
    """A safetensors file of our layout with its constructor values, licence note and origin. Written whole or not at all."""
    from safetensors.torch import save_file

    path = Path(path)
    kind = "denoiser" if isinstance(model, MotionDenoiser) else "autoencoder"
    metadata = {
        "af_model": kind,
        "settings": json.dumps(model.settings()),
        "licence": LICENCE_NOTE,
        "source_sha256": "" if source is None else file_hash(source),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, temporary, metadata)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def file_hash(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_safetensors(source: str | os.PathLike[str]) -> bool:
    return Path(source).suffix == ".safetensors"


def _flat_state(source: str | os.PathLike[str] | Mapping[str, Tensor], name: str) -> tuple[Mapping[str, Tensor], str]:
    if isinstance(source, Mapping):
        state: Any = source
    else:
        name = str(source)
        if not Path(source).is_file():
            raise UserError(f"{name}: no such file")
        try:
            state = torch.load(source, map_location="cpu", weights_only=True)  # tensors only: nothing is executed
        except Exception as error:
            raise UserError(f"{name}: not a checkpoint that can be read safely ({type(error).__name__})") from error
    if not isinstance(state, Mapping) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise UserError(f"{name}: not a flat state dict (names to tensors)")
    return state, name


def _read_model(path: Path, kind: str) -> MotionDenoiser | MotionAutoencoder:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    except SafetensorError as error:
        raise UserError(f"{path}: not a safetensors file ({error})") from error
    if metadata.get("af_model") != kind:
        raise UserError(f"{path}: not a {kind} written by `af import-released` (it says {metadata.get('af_model')!r})")
    model = MotionDenoiser.from_settings(json.loads(metadata["settings"]))
    check_layout(state, {key: tensor.shape for key, tensor in model.state_dict().items()}, str(path))
    model.load_state_dict(state)
    return model.eval()
