"""The motion denoiser: predicts the velocity of noisy motion from flow times, condition and reference.

Training calls `forward`. The roll-out calls its parts separately, to compute once what does not change between steps:
condition vectors and their keys, modulation, the reference. Flow time, motion and velocities stay in the weights'
precision; autocast applies only to the blocks.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from af.devices import widest_float
from af.errors import UserError, require_choice
from af.models.condition import AudioProjection, DualMotionEncoder
from af.models.motion_space import MotionSpace
from af.nn.attention import head_size, repeat_rows
from af.nn.kv_cache import KeysValues, WindowLayout
from af.nn.masks import BLOCK_RULES, attention_mask, cross_window, mask_rule
from af.nn.packed import PackedLinear
from af.nn.precision import choose, without_autocast
from af.nn.rope import rotary_table
from af.nn.transformer import AttentionPlan, ForcingBlock, Modulation, modulate, norm
from af.types import Condition
from af.values import require_number

TIME_FREQUENCIES = 128
TIME_SCALE = 1000.0
LOOK_AHEAD_LAYERS = ("all", "first")


class TimeEmbedding(nn.Module):
    """Flow time -> vector: [cos | sin] of τ·10000^(−i/128) with τ = 1000·(1 − t), then linear, SiLU, linear."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(2 * TIME_FREQUENCIES, hidden)
        self.fc2 = nn.Linear(hidden, hidden)

    def forward(self, flow_time: Float[Tensor, "B T"]) -> Float[Tensor, "B T C"]:
        """Embed every frame's flow time."""
        wide = widest_float(flow_time.device, self.fc1.weight.dtype)
        tau = TIME_SCALE * (1 - flow_time.to(wide))
        index = torch.arange(TIME_FREQUENCIES, dtype=wide, device=flow_time.device)
        angle = tau[..., None] * 10_000.0 ** (-index / TIME_FREQUENCIES)
        waves = torch.cat((angle.cos(), angle.sin()), -1).to(self.fc1.weight.dtype)
        with without_autocast(flow_time.device):
            return self.fc2(F.silu(self.fc1(waves)))


