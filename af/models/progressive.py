"""Starting an autoencoder as a copying machine, or a larger one from a trained smaller one: 256 px, then 512.

Channels depend on resolution, so all but the outermost layers have the smaller model's shapes and are copied. The new
outermost layers start neutral: the encoder's passes the colours, at half size, to the smaller model's first layer, and
the decoder's adds nothing to the enlarged image. The larger model thus starts from the smaller one's images and motion,
and only learns the details.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from af.errors import UserError
from af.models.artifact import load_as
from af.models.autoencoder import MotionAutoencoder
from af.nn.equalized import GAIN, SLOPE, EqualConv2d

_KEEP = 3.0  # raw mask of the copying machine: a portrait's features count 95 %
_COLOURS = 1 << 14  # random colours for the statistics of a layer


@torch.no_grad()
def start_as_copy(model: MotionAutoencoder) -> None:
    """Set the outermost layers so that the untrained `model` shows the portrait unchanged: flows are zero, masks keep
    the portrait's features, and only the outermost level adds colours. It then learns what moves, and not first to see.

    Raises UserError for a model without `paint`, or with too few channels for the colours.
    """
    if not _paints(model):
        raise UserError("module.copy_first needs model.paint=true")
    top, rgb = model.decoder.levels[str(model.image_size)], model.encoder.from_rgb
    signs = _signs(rgb)
    rgb.weight[: len(signs), :, 0, 0] = signs / rgb.scale
    rgb.bias[: len(signs)] = 0  # type: ignore[index]
    for level in model.decoder.levels.values():
        level.get_parameter("rgb.weight").zero_()
    first = next(iter(model.decoder.levels.values()))
    first.get_parameter("flow.bias")[2] = _KEEP  # the raw masks of all levels add up
    kept = torch.sigmoid(torch.tensor(_KEEP))
    colours = top.get_submodule("rgb")
    assert isinstance(colours, EqualConv2d)
    colours.weight[:, : len(signs), 0, 0] = signs.T / ((1 + SLOPE) * kept * colours.scale)
    # moves the colours to where the leaky ReLU is the identity, and back
    top.get_parameter("rgb_inner_bias").fill_(2.0 / GAIN)
    top.get_parameter("rgb_bias").fill_(-2.0)


@torch.no_grad()
def start_from(model: MotionAutoencoder, folder: str | Path) -> None:
    """Start `model` from the weights of the model in `folder`, of the same or half its size.

    Raises UserError when that model differs in kind, widths or `paint`.
    """
    small, _ = load_as(folder, MotionAutoencoder)
    if model.image_size not in (small.image_size, 2 * small.image_size):
        raise UserError(
            f"{folder} is a model of {small.image_size} px: it can start a model of {small.image_size} or "
            f"{2 * small.image_size} px, not of {model.image_size} (model.image_size); go by doubling"
        )
    grown = model.image_size > small.image_size
    weights, wanted = small.state_dict(), model.state_dict()
    known = {n: v for n, v in weights.items() if not (grown and n.startswith("encoder.from_rgb."))}
    wrong = [n for n, v in known.items() if n not in wanted or wanted[n].shape != v.shape]
    new = [n for n in wanted if n not in known and not (grown and _outermost(n, model.image_size))]
    if wrong or new:
        raise UserError(
            f"{folder} has other layers than the model to start (first: {(wrong + new)[0]}): "
            "latent_dim, directions, channel_base, max_channels, motion_layers, normalised and variational must agree"
        )
    if _paints(model) != _paints(small):  # the same layers would give another image
        raise UserError(f"{folder} has paint={_paints(small)}, the model to start {_paints(model)} (model.paint)")
    model.load_state_dict(known, strict=False)
    if grown:
        _hand_colours_on(model, small)
        level = model.decoder.levels[str(model.image_size)]
        for name in ("rgb.weight", "rgb_inner_bias", "rgb_bias"):
            level.get_parameter(name).zero_()


def _signs(rgb: EqualConv2d) -> Tensor:
    """The colours with both signs, (6, 3): the first channels of a layer that hands them on."""
    if (width := rgb.weight.shape[0]) < 6:
        raise UserError(f"{width} channels in the outermost layer are too few to hand colours on, which takes 6")
    eye = torch.eye(3, device=rgb.weight.device)
    return torch.cat((eye, -eye))


def _paints(model: MotionAutoencoder) -> bool:
    return any(level.paint for level in model.decoder.levels.values())


def _outermost(name: str, size: int) -> bool:
    parts = ("encoder.from_rgb", f"encoder.down.{size}", f"encoder.norms.{size}", f"decoder.levels.{size}")
    return name.startswith(tuple(f"{part}." for part in parts))


def _hand_colours_on(model: MotionAutoencoder, small: MotionAutoencoder) -> None:
    """Initialise the outermost encoder layers to reproduce the smaller model's first layer on the halved image.

    A leaky ReLU loses nothing of a colour passed with both signs: leaky(x) - leaky(-x) = (1 + slope) x.
    """
    size, first = str(model.image_size), small.encoder.from_rgb
    block, rgb = model.encoder.down[size], model.encoder.from_rgb
    conv1, conv2, skip = (block.get_submodule(name) for name in ("conv1", "conv2", "skip"))
    assert isinstance(conv1, EqualConv2d)
    assert isinstance(conv2, EqualConv2d)
    signs = _signs(rgb)
    rgb.weight[:6, :, 0, 0] = signs
    rgb.bias[:6] = 0  # type: ignore[index]
    gain = rgb.scale * (1 + SLOPE)  # the two channels of a colour, subtracted
    conv1.weight[:6] = 0
    conv1.weight[:6, :6, 1, 1] = signs @ signs.T / (gain * conv1.scale)
    conv1.bias[:6] = 0  # type: ignore[index]
    conv2.weight.zero_()
    folded = first.weight[:, :, 0, 0] * first.scale
    conv2.weight[:, :6, 1, 1] = folded @ signs.T / ((1 + SLOPE) * conv2.scale)
    conv2.get_parameter("bias").copy_(first.get_parameter("bias") * (first.bias_gain / conv2.bias_gain))
    skip.get_parameter("weight").zero_()
    if size in model.encoder.norms:
        # Normalisation would remove the statistics that the smaller model's layer has on random colours; restore them.
        colours = torch.rand(_COLOURS, 3, 1, 1, generator=torch.Generator().manual_seed(0)) * 2 - 1
        values: Tensor = first(colours.to(rgb.weight.device)).flatten(1)
        norm = model.encoder.norms[size]
        norm.get_parameter("weight").copy_(values.std(0))
        norm.get_parameter("bias").copy_(values.mean(0))
        norm.get_buffer("running_mean").copy_(values.mean(0))
        norm.get_buffer("running_var").copy_(values.var(0))
