"""The released motion autoencoder's checkpoint (CC BY-NC 4.0, the user's own copy) as our module.

The table below is the whole conversion: our names, theirs, and how a tensor changes shape between the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from af.errors import UserError
from af.models.autoencoder import COARSEST, MotionAutoencoder

PREFIX = "motion_autoencoder."
IMAGE_SIZE = 512


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
    """Released tensors that compute nothing: noise gains (noise is off) and the 4 px colours, which nobody reads."""
    convolutions = 2 * (image_size // COARSEST).bit_length()
    noise = {f"dec.convs.{i}.noise.weight" for i in range(convolutions)} | {"dec.conv1.noise.weight"}
    return noise | {"dec.to_rgb1.bias", "dec.to_rgb1.conv.0.weight", "dec.to_rgb1.conv.1.bias"}


def _reshape(name: str, tensor: Tensor, shape: torch.Size) -> Tensor | None:
    """The tensor in our layout, or None if it cannot be that parameter."""
    if name.endswith("up.weight") and tensor.ndim == 5:  # (1, O, I, 3, 3) -> (I, O, 3, 3)
        tensor = tensor[0].transpose(0, 1)
    squeezed = [size for size in tensor.shape if size != 1]
    return tensor.reshape(shape) if squeezed == [size for size in shape if size != 1] else None


def read_autoencoder(source: str | Path | Mapping[str, Tensor]) -> MotionAutoencoder:
    """The released 512 px motion autoencoder from `motion_autoencoder.pth` (or .safetensors, or its state dict).

    Returns the module in evaluation mode, fp32. Raises UserError if the file cannot be read, or if keys are missing,
    unexpected or of another shape; all of them are named.
    """
    where = "the state dict" if isinstance(source, Mapping) else str(source)
    state = source if isinstance(source, Mapping) else _load(Path(source))
    state = {key.removeprefix(PREFIX): value for key, value in state.items()}
    model = MotionAutoencoder(IMAGE_SIZE)
    names, parameters = released_names(), dict(model.named_parameters())
    missing = [PREFIX + theirs for theirs in names.values() if theirs not in state]
    unexpected = [PREFIX + key for key in sorted(set(state) - set(names.values()) - unused_names())]
    converted, shapes = {}, []
    for ours, theirs in names.items():
        if theirs in state:
            tensor = _reshape(ours, state[theirs], parameters[ours].shape)
            if tensor is None:
                shapes.append(f"{PREFIX}{theirs} {tuple(state[theirs].shape)}")
            else:
                converted[ours] = tensor.float()
    problems = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    found = "; ".join(f"{len(keys)} {what}: {_few(keys)}" for what, keys in problems.items() if keys)
    if found:
        raise UserError(f"{where} is not the released motion autoencoder ({found}). Expected motion_autoencoder.pth.")
    model.load_state_dict(converted)
    return model.eval().requires_grad_(False)


def _few(keys: list[str], limit: int = 20) -> str:
    rest = len(keys) - limit
    return ", ".join(keys[:limit]) + (f" and {rest} more" if rest > 0 else "")


def _load(path: Path) -> Mapping[str, Tensor]:
    if not path.is_file():
        raise UserError(f"{path}: no such file. Give the path of your copy of motion_autoencoder.pth.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{path}: cannot be read as a checkpoint ({error}). Is it truncated?") from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path}: holds no flat state dict of tensors. Expected motion_autoencoder.pth.")
    return state
