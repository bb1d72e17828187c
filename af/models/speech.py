"""Frozen speech features of a waveform at 25 fps: one vector per video frame.

*utterance* mode reads the whole clip, like the released model. *streaming* mode computes each block of B frames from at
most W frames of samples up to the block's end, plus a declared right context: a live session computes exactly the
features that a model was trained on. Both round to float16, the precision of the shards.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from af.clock import SAMPLES_PER_FRAME, frames_to_samples, samples_to_frames
from af.errors import UserError, require_choice
from af.mel import mel_filters
from af.models.artifact import weights_digest
from af.types import FeatureSpec

Mode = Literal["utterance", "streaming"]
_FFT = 512  # samples of a spectrum of the log-mel features


class SpeechFeatures(nn.Module):
    """Base of the extractors, with their shared windows, normalisation and rounding.

    A subclass defines `encode(windows (N, S)) -> (N, T, F)` with T = S / 640, and a `spec`; its configuration states
    `dim`, the numbers per frame, which models read from there. Audio on any device is moved to the extractor's device,
    where the features stay.
    """

    def __init__(self, spec: FeatureSpec, silence: float) -> None:
        super().__init__()
        self.spec = spec
        self.silence = silence
        self.register_buffer("_here", torch.empty(0), persistent=False)  # extractors without weights have a device too

    _here: Tensor

    @property
    def device(self) -> torch.device:
        """Where the features are computed."""
        return self._here.device

    def encode(self, windows: Float[Tensor, "N S"]) -> Float[Tensor, "N T F"]:
        """Features of normalised windows of equal length, S a multiple of 640."""
        raise NotImplementedError

    def forward(self, waveform: Float[Tensor, " S"]) -> Float[Tensor, "T F"]:
        """Features of a clip of S samples (16 kHz mono, in [-1, 1]): T = S // 640 whole frames.

        In streaming mode silence completes a partial last block. Raises ValueError for non-finite samples.
        """
        return torch.cat(list(self.pieces(waveform)))

    def pieces(self, waveform: Float[Tensor, " S"]) -> Iterator[Float[Tensor, "t F"]]:
        """The features in pieces: groups of whole blocks in bounded memory (streaming), or all at once (utterance)."""
        for features in self.voices([waveform]):
            yield features[0]

    def voices(self, waveforms: Sequence[Float[Tensor, " S"]]) -> Iterator[list[Float[Tensor, "t F"]]]:
        """`pieces` of several voices, computed together; each equals its features alone, up to rounding. Raises
        ValueError for voices of different lengths, since padding would change the features.
        """
        if len({len(w) for w in waveforms}) != 1 or any(
            w.ndim != 1 or samples_to_frames(len(w)) == 0 for w in waveforms
        ):
            raise ValueError(
                "expected waveforms of one length and at least one frame (640 samples), got "
                f"{', '.join(str(tuple(w.shape)) for w in waveforms)}"
            )
        frames = samples_to_frames(len(waveforms[0]))
        sound = _finite(torch.stack([w[: frames_to_samples(frames)].float() for w in waveforms]))
        if self.spec.block_frames is None:
            with torch.no_grad():
                features = self._features(sound)
            yield list(features)
            return
        blocks = math.ceil(frames / self.spec.block_frames)
        end = frames_to_samples(blocks * self.spec.block_frames + self.spec.right_context_frames)
        sound = F.pad(sound, (0, end - sound.shape[1]))
        made = 0
        for group in _equal_windows(blocks, self.spec, max(1, _WINDOWS_AT_ONCE // len(waveforms))):
            windows = torch.stack([sound[:, start:stop] for start, stop in group], 1)
            features = self.block(windows.flatten(0, 1)).unflatten(0, windows.shape[:2]).flatten(1, 2)
            yield list(features[:, : frames - made])
            made += features.shape[1]

    @torch.no_grad()
    def block(self, windows: Float[Tensor, "N S"]) -> Float[Tensor, "N T F"]:
        """Features of the newest block of each window [start, stop) from `block_window`, for live sessions.

        Raises ValueError for non-finite samples on the host; checking those on a device would wait for it.
        """
        block, right = self.spec.block_frames, self.spec.right_context_frames
        if block is None:
            raise ValueError("utterance features have no blocks")
        features = self._features(_finite(windows) if windows.device.type == "cpu" else windows)
        end = features.shape[1] - right
        return features[:, end - block : end]

    def _features(self, windows: Tensor) -> Tensor:
        windows = windows.to(self.device, non_blocking=True)
        mean = windows.mean(-1, keepdim=True)
        variance = windows.var(-1, correction=0, keepdim=True)
        normalised = (windows - mean) / (variance + self.silence).sqrt()
        # shards hold float16, so the live path rounds likewise
        return self.encode(normalised).half().float()


_WINDOWS_AT_ONCE = 64  # bounds the memory of streaming features


def _finite(sound: Tensor) -> Tensor:
    if not torch.isfinite(sound).all():
        raise ValueError("the waveform holds NaN or infinite samples")
    return sound


def _windows(mode: Mode, block: int, window: int, right: int) -> dict[str, Any]:
    """The spec's window entries, None for utterance features."""
    if mode == "utterance":
        return {}
    return {"block_frames": block, "window_frames": window, "right_context_frames": right}


def block_window(block: int, spec: FeatureSpec) -> tuple[int, int]:
    """Samples [start, stop) for the features of block number `block` (from 0), in streaming mode."""
    if spec.mode != "streaming" or spec.block_frames is None or spec.window_frames is None:
        raise ValueError("only streaming features have block windows")
    end = (block + 1) * spec.block_frames
    return (
        frames_to_samples(max(0, end - spec.window_frames)),
        frames_to_samples(end + spec.right_context_frames),
    )


