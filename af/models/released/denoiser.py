"""Checkpoints released with the paper, read into our modules. Their licence is CC BY-NC 4.0: bring your own files.

Layouts are facts of the files (keys and shapes); every key and shape is checked before anything is loaded.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors.torch import load_file
from torch import Tensor

from af.errors import UserError
from af.models.artifact import build, layout_faults, require_finite
from af.models.denoiser import MotionDenoiser

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

    def config(self) -> dict[str, Any]:
        """The constructor call that computes what the released denoiser does (as `af.models.artifact.build` reads it)."""
        space = {"kind": "identity", "latent_dim": self.dim, "directions": min(20, self.dim)}
        return {
            "_target_": "af.models.denoiser.MotionDenoiser",
            "motion_space": {"_target_": "af.models.motion_space.MotionSpace", **space},
            "hidden": self.hidden,
            "depth": self.depth,
            "heads": self.heads,
            "mlp_ratio": self.mlp_ratio,
            "block_frames": 10,
            "look_ahead": 2,
            "window_frames": 50,
            "mask": "frame_lookahead",
            "causal_condition": False,
            "condition_dim": self.condition_dim,
            "condition_heads": self.condition_heads,
            "audio_feature_dim": self.audio_feature_dim,
        }


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
    """The denoiser of `flow_transformer.pth` (path, or its flat state dict).

    Evaluation mode, fp32. It predicts x_1 − x_0 at t = 1 − τ/1000; the file's x_0 − x_1 is negated in the last linear.
    Raises UserError listing every missing, unexpected and misshapen key.
    """
    if isinstance(source, Mapping):
        state, name = source, "state dict"
    else:
        state, name = read_state(source), str(source)
    denoiser = build((sizes or ReleasedSizes()).config())
    assert isinstance(denoiser, MotionDenoiser)
    names = {released_key(key): key for key in denoiser.state_dict()}
    expected = {theirs: denoiser.get_parameter(ours).shape for theirs, ours in names.items()}
    check_layout(state, expected, name)
    converted = {names[theirs]: tensor.float() for theirs, tensor in state.items()}
    for key in ("head.weight", "head.bias"):
        converted[key] = -converted[key]
    denoiser.load_state_dict(converted)
    return denoiser.eval()


def read_autoencoder(source: str | os.PathLike[str] | Mapping[str, Tensor]) -> MotionAutoencoder:
    """The autoencoder of `motion_autoencoder.pth` (path or flat state dict).

    Evaluation mode, fp32. Raises UserError listing every missing, unexpected and misshapen key.
    """
    from af.models.released import autoencoder as released_autoencoder

    return released_autoencoder.read_autoencoder(source if isinstance(source, Mapping) else Path(source))


def check_layout(state: Mapping[str, Tensor], expected: Mapping[str, torch.Size], name: str) -> None:
    """UserError listing every missing, unexpected and misshapen key of `state` (called `name` in the message)."""
    if faults := layout_faults({key: tensor.shape for key, tensor in state.items()}, expected):
        raise UserError(
            f"{name}: not the released layout ({len(faults)} differences); is it the file you meant?\n  "
            + "\n  ".join(faults)
        )


def read_state(path: str | os.PathLike[str]) -> Mapping[str, Tensor]:
    """A flat state dict from a .pth or .safetensors file: tensors only, nothing in it is executed. UserError otherwise."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(
            f"{path}: not a checkpoint that can be read safely ({type(error).__name__}); is it whole?"
        ) from error
    if not isinstance(state, Mapping) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise UserError(f"{path}: not a flat state dict (names to tensors)")
    require_finite(state, str(path))
    return state


def kind_of(state: Mapping[str, Tensor], name: str) -> Literal["denoiser", "autoencoder"]:
    """Which of the two released files a state dict comes from; UserError for neither."""
    if any(key.startswith("flow_transformer.") for key in state):
        return "denoiser"
    if any(key.startswith("motion_autoencoder.") for key in state):
        return "autoencoder"
    raise UserError(
        f"{name}: neither flow_transformer.pth nor motion_autoencoder.pth (its first key: {next(iter(state), None)})"
    )
