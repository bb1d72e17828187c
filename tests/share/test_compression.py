"""Weights in 8 bits: how far they are from their own, and that a runtime reads them as this says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from af.share.compression import compress, quantised

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

#: operator, shape of its weight, axis of its outputs, shape of what it is given
OPERATORS = [
    ("MatMul", (300, 96), 1, (1, 300)),  # the last group of 32 has 12
    ("MatMul", (64, 192), 1, (1, 64)),
    ("Gemm", (96, 64), 0, (1, 64)),
    ("Conv", (64, 16, 3, 3), 0, (1, 16, 5, 5)),
]
each_operator = pytest.mark.parametrize(("operator", "shape", "outputs", "given"), OPERATORS)


def weights(shape: tuple[int, ...]) -> np.ndarray:
    """Normal numbers and a large one, which must not take the precision of those far from it."""
    values = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    values.flat[0] = 1000.0
    return values


def restored(values: np.ndarray, outputs: int) -> tuple[np.ndarray, np.ndarray]:
    """The weights as they are read again, and the scale of each."""
    small, scale, how = quantised(values, outputs)
    assert small.dtype == np.int8
    axis = how["axis"]
    if "block_size" in how:
        each = np.repeat(scale, how["block_size"], axis).take(range(values.shape[axis]), axis)
    else:
        each = scale.reshape([-1 if n == axis else 1 for n in range(values.ndim)])
    return small * each, np.broadcast_to(each, values.shape)


@each_operator
def test_an_error_is_at_most_half_a_scale(operator, shape, outputs, given):
    values = weights(shape)
    read, scale = restored(values, outputs)
    error = np.abs(read - values)
    assert (error <= 0.5001 * scale).all()
    other_outputs = np.delete(error, 0, outputs)
    assert other_outputs.max() < 0.025
    if values.ndim == 2:  # nor of its own output's other groups
        assert np.delete(error, range(32), 1 - outputs).max() < 0.025


@each_operator
def test_a_runtime_reads_what_was_stored(operator, shape, outputs, given, tmp_path):
    values = weights(shape)
    x = np.random.default_rng(1).standard_normal(given).astype(np.float32)
    full, stored = tmp_path / "full.onnx", tmp_path / "stored.onnx"
    for file, weight in ((full, restored(values, outputs)[0]), (stored, values)):
        onnx.save(_graph(operator, weight, given), file)
    before = stored.stat().st_size
    compress(stored, "fp32", int8=True)
    assert stored.stat().st_size < 0.4 * before
    assert np.allclose(_run(stored, x), _run(full, x), rtol=1e-4, atol=1e-3)


def _graph(operator: str, weight: np.ndarray, given: tuple[int, ...]):
    from onnx import TensorProto, helper, numpy_helper

    node = helper.make_node(operator, ["x", "weight"], ["y"], **({"transB": 1} if operator == "Gemm" else {}))
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", given), ("y", None)))
    graph = helper.make_graph([node], "one", [x], [y], [numpy_helper.from_array(weight, "weight")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def _run(file: Path, x: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")  # as af.share.runtime: x stays in fp32
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]
