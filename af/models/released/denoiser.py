"""The released denoiser (`flow_transformer.pth`) as our module, with its keys renamed."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final

from af.models.artifact import build
from af.models.denoiser import MotionDenoiser
from af.models.released.files import Source, check_layout, read_state

PREFIX: Final = "flow_transformer."

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
    """Sizes of the released denoiser; tests use smaller ones."""

    dim: int = 512
    hidden: int = 1024
    depth: int = 8
    heads: int = 8
    mlp_ratio: float = 4.0
    condition_dim: int = 512
    condition_heads: int = 4
    audio_feature_dim: int = 12 * 768

    def config(self) -> dict[str, Any]:
        """The constructor call of an equivalent denoiser, for `af.models.registry.build`."""
        space = {"kind": "identity", "latent_dim": self.dim, "directions": min(20, self.dim)}
        sizes = asdict(self)
        del sizes["dim"]
        return {
            "_target_": "af.models.denoiser.MotionDenoiser",
            "motion_space": {"_target_": "af.models.motion_space.MotionSpace", **space},
            **sizes,
            "block_frames": 10,
            "look_ahead": 2,
            "window_frames": 50,
            "mask": "frame_lookahead",
            "causal_condition": False,
        }


def released_key(key: str) -> str:
    """The released name of a parameter of our denoiser. Raises KeyError for a parameter without one."""
    for ours, theirs in _PARTS.items():
        if key.startswith(ours):
            key = theirs + key.removeprefix(ours)
            break
    else:
        raise KeyError(key)
    for ours, theirs in _INSIDE.items():
        key = key.replace(ours, theirs)
    return key


def read_denoiser(source: Source, sizes: ReleasedSizes | None = None) -> MotionDenoiser:
    """The denoiser of `flow_transformer.pth`, in evaluation mode, fp32.

    It predicts x_1 − x_0 at t = 1 − τ/1000; the file's x_0 − x_1 is negated in the last linear.
    Raises UserError listing every missing, unexpected and misshapen key.
    """
    state = read_state(source)
    denoiser = build((sizes or ReleasedSizes()).config())
    assert isinstance(denoiser, MotionDenoiser)
    names = {released_key(key): key for key in denoiser.state_dict()}
    check_layout(state, {theirs: denoiser.get_parameter(ours).shape for theirs, ours in names.items()}, source)
    converted = {names[theirs]: tensor.float() for theirs, tensor in state.items()}
    for key in ("head.weight", "head.bias"):
        converted[key] = -converted[key]
    denoiser.load_state_dict(converted)
    return denoiser.eval()
