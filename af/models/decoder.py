"""Decoders of the motion autoencoder: the released one, and a light one for laptops.

Both map style codes and a portrait's features to images. Layout and numerics of the first follow the released model
(LIA family); everything runs in channels-last, with one shared weight for all frames.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from af.nn.equalized import GAIN, SLOPE, EqualConv2d
from af.nn.modulated import ModulatedProjection, Modulation, StyledConv
from af.nn.precision import single, without_autocast
from af.nn.resample import upsample2
from af.nn.warp import base_grid, warp

COARSEST = 8  # pixels: size of the coarsest appearance features and of the first decoder level


class LevelModulation(NamedTuple):
    """Channel factors of one decoder level for every frame: upsampling convolution, convolution, flow."""

    up: Modulation
    conv: Modulation
    flow: Tensor


class DecoderLevel(nn.Module):
    """One decoder level: doubles the size, predicts a flow, blends in warped features and adds their colours.

    With `paint` colours are computed after the blending, so this scale can paint what the portrait does not show (the
    inside of a mouth). Without it, as released, colours come from the warped features only.
    """

    def __init__(self, inputs: int, outputs: int, style_dim: int, paint: bool) -> None:
        super().__init__()
        self.up = StyledConv(inputs, outputs, style_dim, up=True)
        self.conv = StyledConv(outputs, outputs, style_dim)
        self.flow = ModulatedProjection(outputs, 3, style_dim)
        self.rgb = EqualConv2d(outputs, 3, 1, gain=GAIN)
        self.rgb_inner_bias = nn.Parameter(torch.zeros(3))
        self.rgb_bias = nn.Parameter(torch.zeros(3))
        self.paint = paint

    def modulation(self, code: Float[Tensor, "N D"]) -> LevelModulation:
        """Channel factors for the style codes of N frames."""
        return LevelModulation(self.up.modulation(code), self.conv.modulation(code), self.flow.modulation(code))

    def forward(
        self,
        x: Float[Tensor, "N I Y X"],
        features: Float[Tensor, "B O Y2 X2"],
        modulation: LevelModulation,
        flow: Float[Tensor, "N 3 Y X"] | None,
        rgb: Float[Tensor, "N 3 Y X"] | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(activations, raw flow, colours) at twice the size."""
        x = self.conv(self.up(x, modulation.up), modulation.conv)
        raw = self.flow(x, modulation.flow)
        if flow is not None:
            raw = raw + upsample2(flow)
        # of all three channels: slices of them are not contiguous, and many times as slow
        grid = base_grid(raw.shape[-1], raw.device) + torch.tanh(raw)[:, :2].permute(0, 2, 3, 1)
        mask = torch.sigmoid(raw)[:, 2:].to(x.dtype)
        sampled = warp(features, grid).to(x.dtype)
        mixed = torch.lerp(x, sampled, mask)  # warped + x (1 - mask)
        # A 1x1 convolution commutes with the one-channel mask, and masking its 3 outputs is cheaper.
        colours = self.rgb(mixed) if self.paint else self.rgb(sampled) * mask
        inner = (self.rgb_inner_bias * GAIN)[None, :, None, None]
        colours = F.leaky_relu(single(colours) + inner, SLOPE) + self.rgb_bias[None, :, None, None]
        return mixed, raw, colours if rgb is None else colours + upsample2(rgb)


