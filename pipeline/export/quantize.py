"""An ONNX file's convolutions in INT8: quantize and dequantize nodes (Q/DQ) on their inputs and weights.

Each input channel has a scale of its own, which the weights take up, so that channels of small values keep their
digits; the integers themselves have one scale, as runtimes want it. Everything else stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

Array = NDArray[np.float32]

MIN_REACH = 1e-6
"""What a channel that was always zero counts as."""


def quantize_weights(weight: Array, reach: Array) -> tuple[NDArray[np.int8], Array]:
    """Weights [C_out, C_in, k, k] of inputs divided by ``reach`` [C_in] ⇒ integers, and their scales [C_out]."""
    taken_up = weight * reach[None, :, None, None]
    scale = np.maximum(np.abs(taken_up).max(axis=(1, 2, 3)) / 127, MIN_REACH).astype(np.float32)
    return np.rint(taken_up / scale[:, None, None, None]).astype(np.int8), scale


def input_scale(low: Array, high: Array) -> tuple[np.float32, np.uint8]:
    """Scale and zero point of the integers 0 … 255 that hold ``low`` to ``high``, and zero exactly."""
    bottom, top = min(0.0, float(low.min())), max(0.0, float(high.max()))
    scale = np.float32(max(top - bottom, MIN_REACH) / 255)
    return scale, np.uint8(np.rint(-bottom / scale))


def quantize(model: onnx.ModelProto, ranges: Mapping[str, Array]) -> onnx.ModelProto:
    """A copy of the model with Q/DQ around the convolutions that ``ranges`` names.

    Args:
        model: its weights are initializers named NAME.weight.
        ranges: NAME ⇒ the least and the greatest value of each input channel of that convolution, [2, C_in].

    Raises:
        ValueError: a convolution is missing, or has another number of input channels.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    nodes = [node for node in graph.node if node.op_type == "Conv" and node.input[1] in weights]
    convolutions = {node.input[1].removesuffix(".weight"): node for node in nodes}
    if len(convolutions) < len(nodes):
        raise ValueError("a convolution's weight serves several nodes, as of several steps in one graph")
    if missing := sorted(ranges.keys() - convolutions.keys()):
        raise ValueError(f"the model has no convolution {', '.join(missing)}")
    before: dict[str, list[onnx.NodeProto]] = {}
    for name, (low, high) in ranges.items():
        conv = convolutions[name]
        weight = numpy_helper.to_array(weights[conv.input[1]])
        if weight.shape[1] != len(low):
            raise ValueError(f"{name} has {weight.shape[1]} input channels, its ranges have {len(low)}")
        reach = np.maximum(np.maximum(-low, high), MIN_REACH)
        integers, weight_scale = quantize_weights(weight, reach)
        scale, zero = input_scale(low / reach, high / reach)
        constants = {
            "divisor": (1 / reach).astype(np.float32).reshape(1, -1, 1, 1),
            "scale": scale,
            "zero": zero,
            "int8": integers,
            "int8_scale": weight_scale,
        }
        graph.initializer.extend(numpy_helper.from_array(np.asarray(a), f"{name}.{n}") for n, a in constants.items())
        graph.initializer.remove(weights[conv.input[1]])
        quantization = [f"{name}.scale", f"{name}.zero"]
        before[conv.name] = [
            helper.make_node("Mul", [conv.input[0], f"{name}.divisor"], [f"{name}.divided"]),
            helper.make_node("QuantizeLinear", [f"{name}.divided", *quantization], [f"{name}.quantized"]),
            helper.make_node("DequantizeLinear", [f"{name}.quantized", *quantization], [f"{name}.input"]),
            helper.make_node("DequantizeLinear", [f"{name}.int8", f"{name}.int8_scale"], [f"{name}.weight"], axis=0),
        ]
        conv.input[0] = f"{name}.input"
    with_int8 = [added for node in graph.node for added in (*before.get(node.name, ()), node)]
    del graph.node[:]
    graph.node.extend(with_int8)
    onnx.checker.check_model(result)
    return result
