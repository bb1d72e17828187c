"""An avatar as graphs of static shapes, for exports: portrait, user's face, speech features, condition, step and decoder.

Shapes are those of a full window; frames before the start are masked: with `frames` frames before a block, frame n of the
roll-out is at position window_frames - block_frames - frames + n. Caches are inputs and outputs.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float, Float64, Int, UInt8
from torch import Tensor, nn

from af.clock import SAMPLES_PER_FRAME, frames_to_samples
from af.errors import UserError
from af.forcing.guidance import Branch, Guidance, branch_conditions
from af.images import to_bytes, to_float
from af.models.autoencoder import MotionAutoencoder
from af.models.denoiser import MotionDenoiser
from af.models.speech import LogMel
from af.nn.kv_cache import KeysValues, RollingCache, WindowLayout, stacked
from af.nn.rope import RotaryTable, rotary_table
from af.nn.transformer import AttentionPlan, Modulation
from af.pipeline.avatar import Avatar
from af.types import Condition, Identity

#: What hides a key; finite, so that a frame that sees nothing stays finite.
_HIDDEN: Final = -1e9


@dataclass(frozen=True)
class Graph:
    """A module with example inputs by name, in order, and the names of its outputs."""

    module: nn.Module
    inputs: Mapping[str, Tensor]
    outputs: tuple[str, ...]


class _Portrait(nn.Module):
    """A portrait's code, motion and features, coarsest first."""

    def __init__(self, autoencoder: MotionAutoencoder) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, image: UInt8[Tensor, "1 Y X 3"]) -> tuple[Tensor, ...]:
        identity = self.autoencoder.identity(to_float(image.permute(0, 3, 1, 2)), check=False)
        return identity.code, self.autoencoder.reference_motion(identity), *identity.features


class _Face(nn.Module):
    """The motion latent of a user's face."""

    def __init__(self, autoencoder: MotionAutoencoder) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, image: UInt8[Tensor, "1 Y X 3"]) -> Float[Tensor, "1 L"]:
        return self.autoencoder.motion(to_float(image.permute(0, 3, 1, 2)), check=False)


class _Decoder(nn.Module):
    """Frames of a portrait for motion latents."""

    def __init__(self, autoencoder: MotionAutoencoder) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(
        self, motion: Float[Tensor, "1 T L"], code: Float[Tensor, "1 L"], *features: Tensor
    ) -> UInt8[Tensor, "T Y X 3"]:
        images = self.autoencoder.decode(Identity(code, features), motion, chunk_frames=motion.shape[1])
        return to_bytes(images[0].permute(0, 2, 3, 1))