class Decoder(nn.Module):
    """Maps style codes and a portrait's features to images: a level for every size from 8 px on."""

    def __init__(self, latent_dim: int, channels: dict[int, int], paint: bool) -> None:
        super().__init__()
        self.constant = nn.Parameter(torch.randn(1, channels[4], 4, 4))
        self.conv = StyledConv(channels[4], channels[4], latent_dim)
        sizes = [size for size in sorted(channels) if size >= COARSEST]
        self.levels = nn.ModuleDict(
            {str(size): DecoderLevel(channels[size // 2], channels[size], latent_dim, paint) for size in sizes}
        )

    def appearance(self, features: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """What is needed of the encoder's features of a portrait, computed once for all frames."""
        return features

    def modulation(self, code: Float[Tensor, "N D"]) -> tuple[Modulation, list[LevelModulation]]:
        """All channel factors of N frames, in fp32; they depend only on the style codes."""
        with without_autocast(code.device):
            levels = [level.modulation(single(code)) for level in self.levels.values()]  # type: ignore[operator]
            return self.conv.modulation(single(code)), levels

    def forward(
        self,
        appearance: tuple[Tensor, ...],
        modulation: tuple[Modulation, list[LevelModulation]],
        frames: Tensor | slice,
    ) -> Float[Tensor, "N 3 Y X"]:
        """Images of `frames`, an equal number per portrait."""
        return self._decoded(appearance, modulation, frames)[2]

    def _decoded(
        self,
        appearance: tuple[Tensor, ...],
        modulation: tuple[Modulation, list[LevelModulation]],
        frames: Tensor | slice,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Activations, raw flow and colours of the last level."""
        first, levels = modulation
        first = first.at(frames)
        constant = self.constant.expand(first.inputs.shape[0], -1, -1, -1)
        x = self.conv(constant.contiguous(memory_format=torch.channels_last), first)
        flow = rgb = None
        for level, maps, factors in zip(self.levels.values(), appearance, levels, strict=True):
            chosen = LevelModulation(factors.up.at(frames), factors.conv.at(frames), factors.flow[frames])
            x, flow, rgb = level(x, maps, chosen, flow, rgb)
        return x, flow, rgb  # type: ignore[return-value]


class LightDecoder(Decoder):
    """A decoder whose levels have min(base / r, the encoder's) channels, with the last level at half resolution.

    At full size it has no convolution: colours of the portrait, computed once, are warped by the enlarged flow of the
    level before and blended with colours and a mask that this level paints for four pixels at once.
    """

    def __init__(self, image_size: int, latent_dim: int, channels: dict[int, int], paint: bool, base: int) -> None:
        own = {size: min(base // size, width) for size, width in channels.items() if size < image_size}
        super().__init__(latent_dim, own, paint)
        self.narrow = nn.ModuleDict({size: EqualConv2d(channels[int(size)], own[int(size)], 1) for size in self.levels})
        self.colours = EqualConv2d(channels[image_size], 3, 1, gain=GAIN)
        self.fine = EqualConv2d(own[image_size // 2], 4 * 4, 3, padding=1, gain=GAIN)
        self.inner_bias = nn.Parameter(torch.zeros(3))
        self.bias = nn.Parameter(torch.zeros(3))

    def appearance(self, features: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """A portrait's features in the levels' widths, and its colours at full size."""
        *inner, full = features
        narrow = [layer(maps) for layer, maps in zip(self.narrow.values(), inner, strict=True)]
        return tuple(single(maps) for maps in (*narrow, self.colours(full)))

    def forward(
        self,
        appearance: tuple[Tensor, ...],
        modulation: tuple[Modulation, list[LevelModulation]],
        frames: Tensor | slice,
    ) -> Float[Tensor, "N 3 Y X"]:
        """Images of `frames`, an equal number per portrait."""
        *inner, portrait = appearance
        x, flow, rgb = self._decoded(tuple(inner), modulation, frames)
        fine = F.pixel_shuffle(single(self.fine(x)).contiguous(), 2)  # three channels are faster one after another
        grid = base_grid(portrait.shape[-1], x.device) + upsample2(torch.tanh(flow[:, :2])).permute(0, 2, 3, 1)
        mask = torch.sigmoid(upsample2(flow[:, 2:]) + fine[:, 3:])
        mixed = torch.lerp(fine[:, :3], warp(portrait, grid), mask)
        colours = F.leaky_relu(mixed + (self.inner_bias * GAIN)[None, :, None, None], SLOPE)
        return colours + self.bias[None, :, None, None] + upsample2(rgb)

    @torch.no_grad()
    def start_from(self, full: Decoder) -> None:
        """Take over what fits of a full decoder of the same size: with its widths all levels but the last, whose colours
        of the portrait remain and whose flow and painting are to be learnt.
        """
        state, wanted = full.state_dict(), self.state_dict()
        self.load_state_dict(
            {n: v for n, v in state.items() if n in wanted and wanted[n].shape == v.shape}, strict=False
        )
        for layer in self.narrow.values():
            assert isinstance(layer, EqualConv2d)
            if layer.weight.shape[0] == layer.weight.shape[1]:
                layer.weight.copy_(torch.eye(len(layer.weight))[:, :, None, None] / layer.scale)
        top = list(full.levels.values())[-1]
        self.colours.load_state_dict(top.get_submodule("rgb").state_dict())
        self.fine.weight.zero_()
        self.inner_bias.copy_(top.get_parameter("rgb_inner_bias"))
        self.bias.copy_(top.get_parameter("rgb_bias"))