def _equal_windows(blocks: int, spec: FeatureSpec, limit: int) -> Iterator[list[tuple[int, int]]]:
    """Windows of consecutive blocks, in groups of equal length and at most `limit` windows (bounded memory)."""
    windows = (block_window(block, spec) for block in range(blocks))
    for _, same in groupby(windows, lambda window: window[1] - window[0]):
        while group := list(islice(same, limit)):
            yield group


class LogMel(SpeechFeatures):
    """Log-mel energies, without weights: `hops` spectra per frame, each with `dim` / `hops` bands.

    Each spectrum reads only samples before its end, so even within a block no frame sees the future.
    """

    def __init__(
        self,
        mode: Mode = "streaming",
        dim: int = 64,
        hops: int = 2,
        block_frames: int = 10,
        window_frames: int = 50,
        right_context_frames: int = 0,
    ) -> None:
        if hops < 1 or SAMPLES_PER_FRAME % hops:
            raise ValueError(f"hops must divide {SAMPLES_PER_FRAME} samples a frame, got {hops}")
        mels = dim // hops
        if dim % hops or not 1 <= mels <= _FFT // 2:
            raise ValueError(f"dim must be {hops} hops x 1 ... {_FFT // 2} bands (half a spectrum's window), got {dim}")
        windows = _windows(mode, block_frames, window_frames, right_context_frames)
        spec = FeatureSpec("logmel", f"1-{mels}x{hops}", dim, mode, **windows)
        super().__init__(spec, silence=1e-5)  # -50 dBFS: noise floors stay quiet and are not amplified to speech level
        self.hops, self.n_fft = hops, _FFT
        filters = torch.from_numpy(mel_filters(mels, self.n_fft, low_hz=60.0).T.copy()).float()
        self.register_buffer("filters", filters, persistent=False)
        self.register_buffer("taper", torch.hann_window(self.n_fft, periodic=True), persistent=False)

    filters: Tensor
    taper: Tensor

    def encode(self, windows: Float[Tensor, "N S"]) -> Float[Tensor, "N T F"]:
        """Log energies, scaled to about unit range."""
        hop = SAMPLES_PER_FRAME // self.hops
        past = F.pad(windows, (self.n_fft - hop, 0)).unfold(-1, self.n_fft, hop)
        power = torch.fft.rfft(past * self.taper).abs().square() / self.n_fft
        energy = torch.log((power @ self.filters.T) + 1e-4)
        return ((energy + 4) / 4).unflatten(1, (-1, self.hops)).flatten(2)


class Wav2Vec2Features(SpeechFeatures):
    """All transformer layers of a wav2vec 2.0 model, concatenated layer-major; frozen, eval mode, fp32.

    `checkpoint` is a Hugging Face name (``facebook/wav2vec2-base-960h``) or a local folder, `dim` the expected size of
    all layers (None: any). `resample` is where 50 Hz becomes 25 fps: "before" the transformer, on the convolutional
    features (as released), or "after" it. Raises UserError when the checkpoint cannot be read or has another size.
    """

    def __init__(
        self,
        checkpoint: str | Path = "facebook/wav2vec2-base-960h",
        mode: Mode = "streaming",
        dim: int | None = None,
        resample: Literal["before", "after"] = "before",
        block_frames: int = 10,
        window_frames: int = 50,
        right_context_frames: int = 0,
    ) -> None:
        from transformers import Wav2Vec2Model

        try:
            model = Wav2Vec2Model.from_pretrained(str(checkpoint), dtype=torch.float32)
        except (OSError, ValueError) as error:
            raise UserError(
                f"wav2vec2 checkpoint {str(checkpoint)!r} cannot be read ({error}); give a local folder saved with "
                "save_pretrained, or a Hugging Face name on a machine with network"
            ) from error
        require_choice("resample", "place", resample, ("before", "after"))
        layers = model.config.num_hidden_layers
        found = layers * model.config.hidden_size
        if dim not in (None, found):
            raise UserError(f"features.dim={dim}: the {layers} layers of {checkpoint} give {found} numbers a frame")
        spec = FeatureSpec(
            "wav2vec2",
            f"1-{resample}",
            found,
            mode,
            **_windows(mode, block_frames, window_frames, right_context_frames),
            layers=tuple(range(1, layers + 1)),
            checkpoint=weights_digest(model),
        )
        super().__init__(spec, silence=1e-7)  # the value of the Hugging Face feature extractor
        self.resample = resample
        self.model = model.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> Wav2Vec2Features:
        """Stay in eval mode: training mode would turn on SpecAugment and layer drop."""
        return super().train(False)  # type: ignore[return-value]

    def encode(self, windows: Float[Tensor, "N S"]) -> Float[Tensor, "N T F"]:
        """Outputs of every layer at 25 fps."""
        frames = samples_to_frames(windows.shape[-1])
        features = self.model.feature_extractor(windows)
        if self.resample == "before":
            features = _resample(features, frames)
        hidden, _ = self.model.feature_projection(features.transpose(1, 2))
        outputs: list[Tensor] = []
        hooks = [
            layer.register_forward_hook(lambda _m, _i, out: outputs.append(out[0] if isinstance(out, tuple) else out))
            for layer in self.model.encoder.layers
        ]
        try:
            last = self.model.encoder(hidden).last_hidden_state
        finally:
            for hook in hooks:
                hook.remove()
        outputs[-1] = last  # the same tensor for base models; after the final norm for stable-layer-norm ones
        stacked = torch.cat(outputs, dim=-1)
        if self.resample == "after":
            stacked = _resample(stacked.transpose(1, 2), frames).transpose(1, 2)
        return stacked


def _resample(features: Tensor, frames: int) -> Tensor:
    return F.interpolate(features, size=frames, mode="linear", align_corners=True)
