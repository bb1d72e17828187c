"""Exports: an avatar as graphs of ONNX or of torch.export, and export.json, which says how they are called."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import torch

from af.data.provenance import SOURCES
from af.errors import UserError, require_choice
from af.files import atomic_path, sha256_of, write_json
from af.forcing.anchor import Anchor
from af.forcing.guidance import Guidance
from af.forcing.solvers import UNNAMED, UNNAMED_SCHEDULE
from af.models.artifact import Artifact, load_model
from af.models.autoencoder import MotionAutoencoder
from af.models.denoiser import MotionDenoiser
from af.pipeline.avatar import Avatar
from af.pipeline.sampling import usual_sampling
from af.share.compression import compress
from af.share.folder import AUTOENCODER, DENOISER, MANIFEST, load
from af.share.graphs import Graph, graphs_of
from af.share.runtime import EXPORT, FORMAT
from af.share.runtime_sampler import SCHEDULES, SOLVERS

TARGETS: Final = ("onnx", "torch")
DTYPES: Final = ("fp32", "fp16")
_OPSET: Final = 18
#: Graphs that bear weights in 8 bits: speech features do not, and errors of a portrait would stay.
_QUANTISED: Final = ("condition", "step", "decoder")


def export_avatar(source: Path, out: Path, **how: Any) -> dict[str, Any]:
    """`export` of a hub folder, or of a folder with `autoencoder` and `denoiser`."""
    if (source / MANIFEST).is_file():
        return export(*load(source), out, **how)
    if not (source / DENOISER).is_dir():
        raise UserError(f"{source}: no hub folder, and no folder with {AUTOENCODER} and {DENOISER} in it")
    images = load_model(source / AUTOENCODER, MotionAutoencoder)
    motion = load_model(source / DENOISER, MotionDenoiser)
    return export(images, motion, usual_sampling(motion.info), out, **how)


def export(
    images: Artifact,
    motion: Artifact,
    sampling: Mapping[str, Any],
    out: Path,
    *,
    to: str = "onnx",
    dtype: str = "fp32",
    int8: bool = False,
) -> dict[str, Any]:
    """Export two models that are sampled so to `out`; returns the content of export.json.

    `dtype` "fp16" stores weights in half precision, `int8` the large ones of condition, step and decoder in 8 bits;
    all compute in fp32. Both need ONNX. Raises UserError for what cannot be exported, and when `out` has other
    files in it.
    """
    require_choice("--to", "target", to, TARGETS)
    require_choice("--dtype", "precision", dtype, DTYPES)
    if to == "torch" and (dtype != "fp32" or int8):
        raise UserError("--to torch: these programs are in fp32; --dtype and --int8 need --to onnx")
    if out.is_dir() and any(out.iterdir()) and not (out / EXPORT).is_file():
        raise UserError(f"{out} is not empty, and no export: choose another folder")
    if sampling.get("anchor", Anchor()) != Anchor():
        raise UserError("sampling.anchor: exports have no anchor")
    avatar = Avatar.of(images, motion)
    guidance: Guidance = sampling["guidance"]
    solver, schedule = sampling.get("solver", UNNAMED), sampling.get("schedule", UNNAMED_SCHEDULE)
    require_choice("sampling.solver", "solver", solver, SOLVERS)
    require_choice("sampling.schedule", "schedule", schedule, SCHEDULES)
    graphs = graphs_of(avatar, guidance)
    write_json(out / EXPORT, {"format": "unfinished"})
    kind = "onnx" if to == "onnx" else "pt2"
    for name, graph in graphs.items():
        with atomic_path(out / f"{name}.{kind}") as file:
            if to == "torch":
                _save_program(graph, file)
                continue
            _save_onnx(graph, file)
            if int8 or dtype == "fp16":
                compress(file, dtype, int8 and name in _QUANTISED)
    learned = images.info.get(SOURCES, [])
    about = {
        "format": FORMAT,
        "to": to,
        "dtype": dtype,
        "int8": int8,
        "autoencoder": images.digest,
        "denoiser": motion.digest,
        SOURCES: [*learned, *(source for source in motion.info.get(SOURCES, []) if source not in learned)],
        "image_size": avatar.autoencoder.image_size,
        "layout": asdict(avatar.denoiser.layout),
        "feature_spec": avatar.features.spec.to_json(),
        "sampling": {
            "steps": sampling["steps"],
            "solver": solver,
            "schedule": schedule,
            "guidance": asdict(guidance),
            "dead_band": sampling.get("dead_band", 0.0),
        },
        "branches": [{"avatar": branch.avatar, "user": branch.user} for branch in guidance.branches()],
        "graphs": {name: _described(graph, out / f"{name}.{kind}") for name, graph in graphs.items()},
    }
    write_json(out / EXPORT, about)
    return about


def _described(graph: Graph, file: Path) -> dict[str, Any]:
    with torch.no_grad():
        made = graph.module(*graph.inputs.values())
    made = (made,) if isinstance(made, torch.Tensor) else made
    outputs = zip(graph.outputs, made, strict=True)
    return {
        "file": file.name,
        "bytes": file.stat().st_size,
        "sha256": sha256_of(file),
        "inputs": [_tensor(*item) for item in graph.inputs.items()],
        "outputs": [_tensor(*item) for item in outputs],
    }


def _tensor(name: str, tensor: torch.Tensor) -> dict[str, Any]:
    return {"name": name, "shape": list(tensor.shape), "type": str(tensor.dtype).removeprefix("torch.")}


def _save_program(graph: Graph, file: Path) -> None:
    with torch.no_grad():
        torch.export.save(torch.export.export(graph.module, tuple(graph.inputs.values())), file)


def _save_onnx(graph: Graph, file: Path) -> None:
    try:
        import onnx  # noqa: F401  (torch's exporter uses it)
    except ImportError:
        raise UserError("exports to ONNX need a package: pip install 'avatar-forcing[export]'") from None
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # shapes are static: what it warns of is meant
        # the exporter by TorchScript: the one by torch.export takes minutes for what this does in a second
        torch.onnx.export(
            graph.module,
            tuple(graph.inputs.values()),
            str(file),
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            opset_version=_OPSET,
            dynamo=False,
        )