class _Speech(nn.Module):
    """Log-mel features of the newest block of a window, whose last `count` samples are audio."""

    def __init__(self, features: LogMel) -> None:
        super().__init__()
        spec, n_fft, hop = features.spec, features.n_fft, SAMPLES_PER_FRAME // features.hops
        assert spec.block_frames is not None
        assert spec.window_frames is not None
        self.frames, self.hops, self.silence = spec.block_frames, features.hops, features.silence
        self.samples = frames_to_samples(spec.window_frames + spec.right_context_frames)
        self.past = n_fft - hop
        end = self.samples - frames_to_samples(spec.right_context_frames) + self.past
        starts = torch.arange(end - frames_to_samples(self.frames), end, hop) - self.past
        angle = (
            torch.arange(n_fft, dtype=torch.float64)[:, None] * torch.arange(n_fft // 2 + 1) * (2 * torch.pi / n_fft)
        )
        waves = torch.cat((angle.cos(), angle.sin()), 1) * features.taper.double()[:, None] / n_fft**0.5
        self.register_buffer("places", starts[:, None] + torch.arange(n_fft))
        self.register_buffer("position", torch.arange(self.samples))
        self.register_buffer("waves", waves.float())
        self.register_buffer("filters", features.filters.T.contiguous())

    places: Tensor
    position: Tensor
    waves: Tensor
    filters: Tensor

    def forward(self, samples: Float[Tensor, "1 S"], count: Int[Tensor, " 1"]) -> Float[Tensor, "1 T F"]:
        there = (self.position >= self.samples - count)[None].float()

        def mean(x: Tensor) -> Tensor:  # frame by frame: a sum of so many numbers would lose digits
            return (x * there).unflatten(1, (-1, SAMPLES_PER_FRAME)).sum(-1).sum(-1, keepdim=True) / count

        away = samples - mean(samples)
        normalised = away * there / (mean(away.square()) + self.silence).sqrt()
        spectra = nn.functional.pad(normalised, (self.past, 0))[0][self.places] @ self.waves
        real, imaginary = spectra.chunk(2, -1)
        energy = torch.log((real.square() + imaginary.square()) @ self.filters + 1e-4)
        return ((energy + 4) / 4).reshape(1, self.frames, -1).half().float()


class _Condition(nn.Module):
    """Keys and values of the condition for every guidance branch, from new signals and those before them."""

    def __init__(self, denoiser: MotionDenoiser, branches: Sequence[Branch]) -> None:
        super().__init__()
        self.denoiser, self.branches = denoiser, branches
        window = torch.arange(denoiser.layout.window_frames)
        self.register_buffer("window", window)
        self.register_buffer("masks", torch.stack(denoiser.self_masks(window, window, 2)))
        size = denoiser.condition_encoder.out.in_features // denoiser.condition_heads
        turns = rotary_table(window, size).real().turns if denoiser.condition_positions else None
        self.register_buffer("turns", turns)

    window: Tensor
    masks: Tensor
    turns: Tensor | None

    def forward(
        self,
        avatar_audio: Float[Tensor, "1 T F"],
        user_audio: Float[Tensor, "1 T F"],
        user_motion: Float[Tensor, "1 T L"],
        signals: Float[Tensor, " 3"],
        frames: Int[Tensor, " 1"],
        *history: Tensor,
    ) -> tuple[Tensor, ...]:
        denoiser = self.denoiser
        new = denoiser.condition(avatar_audio, user_audio, user_motion)
        used = (signal * use for signal, use in zip(vars(new).values(), signals.unbind(), strict=True))
        whole = Condition(*history).then(Condition(*used))
        there = _there(self.window, denoiser.layout, frames)
        masks = [_shown(mask, there) for mask in self.masks.unbind(0)]
        rope = None if self.turns is None else RotaryTable(self.turns)
        vectors = denoiser.condition_encoder(branch_conditions(whole, self.branches), masks, rope)
        keys = denoiser.condition_keys(vectors[:, -_condition_frames(denoiser.layout) :])
        return stacked(keys), *vars(whole.last(denoiser.layout.block_position)).values()


class _Modulation(nn.Module):
    """The modulation by flow times, which depends on nothing else."""

    def __init__(self, denoiser: MotionDenoiser) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(self, flow_time: Float64[Tensor, "1 T"]) -> Float[Tensor, "8 1 T C"]:
        return torch.stack(list(vars(self.denoiser.modulation(flow_time)).values()))


class _Step(nn.Module):
    """Velocities of a block's frames in every guidance branch, and keys and values of these frames and the clean ones
    before them, to cache once the block is clean.
    """

    def __init__(self, denoiser: MotionDenoiser) -> None:
        super().__init__()
        self.denoiser = denoiser
        layout = denoiser.layout
        window = torch.arange(layout.window_frames)
        current, condition = window[-layout.current_frames :], window[-_condition_frames(layout) :]
        plans = denoiser.plans(current, window, condition)
        past = rotary_table(window[: layout.cached_frames], denoiser.hidden // denoiser.heads)
        self.register_buffer("window", window)
        self.register_buffer("turns", plans[0].rope.real().turns)
        self.register_buffer("past_turns", past.real().turns)
        self.register_buffer("self_masks", torch.stack([plan.self_mask for plan in plans]))
        self.register_buffer("cross_mask", plans[0].cross_mask)

    window: Tensor
    turns: Tensor
    past_turns: Tensor
    self_masks: Tensor
    cross_mask: Tensor

    def forward(
        self,
        latents: Float[Tensor, "1 T M"],
        reference: Float[Tensor, "1 M"],
        modulation: Float[Tensor, "8 1 T C"],
        condition: Float[Tensor, "R L 2 H k c"],
        frames: Int[Tensor, " 1"],
        cache: Float[Tensor, "R L 2 H K c"],
    ) -> tuple[Float[Tensor, "R t M"], Float[Tensor, "R L 2 H T c"]]:
        denoiser, layout = self.denoiser, self.denoiser.layout
        there = _there(self.window, layout, frames)
        cross = _shown(self.cross_mask, there[-_condition_frames(layout) :])
        rope, times = RotaryTable(self.turns), Modulation(*modulation.unbind(0))
        plans = [AttentionPlan(rope, _shown(mask, there), cross) for mask in self.self_masks.unbind(0)]
        keys = [KeysValues(layer[:, 0], layer[:, 1]) for layer in condition.unbind(1)]
        past = RollingCache(layout.cached_frames, held=cache).rotated(RotaryTable(self.past_turns))
        x = denoiser.embed(latents, denoiser.embed_reference(reference))
        velocity, own = denoiser.velocity_and_keys(x, times, keys, plans, past, layout.block_frames)
        return velocity, stacked(own)


class _Model(nn.Module):
    """A portrait's motion in the denoiser's space."""

    def __init__(self, denoiser: MotionDenoiser) -> None:
        super().__init__()
        self.space = denoiser.motion_space

    def forward(self, latent: Float[Tensor, "1 L"]) -> Float[Tensor, "1 M"]:
        return self.space.to_model(latent) * 1.0  # an output that is an input would have its name


class _Latent(nn.Module):
    """Motion latents of motion in the denoiser's space."""

    def __init__(self, denoiser: MotionDenoiser) -> None:
        super().__init__()
        self.space = denoiser.motion_space

    def forward(self, motion: Float[Tensor, "1 T M"]) -> Float[Tensor, "1 T L"]:
        return self.space.from_model(motion) * 1.0


def _there(window: Tensor, layout: WindowLayout, frames: Tensor) -> Tensor:
    """Which positions of the window have a frame when `frames` came before this block."""
    return window >= layout.block_position - frames


def _shown(mask: Tensor, there: Tensor) -> Tensor:
    """What is added to the scores of an attention."""
    return torch.where(mask & there, 0.0, _HIDDEN)


def _condition_frames(layout: WindowLayout) -> int:
    return min(layout.window_frames, layout.condition_reach + layout.current_frames)


def graphs_of(avatar: Avatar, guidance: Guidance) -> dict[str, Graph]:
    """All graphs of an avatar, by name. The branches of `guidance` are fixed in them, their weights and steps are not.

    Raises UserError for what they cannot have: features of whole utterances or other than log-mel ones, a condition
    encoder that sees the future, and windows of one block.
    """
    autoencoder, denoiser, features = copy.deepcopy(avatar.autoencoder).eval(), avatar.denoiser, avatar.features
    layout, space = denoiser.layout, denoiser.motion_space
    if not isinstance(features, LogMel) or features.spec.block_frames is None:
        raise UserError(
            f"features: {features.spec.extractor} in mode {features.spec.mode!r} is not exported; only streaming log-mel "
            "features are (af.models.speech.LogMel)"
        )
    if not denoiser.causal_condition:
        raise UserError("causal_condition: false is not exported: that condition encoder sees frames to come")
    if not layout.cached_frames:
        raise UserError(f"window_frames: {layout.window_frames} is one block and its look-ahead; nothing can be cached")
    with torch.no_grad():
        directions = autoencoder.directions()
    autoencoder.directions = lambda: directions  # type: ignore[method-assign]  # graphs have no QR decomposition
    branches = guidance.branches()
    size, frames, width = autoencoder.image_size, layout.block_frames, denoiser.audio_feature_dim
    cached, rows, head = layout.cached_frames, len(branches), denoiser.hidden // denoiser.heads
    audio, past = denoiser.condition_encoder.out.in_features, layout.block_position
    image, count = torch.zeros(1, size, size, 3, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64)
    with torch.no_grad():
        code, reference, *maps = _Portrait(autoencoder)(image)
    names = tuple(f"features_{m.shape[-1]}" for m in maps)
    speech = _Speech(features)
    signals = {
        "avatar_audio": torch.zeros(1, frames, width),
        "user_audio": torch.zeros(1, frames, width),
        "user_motion": torch.zeros(1, frames, space.latent_dim),
        "signals": torch.ones(3),
        "frames": count,
        "past_avatar_audio": torch.zeros(1, past, audio),
        "past_user_audio": torch.zeros(1, past, audio),
        "past_user_motion": torch.zeros(1, past, space.dim),
    }
    step = {
        "latents": torch.zeros(1, layout.current_frames, space.dim),
        "reference": torch.zeros(1, space.dim),
        "modulation": torch.zeros(8, 1, layout.current_frames, denoiser.hidden),
        "condition": torch.zeros(rows, denoiser.depth, 2, denoiser.heads, _condition_frames(layout), head),
        "frames": count,
        "cache": torch.zeros(rows, denoiser.depth, 2, denoiser.heads, cached, head),
    }
    motion = torch.zeros(1, 1, space.latent_dim)  # as quick as several at once, and shown at once
    times = torch.zeros(1, layout.current_frames, dtype=torch.float64)
    sound = {"samples": torch.zeros(1, speech.samples), "count": count + speech.samples}
    return {
        "portrait": Graph(_Portrait(autoencoder), {"image": image}, ("code", "reference", *names)),
        "face": Graph(_Face(autoencoder), {"image": image}, ("motion",)),
        "speech": Graph(speech, sound, ("features",)),
        "condition": Graph(
            _Condition(denoiser, branches), signals, ("condition", *(f"new_{n}" for n in list(signals)[5:]))
        ),
        "modulation": Graph(_Modulation(denoiser), {"flow_time": times}, ("modulation",)),
        "step": Graph(_Step(denoiser), step, ("velocity", "keys_values")),
        "model": Graph(_Model(denoiser), {"latent": reference}, ("motion",)),
        "latent": Graph(_Latent(denoiser), {"motion": torch.zeros(1, frames, space.dim)}, ("latents",)),
        "decoder": Graph(
            _Decoder(autoencoder), {"motion": motion, "code": code, **dict(zip(names, maps, strict=True))}, ("images",)
        ),
    }
