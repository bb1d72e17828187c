"""The released motion autoencoder (`motion_autoencoder.pth`) as our module.

The table below is the whole conversion: our names, theirs, and changes of shape.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

from af.models.autoencoder import MotionAutoencoder
from af.models.decoder import COARSEST
from af.models.released.files import Source, check_layout, read_state

PREFIX: Final = "motion_autoencoder."
IMAGE_SIZE: Final = 512
#: The constructor call of the released model.
CONFIG: Final[dict[str, Any]] = {"_target_": "af.models.autoencoder.MotionAutoencoder", "image_size": IMAGE_SIZE}


def released_names(image_size: int = IMAGE_SIZE, motion_layers: int = 5) -> dict[str, str]:
    """Our parameter name -> the released one, without its prefix, for a model of `image_size`."""
    sizes = [COARSEST * 2**i for i in range((image_size // COARSEST).bit_length())]
    app = "enc.net_app.convs."
    names = {"encoder.from_rgb.weight": f"{app}0.0.weight", "encoder.from_rgb.bias": f"{app}0.1.bias"}
    for i, size in enumerate(reversed(sizes), start=1):
        ours, theirs = f"encoder.down.{size}.", f"{app}{i}."
        names |= {
            f"{ours}conv1.weight": f"{theirs}conv1.0.weight",
            f"{ours}conv1.bias": f"{theirs}conv1.1.bias",
            f"{ours}conv2.weight": f"{theirs}conv2.1.weight",
            f"{ours}conv2.bias": f"{theirs}conv2.2.bias",
            f"{ours}skip.weight": f"{theirs}skip.1.weight",
        }
    names["encoder.code.weight"] = f"{app}{len(sizes) + 1}.weight"
    for i in range(motion_layers):
        names |= {f"motion_head.{i}.{part}": f"enc.fc.{i}.{part}" for part in ("weight", "bias")}
    names |= {"direction_weight": "dec.direction.weight", "decoder.constant": "dec.input.input"}

    def styled(ours: str, theirs: str) -> dict[str, str]:
        return {
            f"{ours}.weight": f"{theirs}.conv.weight",
            f"{ours}.bias": f"{theirs}.activate.bias",
            f"{ours}.style.weight": f"{theirs}.conv.modulation.weight",
            f"{ours}.style.bias": f"{theirs}.conv.modulation.bias",
        }

    names |= styled("decoder.conv", "dec.conv1")
    for i, size in enumerate(sizes):
        level = f"decoder.levels.{size}."
        names |= styled(f"{level}up", f"dec.convs.{2 * i}") | styled(f"{level}conv", f"dec.convs.{2 * i + 1}")
        names |= {
            f"{level}flow.weight": f"dec.to_flows.{i}.conv.weight",
            f"{level}flow.bias": f"dec.to_flows.{i}.bias",
            f"{level}flow.style.weight": f"dec.to_flows.{i}.conv.modulation.weight",
            f"{level}flow.style.bias": f"dec.to_flows.{i}.conv.modulation.bias",
            f"{level}rgb.weight": f"dec.to_rgbs.{i}.conv.0.weight",
            f"{level}rgb_inner_bias": f"dec.to_rgbs.{i}.conv.1.bias",
            f"{level}rgb_bias": f"dec.to_rgbs.{i}.bias",
        }
    return names


def unused_names(image_size: int = IMAGE_SIZE) -> set[str]:
    """Released tensors without effect: noise gains (noise is off) and the unused 4 px colours."""
    convolutions = 2 * (image_size // COARSEST).bit_length()
    noise = {f"dec.convs.{i}.noise.weight" for i in range(convolutions)} | {"dec.conv1.noise.weight"}
    return noise | {"dec.to_rgb1.bias", "dec.to_rgb1.conv.0.weight", "dec.to_rgb1.conv.1.bias"}


def read_autoencoder(source: Source) -> MotionAutoencoder:
    """The released 512 px motion autoencoder of `motion_autoencoder.pth`, in evaluation mode, fp32.

    Raises UserError listing every missing, unexpected and misshapen key.
    """
    state = read_state(source)
    model = MotionAutoencoder(IMAGE_SIZE)
    names = {PREFIX + theirs: ours for ours, theirs in released_names().items()}
    unused = {PREFIX + name for name in unused_names()}
    shapes = {theirs: model.get_parameter(ours).shape for theirs, ours in names.items()}
    ours = {
        key: _reshaped(names[key], tensor, shapes[key]) if key in names else tensor
        for key, tensor in ((PREFIX + key.removeprefix(PREFIX), tensor) for key, tensor in state.items())
        if key not in unused
    }
    check_layout(ours, shapes, source)
    model.load_state_dict({names[key]: tensor.float() for key, tensor in ours.items()})
    return model.eval().requires_grad_(False)


def _reshaped(name: str, tensor: Tensor, shape: torch.Size) -> Tensor:
    """The tensor in our layout, or unchanged if its shape cannot be converted."""
    if name.endswith("up.weight") and tensor.ndim == 5:  # (1, O, I, 3, 3) -> (I, O, 3, 3)
        tensor = tensor[0].transpose(0, 1)
    squeezed = [size for size in tensor.shape if size != 1]
    return tensor.reshape(shape) if squeezed == [size for size in shape if size != 1] else tensor
