"""The motion autoencoder: a portrait's identity and a frame's motion on K orthonormal directions, decoded to images.

`z = z_S + Q λ`: the encoder maps every image to a code in R^D. A portrait's code is the identity z_S; for a driving
frame a small head maps the code to K coefficients λ. The decoder, styled by z, warps the portrait's features by a flow
predicted at every scale. With `variational` the head also predicts the variance of a Gaussian posterior over λ; without
it, and without a KL term, this is the paper's autoencoder. Layout and numerics follow the released model (LIA family);
everything runs in channels-last, with one shared weight for all frames.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from af.models.decoder import Decoder, LightDecoder
from af.nn.equalized import EqualConv2d, EqualLinear, ResidualDown
from af.nn.precision import single, without_autocast
from af.types import Identity
from af.values import require_number

CHUNK_PIXELS = 512 * 512  # decoded at once by default: one frame at 512 px, 64 at 64 px


@dataclass(frozen=True)
class AutoencoderOutput:
    """A reconstruction and its posterior; `log_variance` is None for the plain autoencoder."""

    image: Float[Tensor, "B 3 Y X"]
    coefficients: Float[Tensor, "B K"]
    log_variance: Float[Tensor, "B K"] | None
    motion: Float[Tensor, "B D"]


@dataclass(frozen=True)
class EncodedPair:
    """A source's code and features, and the driving image's posterior and motion."""

    code: Float[Tensor, "B D"]
    features: tuple[Tensor, ...]
    coefficients: Float[Tensor, "B K"]
    log_variance: Float[Tensor, "B K"] | None
    motion: Float[Tensor, "B D"]


class Encoder(nn.Module):
    """Maps images to codes and features: 1x1 convolution, halving residual blocks down to 4 px, 4x4 convolution."""

    def __init__(self, image_size: int, latent_dim: int, channels: dict[int, int], normalised: bool) -> None:
        super().__init__()
        self.from_rgb = EqualConv2d(3, channels[image_size], 1, activate=True)
        sizes = [size for size in sorted(channels, reverse=True) if size > 4]
        self.down = nn.ModuleDict({str(size): ResidualDown(channels[size], channels[size // 2]) for size in sizes})
        norms = {str(size): nn.BatchNorm2d(channels[size // 2]) for size in sizes} if normalised else {}
        self.norms = nn.ModuleDict(norms)
        self.code = EqualConv2d(channels[4], latent_dim, 4)

    def forward(self, image: Float[Tensor, "B 3 Y X"]) -> tuple[Float[Tensor, "B D"], tuple[Tensor, ...]]:
        """The code and the features of every scale from 8 px to the full size."""
        x = self.from_rgb(image)
        features = [x]
        for size, block in self.down.items():
            x = block(x)
            if size in self.norms:
                x = self.norms[size](x)
            features.append(x)
        return single(self.code(x).flatten(1)), tuple(reversed(features[:-1]))


class MotionAutoencoder(nn.Module):
    """Autoencoder of RGB images in [-1, 1] with `image_size` pixels (a power of two, at least 16).

    Resolution r has min(channel_base / r, max_channels) channels, so a larger image size adds levels and keeps the
    shapes of the others: a 256 px model can start a 512 px one. Defaults are the released model.

    Released: `motion_layers` 5, neither `paint` nor `normalised`. `normalised` adds batch normalisation to the encoder,
    which then learns small details (lips, lids) in a tenth of the steps. `light` is the channel base of a
    `LightDecoder`, for images that a laptop shall decode (None: the full decoder).

    Raises ValueError for an impossible size. Source: arXiv 2601.00664 §3.1; LIA (arXiv 2203.09043) for the decoder.
    """

    def __init__(
        self,
        image_size: int = 512,
        latent_dim: int = 512,
        directions: int = 20,
        channel_base: int = 16384,
        max_channels: int = 512,
        motion_layers: int = 5,
        variational: bool = False,
        paint: bool = False,
        normalised: bool = False,
        light: int | None = None,
    ) -> None:
        super().__init__()
        for name in ("latent_dim", "max_channels", "motion_layers"):
            require_number(name, locals()[name], least=1, whole=True)
        if image_size < 16 or image_size & (image_size - 1):
            raise ValueError(f"image_size must be a power of two of at least 16, got {image_size}")
        require_number("directions", directions, least=1, most=latent_dim, whole=True)
        if channel_base < image_size:
            raise ValueError(f"channel_base {channel_base} leaves no channels at {image_size} px")
        require_number("light", light, least=image_size // 2, whole=True, optional=True)
        self.image_size, self.latent_dim, self.directions_count = image_size, latent_dim, directions
        self.variational = variational
        sizes = [4 * 2**i for i in range(image_size.bit_length() - 2)]
        channels = {size: min(channel_base // size, max_channels) for size in sizes}
        self.encoder = Encoder(image_size, latent_dim, channels, normalised)
        hidden = [EqualLinear(latent_dim, latent_dim) for _ in range(motion_layers - 1)]
        self.motion_head = nn.Sequential(*hidden, EqualLinear(latent_dim, directions))
        if variational:
            # Starts as a narrow posterior (σ = e^-2) of the same width for every image.
            self.log_variance_head = EqualLinear(latent_dim, directions, bias=-4.0)
            nn.init.zeros_(self.log_variance_head.weight)
        self.direction_weight = nn.Parameter(torch.randn(latent_dim, directions))
        self.decoder = (
            Decoder(latent_dim, channels, paint)
            if light is None
            else LightDecoder(image_size, latent_dim, channels, paint, light)
        )
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def _encode(self, image: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        expected = (3, self.image_size, self.image_size)
        if image.ndim != 4 or image.shape[1:] != expected:
            raise ValueError(f"images must be (batch, {', '.join(map(str, expected))}), got {tuple(image.shape)}")
        if not image.is_floating_point():
            raise ValueError(f"images must be floating point in [-1, 1], got {image.dtype}")
        return self.encoder(image.contiguous(memory_format=torch.channels_last))

    def _checked(self, image: Tensor) -> Tensor:
        if image.numel() and image.is_floating_point():
            low, high = torch.stack(torch.aminmax(image)).float().cpu().numpy()  # one wait for the device
            if not (low >= -1.01 and high <= 1.01):  # also catches NaN; codecs may overshoot slightly
                raise ValueError(f"images must lie in [-1, 1], got values from {low:.4g} to {high:.4g}")
        return image

    def _posterior(self, code: Float[Tensor, "B D"]) -> tuple[Tensor, Tensor | None]:
        # The denoiser learns motion coefficients: they stay fp32 whatever the convolutions use.
        with without_autocast(code.device):
            code = single(code)
            return self.motion_head(code), self.log_variance_head(code) if self.variational else None

    def identity(self, image: Float[Tensor, "B 3 Y X"], *, check: bool = True) -> Identity:
        """Code and appearance features of portraits; compute them once for all frames.

        Raises ValueError unless images are RGB (B, 3, size, size) in [-1, 1]. `check` checks the range, for which the
        host waits for the device; images converted from bytes do not need it.
        """
        code, features = self._encode(self._checked(image) if check else image)
        return Identity(code, self.decoder.appearance(features))

    def posterior(
        self, image: Float[Tensor, "B 3 Y X"], *, check: bool = True
    ) -> tuple[Float[Tensor, "B K"], Float[Tensor, "B K"] | None]:
        """Mean and log-variance of the coefficients λ (None without `variational`). Errors and `check` as in `identity`."""
        return self._posterior(self._encode(self._checked(image) if check else image)[0])

    def coefficients(self, image: Float[Tensor, "B 3 Y X"], *, check: bool = True) -> Float[Tensor, "B K"]:
        """Motion coefficients λ of images (the mean of the posterior). Errors and `check` as in `identity`."""
        return self.posterior(image, check=check)[0]

    def motion(self, image: Float[Tensor, "B 3 Y X"], *, check: bool = True) -> Float[Tensor, "B D"]:
        """Motion latents Q λ of images. Errors and `check` as in `identity`."""
        return self._along_directions(self.coefficients(image, check=check))

    def reference_motion(self, identity: Identity) -> Float[Tensor, "B D"]:
        """Motion latents of the portraits, from their codes: equals `motion(image)` without encoding again."""
        return self._along_directions(self._posterior(identity.code)[0])

    def directions(self) -> Float[Tensor, "D K"]:
        """The orthonormal motion directions Q, fp32, by QR with LAPACK's signs, on which trained weights depend."""
        with without_autocast(self.direction_weight.device):
            return torch.linalg.qr(single(self.direction_weight) + 1e-8).Q

    @staticmethod
    def keeps_motion(changed: Iterable[str]) -> bool:
        """Whether images have the same motion after a change of these parameters (names in the state)."""
        return all(name.startswith("decoder.") for name in changed)

    def _along_directions(self, coefficients: Float[Tensor, "B K"]) -> Float[Tensor, "B D"]:
        # In bfloat16 the product would leave the directions' span.
        with without_autocast(coefficients.device):
            return coefficients @ self.directions().T

    def decode(
        self, identity: Identity, motion: Float[Tensor, "B T D"], chunk_frames: int | None = None
    ) -> Float[Tensor, "B T 3 Y X"]:
        """T frames of each portrait, nominally in [-1, 1] (not clamped).

        Decodes `chunk_frames` frames of every portrait at a time (default: as many as fit `CHUNK_PIXELS`): without
        gradients only the images themselves grow with T. Raises ValueError if the motion's batch or width does not fit
        the identity.
        """
        portraits, frames = motion.shape[:2]
        if motion.ndim != 3 or motion.shape[2] != self.latent_dim or portraits != identity.code.shape[0]:
            raise ValueError(
                f"motion must be ({identity.code.shape[0]}, frames, {self.latent_dim}), got {tuple(motion.shape)}"
            )
        with without_autocast(motion.device):
            code = (single(identity.code)[:, None] + single(motion)).flatten(0, 1)
        modulation = self.decoder.modulation(code)
        features = tuple(single(maps) for maps in identity.features)
        chunk = chunk_frames or max(1, CHUNK_PIXELS // (portraits * self.image_size**2))
        index = torch.arange(portraits * frames, device=motion.device).view(portraits, frames)
        pieces = [
            self.decoder(features, modulation, part.flatten()).unflatten(0, part.shape)
            for part in index.split(chunk, dim=1)
        ]
        return torch.cat(pieces, 1)

    def forward(
        self,
        source: Float[Tensor, "B 3 Y X"],
        driving: Float[Tensor, "B 3 Y X"] | None = None,
        noise: Float[Tensor, "B K"] | None = None,
    ) -> AutoencoderOutput:
        """Reconstruct `driving` from the appearance of `source` (same person) and its own coefficients.

        Without `driving` the halves of `source` drive each other: images i and i + B/2 show the same person, and each
        is encoded only once for both directions. With standard normal `noise` (and `variational`) the coefficients are
        a sample of the posterior, otherwise its mean. Errors as `identity`, without the check of the range.
        """
        given = self.encode_pair(source, driving, noise)
        identity = Identity(given.code, self.decoder.appearance(given.features))
        image = self.decode(identity, given.motion[:, None], chunk_frames=1)[:, 0]
        return AutoencoderOutput(image, given.coefficients, given.log_variance, given.motion)

    def encode_pair(
        self,
        source: Float[Tensor, "B 3 Y X"],
        driving: Float[Tensor, "B 3 Y X"] | None = None,
        noise: Float[Tensor, "B K"] | None = None,
    ) -> EncodedPair:
        """What `forward` decodes."""
        code, features = self._encode(source)
        if driving is None:
            half = len(source) // 2
            mean, log_variance = self._posterior(code)
            mean, log_variance = mean.roll(half, 0), None if log_variance is None else log_variance.roll(half, 0)
        else:
            mean, log_variance = self._posterior(self._encode(driving)[0])
        coefficients = mean
        if noise is not None and log_variance is not None:
            coefficients = mean + noise * torch.exp(0.5 * log_variance)
        return EncodedPair(code, features, mean, log_variance, self._along_directions(coefficients))
