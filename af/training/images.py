"""Images for TensorBoard: masks, noise levels, curves and animations."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from af.clock import FPS


def figure_image(figure: Figure) -> UInt8[np.ndarray, "Y X 3"]:
    """A matplotlib figure as an RGB array (no global pyplot state)."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def mask_image(mask: Tensor, title: str, block_frames: int) -> UInt8[np.ndarray, "Y X 3"]:
    """A boolean attention mask (rows are queries, columns keys), with the blocks' borders."""
    figure = Figure(figsize=(4.4, 4.4), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(mask.cpu().numpy(), cmap="Greens", vmin=0, vmax=1.4, interpolation="nearest")
    for border in range(block_frames, max(mask.shape), block_frames):
        axes.axhline(border - 0.5, color="0.5", lw=0.5)
        axes.axvline(border - 0.5, color="0.5", lw=0.5)
    axes.set(title=title, xlabel="key frame", ylabel="query frame")
    return figure_image(figure)


def noise_level_image(flow_time: Float[Tensor, "B T"]) -> UInt8[np.ndarray, "Y X 3"]:
    """Flow times of a batch, one row per sequence; dark is noise (t = 0), light is clean (t = 1)."""
    figure = Figure(figsize=(5, 0.6 + 0.18 * len(flow_time)), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(flow_time.cpu().numpy(), cmap="viridis", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    axes.set(title="flow time of every frame", xlabel="frame", ylabel="sequence")
    figure.colorbar(image, ax=axes, label="t")
    return figure_image(figure)


def curves_image(
    true: Float[np.ndarray, "T C"], generated: Float[np.ndarray, "T C"], names: Sequence[str]
) -> UInt8[np.ndarray, "Y X 3"]:
    """True and generated curves, one panel each, over seconds."""
    figure = Figure(figsize=(7, 0.5 + 1.1 * len(names)), layout="constrained")
    rows = figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]
    seconds = np.arange(len(true)) / FPS
    for i, (axes, name) in enumerate(zip(rows, names, strict=True)):
        axes.plot(seconds, true[:, i], color="0.55", lw=1.2, label="true")
        axes.plot(seconds, generated[:, i], color="tab:red", lw=1.0, label="generated")
        axes.set_ylabel(name, fontsize=8)
    rows[0].legend(loc="upper right", fontsize=7, ncols=2)
    rows[-1].set_xlabel("seconds")
    return figure_image(figure)


def add_image(writer: Any, tag: str, image: UInt8[np.ndarray, "Y X 3"], step: int) -> None:
    """Write one RGB image to TensorBoard."""
    writer.add_image(tag, image, step, dataformats="HWC")


def add_animation(writer: Any, tag: str, frames: UInt8[np.ndarray, "T Y X 3"], step: int, stride: int = 2) -> None:
    """Write an animated GIF as an image summary (`SummaryWriter.add_video` needs an old moviepy)."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    images = [Image.fromarray(frame).convert("P", palette=Image.Palette.ADAPTIVE) for frame in frames[::stride]]
    buffer = io.BytesIO()
    images[0].save(buffer, "GIF", save_all=True, append_images=images[1:], duration=round(1000 * stride / FPS), loop=0)
    height, width = frames.shape[1:3]
    summary = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=buffer.getvalue())
    writer._get_file_writer().add_summary(Summary(value=[Summary.Value(tag=tag, image=summary)]), step)
