"""Frozen networks for perceptual distances: VGG19 from a weights file, LPIPS from its package, an autoencoder's own
encoder.

None is shipped or downloaded here. They are callables, not modules, to stay out of checkpoints, parameter averages
and optimisers; they move to the device of their input.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from af.errors import UserError
from af.models.artifact import load_as
from af.models.autoencoder import MotionAutoencoder

# torchvision's `features` numbering of VGG19: (index of the convolution, inputs, outputs), None for a 2x2 max pooling.
VGG19_LAYERS: tuple[tuple[int, int, int] | None, ...] = (
    (0, 3, 64), (2, 64, 64), None, (5, 64, 128), (7, 128, 128), None,
    (10, 128, 256), (12, 256, 256), (14, 256, 256), (16, 256, 256), None,
    (19, 256, 512), (21, 512, 512), (23, 512, 512), (25, 512, 512), None, (28, 512, 512),
)  # fmt: skip
_OUTPUTS = (0, 5, 10, 19, 28)  # relu1_1, relu2_1, relu3_1, relu4_1, relu5_1
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class VggFeatures:
    """ImageNet VGG19 activations relu1_1 ... relu5_1 of images in [-1, 1].

    `weights` is torchvision's `vgg19-dcbb9e9d.pth` (or any state dict with its `features.N.weight/bias`). Raises
    UserError if the file is missing or is another network.
    """

    def __init__(self, weights: str | Path) -> None:
        path = Path(weights)
        if not path.is_file():
            raise UserError(
                f"{path}: no such file. The perceptual loss needs torchvision's VGG19 weights (vgg19-dcbb9e9d.pth, "
                "https://download.pytorch.org/models/vgg19-dcbb9e9d.pth); set their path, or turn the loss off."
            )
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise UserError(f"{path}: cannot be read as a checkpoint ({error}).") from error
        self.weights: dict[int, tuple[Tensor, Tensor]] = {}
        for layer in VGG19_LAYERS:
            if layer:
                index, inputs, outputs = layer
                weight, bias = state.get(f"features.{index}.weight"), state.get(f"features.{index}.bias")
                if weight is None or bias is None or tuple(weight.shape) != (outputs, inputs, 3, 3):
                    raise UserError(f"{path}: not VGG19 weights (features.{index} is missing or of another shape).")
                self.weights[index] = (weight.contiguous(memory_format=torch.channels_last), bias)
        self.mean, self.std = torch.tensor(_MEAN).view(1, 3, 1, 1), torch.tensor(_STD).view(1, 3, 1, 1)

    def __call__(self, image: Float[Tensor, "B 3 Y X"]) -> list[Tensor]:
        """The five activations; fewer for images under 16 px, which pooling would reduce to nothing."""
        if self.mean.device != image.device:
            self.weights = {i: (w.to(image.device), b.to(image.device)) for i, (w, b) in self.weights.items()}
            self.mean, self.std = self.mean.to(image.device), self.std.to(image.device)
        x = ((image + 1) / 2 - self.mean) / self.std
        outputs: list[Tensor] = []
        for layer in VGG19_LAYERS:
            if layer is None:
                if x.shape[-1] < 2:
                    return outputs
                x = F.max_pool2d(x, 2)
            else:
                x = F.relu(F.conv2d(x, *self.weights[layer[0]], padding=1))
                if layer[0] in _OUTPUTS:
                    outputs.append(x)
        return outputs


class EncoderFeatures:
    """Activations and motion coefficients of the trained motion autoencoder in `folder` (a model folder, run or
    checkpoint), for images in [-1, 1] of its size.

    An encoder guided by face parameters sees what a pixel loss hardly does: whether the mouth is open, and as wide as it
    should be. Raises UserError when there is no such model.
    """

    def __init__(self, folder: str | Path) -> None:
        model, _ = load_as(folder, MotionAutoencoder)
        self.network = model.eval().requires_grad_(False)

    def __call__(self, image: Float[Tensor, "B 3 Y X"]) -> list[Tensor]:
        """Activations from 8 px to half the size, then the coefficients, which weigh as much as one of them."""
        self.network.to(image.device)
        identity = self.network.identity(image, check=False)
        return [*identity.features[:-1], self.network.reference_motion(identity) @ self.network.directions()]


class LpipsPerceptual:
    """LPIPS distance from the `lpips` package (extra `lpips`), which loads its own backbone weights.

    Raises UserError without the package or its weights.
    """

    def __init__(self, net: str = "vgg") -> None:
        try:
            import lpips
        except ImportError as error:
            raise UserError("LPIPS needs the extra: pip install 'avatar-forcing[lpips]'.") from error
        try:
            network: nn.Module = lpips.LPIPS(net=net, verbose=False)
        except Exception as error:  # neither a network connection nor cached weights
            raise UserError(
                f"LPIPS could not load its {net} weights ({error}). Turn the loss off, or cache them."
            ) from error
        self.network = network.eval().requires_grad_(False)

    def __call__(self, prediction: Float[Tensor, "B 3 Y X"], target: Float[Tensor, "B 3 Y X"]) -> Float[Tensor, ""]:
        """The distance, mean over the batch."""
        self.network.to(prediction.device)
        return self.network(prediction, target.detach()).mean()