class MotionDenoiser(nn.Module):
    """Causal diffusion-forcing transformer on motion (method §3; released sizes are the defaults).

    `motion_space` is the space it works in (its `dim` is D here); `window_frames` N, `block_frames` B and `look_ahead`
    l are in frames; `mask` names a rule of `af.nn.masks`; `condition_reach` is the half-width of the cross-attention's
    window (default l). With `look_ahead_layers` "first" only the first block (and the first attention of the condition
    encoder) looks ahead: if all did, training would see depth · l frames that do not exist yet during generation. With
    `causal_condition` the condition encoder obeys `mask`, too; without, it is unmasked as released. The paper's
    condition encoder has no positions, so it does not know when the user did something; `condition_positions` adds
    rotary ones (ours). Raises UserError for sizes that do not fit together.
    """

    def __init__(
        self,
        motion_space: MotionSpace | None = None,
        *,
        hidden: int = 1024,
        depth: int = 8,
        heads: int = 8,
        mlp_ratio: float = 4.0,
        block_frames: int = 10,
        look_ahead: int = 2,
        window_frames: int = 50,
        mask: str = "block_lookahead",
        look_ahead_layers: str = "all",
        causal_condition: bool = True,
        condition_positions: bool = False,
        condition_reach: int | None = None,
        condition_dim: int = 512,
        condition_heads: int = 4,
        audio_feature_dim: int = 12 * 768,
    ) -> None:
        super().__init__()
        for name in ("hidden", "depth", "heads", "condition_dim", "condition_heads", "audio_feature_dim"):
            require_number(name, locals()[name], least=1, whole=True)
        require_number("mlp_ratio", mlp_ratio, above=0)
        mask_rule(mask)
        if mask in BLOCK_RULES and window_frames % block_frames:
            raise UserError(
                f"window_frames: {window_frames}; with mask {mask} it must be a multiple of block_frames ({block_frames})"
            )
        require_choice("look_ahead_layers", "layers", look_ahead_layers, LOOK_AHEAD_LAYERS)
        if head_size(hidden, heads) % 2:
            raise UserError(
                f"heads: {heads} heads at width {hidden} have an odd size; rotary positions need an even one"
            )
        if condition_positions and head_size(condition_dim, condition_heads) % 2:
            raise UserError(
                f"condition_heads: {condition_heads} heads at width {condition_dim} have an odd size; "
                "condition_positions needs an even one"
            )
        space = MotionSpace("identity", 512) if motion_space is None else motion_space
        reach = look_ahead if condition_reach is None else condition_reach
        self.layout = WindowLayout(block_frames, look_ahead, window_frames, reach)
        self.mask, self.look_ahead_layers, self.causal_condition = mask, look_ahead_layers, causal_condition
        self.condition_positions, self.condition_heads = condition_positions, condition_heads
        self.dim, self.hidden, self.heads, self.depth = space.dim, hidden, heads, depth
        self.motion_space = space
        self.audio_projection = AudioProjection(audio_feature_dim, condition_dim)
        self.condition_encoder = DualMotionEncoder(self.dim, condition_dim, condition_heads, hidden)
        self.input = nn.Linear(2 * self.dim, hidden)
        self.time_embedding = TimeEmbedding(hidden)
        self.block_modulation = nn.Linear(hidden, 6 * hidden)
        self.blocks = nn.ModuleList(ForcingBlock(hidden, heads, mlp_ratio) for _ in range(depth))
        self.head_modulation = nn.Linear(hidden, 2 * hidden)
        self.head = nn.Linear(hidden, self.dim)
        self._initialise()

    @property
    def audio_feature_dim(self) -> int:
        """Size of a frame's raw audio features."""
        return self.audio_projection.feature_dim

    @property
    def latent_dim(self) -> int:
        """Size of a motion latent."""
        return self.motion_space.latent_dim

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for layer in (self.time_embedding.fc1, self.time_embedding.fc2):
            nn.init.normal_(layer.weight, std=0.02)
        # every block starts as the identity and the velocity as zero (DiT's adaLN-Zero)
        for layer in (self.block_modulation, self.head_modulation, self.head):
            nn.init.zeros_(layer.weight)

    def forward(
        self,
        noisy: Float[Tensor, "B T D"],
        flow_time: Float[Tensor, "B T"],
        condition: Condition,
        reference: Float[Tensor, "B D"],
        past: Float[Tensor, "B T D"] | None = None,
    ) -> Float[Tensor, "B T D"]:
        """Velocity x_1 − x_0 of every frame; t = 1 is clean. For the mask, frames are at positions 0 … T − 1.

        With `past`, clean motion of the same frames, every block sees itself and the past before it, as in a roll-out,
        and no other noisy block. Raises UserError for that with a look-ahead.
        """
        frames = torch.arange(noisy.shape[1], device=noisy.device)
        portrait = self.embed_reference(reference)
        keys = self.condition_keys(self.encode_condition(condition))
        if past is None:
            plans = self.plans(frames, frames, frames)
            return self.velocity(self.embed(noisy, portrait), self.modulation(flow_time), keys, plans)
        both, times = torch.cat((past, noisy), 1), torch.cat((torch.ones_like(flow_time), flow_time), 1)
        plans = self._plans_after_past(frames)
        return self.velocity(self.embed(both, portrait), self.modulation(times), keys, plans, newest=noisy.shape[1])

    def require_no_look_ahead(self) -> None:
        """Raise UserError for a look-ahead: a block after a given past has no next block to look into."""
        if self.layout.look_ahead:
            raise UserError(
                f"look_ahead: {self.layout.look_ahead}; a block that sees a clean past alone (flow times of levels each) "
                "has no next block to look into: set model.look_ahead=0, or scheme=forcing"
            )

    def _plans_after_past(self, frames: Int[Tensor, " T"]) -> list[AttentionPlan]:
        """Plans for [past ; noisy]: noisy frames see the past of earlier blocks, and the noisy frames of their own."""
        self.require_no_look_ahead()
        rule = self.self_masks(frames, frames, 1)[0]
        block = frames // self.layout.block_frames
        own, earlier = block[:, None] == block, block[:, None] > block
        past = torch.cat((rule, torch.zeros_like(rule)), 1)
        mask = torch.cat((past, torch.cat((rule & earlier, rule & own), 1)))
        twice = frames.repeat(2)
        rope = rotary_table(twice, self.hidden // self.heads, dtype=self._table_dtype())
        return [AttentionPlan(rope, mask, cross_window(twice, frames, self.layout.condition_reach))] * self.depth

    # The parts, in the order `forward` uses them.

    def condition(
        self,
        avatar_audio: Float[Tensor, "B T F"] | None,
        user_audio: Float[Tensor, "B T F"] | None,
        user_motion: Float[Tensor, "B T L"] | None,
    ) -> Condition:
        """Condition from raw audio features and motion latents; None = dropped (zeros). ValueError if all are None."""
        given = next((x for x in (avatar_audio, user_audio, user_motion) if x is not None), None)
        if given is None:
            raise ValueError("at least one signal is needed to know how many frames there are")
        silence = given.new_zeros(*given.shape[:2], self.condition_encoder.out.in_features)
        return Condition(
            silence if avatar_audio is None else self.audio_projection(avatar_audio),
            silence if user_audio is None else self.audio_projection(user_audio),
            given.new_zeros(*given.shape[:2], self.dim)
            if user_motion is None
            else self.motion_space.to_model(user_motion),
        )

    def embed_reference(self, reference: Float[Tensor, "B D"]) -> Float[Tensor, "B 1 C"]:
        """The reference's contribution to the input layer, the same for every frame."""
        weight = self.input.weight[:, self.dim :]
        with without_autocast(reference.device):
            return F.linear(reference.to(weight.dtype), weight, self.input.bias)[:, None]

    def embed(self, noisy: Float[Tensor, "B T D"], reference: Float[Tensor, "B 1 C"]) -> Float[Tensor, "B T C"]:
        """Input layer on [noisy ; reference], given the reference's contribution."""
        weight = self.input.weight[:, : self.dim]
        with without_autocast(noisy.device):
            return F.linear(noisy.to(weight.dtype), weight) + reference

    def modulation(self, flow_time: Float[Tensor, "B T"]) -> Modulation:
        """Modulation of each frame in every block and in the head."""
        embedding = F.silu(self.time_embedding(flow_time))
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self.block_modulation(embedding).chunk(6, -1)
        head_shift, head_scale = self.head_modulation(embedding).chunk(2, -1)
        return Modulation(shift, 1 + scale, gate, mlp_shift, 1 + mlp_scale, mlp_gate, head_shift, 1 + head_scale)

    def encode_condition(self, condition: Condition, first_position: int = 0) -> Float[Tensor, "B T C"]:
        """One vector per frame; for a causal mask, frames are at positions from `first_position` on."""
        frames = first_position + torch.arange(condition.frames, device=condition.user_motion.device)
        masks = self.self_masks(frames, frames, 2) if self.causal_condition else (None, None)
        rope = None
        if self.condition_positions:
            dim = self.condition_encoder.out.in_features
            rope = rotary_table(frames, dim // self.condition_heads, dtype=self._table_dtype())
        return self.condition_encoder(condition, masks, rope)

    def condition_keys(self, vectors: Float[Tensor, "B T C"]) -> list[KeysValues]:
        """Cross-attention keys and values of every block."""
        return [block.cross_attention.keys_values(vectors) for block in self._blocks()]

    def plans(
        self, frames: Int[Tensor, " T"], keys: Int[Tensor, " K"], condition: Int[Tensor, " C"]
    ) -> list[AttentionPlan]:
        """Per block: rotary angles of `frames`, masks to `keys` (past, then these frames) and to `condition`."""
        rope = rotary_table(frames, self.hidden // self.heads, dtype=self._table_dtype())
        cross = cross_window(frames, condition, self.layout.condition_reach)
        return [AttentionPlan(rope, mask, cross) for mask in self.self_masks(frames, keys, self.depth)]

    def velocity(
        self,
        x: Float[Tensor, "B T C"],
        modulation: Modulation,
        condition: Sequence[KeysValues],
        plans: Sequence[AttentionPlan],
        past: Sequence[KeysValues] | None = None,
        newest: int | None = None,
    ) -> Float[Tensor, "R t D"]:
        """Velocity of embedded frames `x`, or only of the `newest`; `past` has rotated keys and values of earlier
        frames.

        `condition` and `past` may have R rows, a multiple of B, for guidance branches; `modulation` then has a single
        row.
        """
        return self._pass(x, modulation, condition, plans, past, newest)[0]

    def velocity_and_keys(
        self,
        x: Float[Tensor, "B T C"],
        modulation: Modulation,
        condition: Sequence[KeysValues],
        plans: Sequence[AttentionPlan],
        past: Sequence[KeysValues] | None = None,
        newest: int | None = None,
    ) -> tuple[Float[Tensor, "R t D"], list[KeysValues]]:
        """`velocity`, and `keys_values`, of the same pass."""
        velocity, stored = self._pass(x, modulation, condition, plans, past, newest)
        return velocity, self._in_rows(stored, condition)

    def _pass(
        self,
        x: Tensor,
        modulation: Modulation,
        condition: Sequence[KeysValues],
        plans: Sequence[AttentionPlan],
        past: Sequence[KeysValues] | None,
        newest: int | None,
    ) -> tuple[Tensor, list[KeysValues]]:
        stored = []
        for i, block in enumerate(blocks := self._blocks()):
            last = newest if block is blocks[-1] else None
            x, own = block(x, modulation, plans[i], condition[i], past[i] if past else None, last)
            stored.append(own)
        return self.head_velocity(x, modulation if newest is None else modulation.frames(slice(-newest, None))), stored

    def head_velocity(self, x: Float[Tensor, "B T C"], modulation: Modulation) -> Float[Tensor, "B T D"]:
        """The head: maps features after the last block to velocity."""
        kept = self.head.weight.dtype
        with without_autocast(x.device):
            return self.head(modulate(norm(x.to(kept)), modulation.head_shift.to(kept), modulation.head_gain.to(kept)))

    def keys_values(
        self,
        x: Float[Tensor, "B T C"],
        modulation: Modulation,
        condition: Sequence[KeysValues],
        plans: Sequence[AttentionPlan],
        past: Sequence[KeysValues] | None = None,
    ) -> list[KeysValues]:
        """Self-attention keys (before rotation) and values of the frames in every block, for the cache.

        The last block stops at its keys, since nothing after them is stored. R rows as in `velocity`.
        """
        stored = []
        *blocks, last = self._blocks()
        for i, block in enumerate(blocks):
            x, own = block(x, modulation, plans[i], condition[i], past[i] if past else None)
            stored.append(own)
        stored.append(last.project(x, modulation)[1])
        return self._in_rows(stored, condition)

    @staticmethod
    def _in_rows(stored: Sequence[KeysValues], condition: Sequence[KeysValues]) -> list[KeysValues]:
        """Keys and values with as many rows as the condition: branches share those of the first block."""
        rows = condition[0].keys.shape[0]
        return [KeysValues(repeat_rows(own.keys, rows), repeat_rows(own.values, rows)) for own in stored]

    def _table_dtype(self) -> torch.dtype:
        return torch.promote_types(self.input.weight.dtype, torch.float32)

    def _blocks(self) -> list[ForcingBlock]:
        return list(self.blocks)  # type: ignore[arg-type]

    def self_masks(self, q: Tensor, k: Tensor, layers: int) -> list[Tensor]:
        """Self-attention masks of `layers` successive layers."""

        def mask(look_ahead: int) -> Tensor:
            return attention_mask(self.mask, q, k, block_frames=self.layout.block_frames, look_ahead=look_ahead)

        first = mask(self.layout.look_ahead)
        deeper = first if self.look_ahead_layers == "all" else mask(0)
        return [first, *[deeper] * (layers - 1)]


def for_inference(denoiser: MotionDenoiser, precision: str = "fp32") -> MotionDenoiser:
    """A copy of `denoiser` for roll-outs: without gradients, with packed weights in the blocks (`af.nn.packed`).

    `precision` "fp32" only changes rounding; "bf16" multiplies in bf16, with norms, softmax, residual stream, flow time
    and condition encoder in fp32; "auto" is the faster one on the weights' device. The copy shares
    unchanged weights with the original. Raises UserError for other precisions.
    """
    dtype = choose(precision, denoiser.input.weight.device).dtype
    shared: dict[int, object] = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in denoiser.parameters()}
    packed = copy.deepcopy(denoiser, shared)
    for block in packed.blocks:
        assert isinstance(block, ForcingBlock)
        for name, linear in list(block.named_modules()):
            if isinstance(linear, nn.Linear):
                block.set_submodule(name, PackedLinear(linear, dtype, gelu=name == "mlp.fc1"))
        block.set_submodule("mlp.activation", nn.Identity())  # now part of fc1
    return packed.eval()
