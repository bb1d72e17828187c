"""Smaller weights in ONNX files: 8 bits with scales, or half precision. What reads them gets fp32."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Float, Int8

#: Tensors that are stored in half precision, and in 8 bits, have at least so many numbers.
_LEAST_HALVED, _LEAST_QUANTISED = 256, 4096
#: Inputs of a product that share a scale. One scale for all of an output's inputs is set by its largest weight: roll-outs
#: then differ twice as much.
_GROUP: Final = 32
#: The first in which DequantizeLinear has scales by group.
_GROUPED_OPSET: Final = 21


def compress(file: Path, dtype: str, int8: bool) -> None:
    """Store the large weights of the ONNX graph in `file` in 8 bits (`int8`), other large tensors in `dtype` (fp32, fp16).

    Weights of products have a scale for 32 inputs of each output, those of convolutions one for each output channel.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper, version_converter

    model = onnx.load(file)
    if int8:
        model = version_converter.convert_version(model, _GROUPED_OPSET)
    weights = {name: axis for node in model.graph.node for name, axis in _weights(node)}
    nodes, scales = [], []
    for tensor in model.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or np.prod(tensor.dims) < _LEAST_HALVED:
            continue
        name, values, stored = tensor.name, numpy_helper.to_array(tensor), f"{tensor.name}_stored"
        if int8 and name in weights and values.size >= _LEAST_QUANTISED:
            small, scale, how = quantised(values, weights[name])
            scales.append(numpy_helper.from_array(scale, f"{name}_scale"))
            nodes.append(helper.make_node("DequantizeLinear", [stored, f"{name}_scale"], [name], **how))
        elif dtype == "fp16" and np.abs(values).max() <= np.finfo(np.float16).max:
            small = values.astype(np.float16)
            nodes.append(helper.make_node("Cast", [stored], [name], to=TensorProto.FLOAT))
        else:
            continue
        tensor.CopyFrom(numpy_helper.from_array(small, stored))
    nodes += model.graph.node
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(scales)
    onnx.save(model, file)


def quantised(
    values: Float[np.ndarray, ...], outputs: int
) -> tuple[Int8[np.ndarray, ...], Float[np.ndarray, ...], dict[str, Any]]:
    """Weights as whole numbers in −127 … 127, their scales, and the attributes of the DequantizeLinear that multiplies
    them again. `outputs` is the axis of output channels. Largest error: half a scale, which is the group's largest / 127.
    """
    if values.ndim == 2:
        inputs = 1 - outputs % 2
        groups = np.split(values, range(_GROUP, values.shape[inputs], _GROUP), inputs)
        scale = _scale(np.stack([np.abs(group).max(inputs) for group in groups], inputs))
        each = np.repeat(scale, _GROUP, inputs).take(range(values.shape[inputs]), inputs)
        return np.round(values / each).astype(np.int8), scale, {"axis": inputs, "block_size": _GROUP}
    axis = outputs % values.ndim
    others = tuple(n for n in range(values.ndim) if n != axis)
    scale = _scale(np.abs(values).max(others, keepdims=True))
    return np.round(values / scale).astype(np.int8), scale.ravel(), {"axis": axis}


def _scale(largest: Float[np.ndarray, ...]) -> Float[np.ndarray, ...]:
    return np.maximum(largest, 1e-12).astype(np.float32) / np.float32(127)


def _weights(node: Any) -> list[tuple[str, int]]:
    """The weights that a node multiplies by, and the axis of their output channels."""
    if node.op_type == "Gemm":
        transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
        return [(node.input[1], 0 if transposed else 1)]
    axes = {"MatMul": -1, "Conv": 0, "ConvTranspose": 1}
    return [(node.input[1], axes[node.op_type])] if node.op_type in axes else []
