"""INT8 quantization of an ONNX file's convolutions, with Q/DQ nodes on their inputs and weights.

Each input channel is scaled individually, with the scale folded into the weights, so that channels of small values keep
their precision; the integers themselves share one scale, as runtimes require. Everything else is unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

Array = NDArray[np.float32]

MIN_REACH = 1e-6
"""Reach assumed for a channel that was always zero."""


def quantize_weights(weight: Array, reach: Array) -> tuple[NDArray[np.int8], Array]:
    """Quantize weights [C_out, C_in, k, k] for inputs divided by ``reach`` [C_in]; return int8 and scales [C_out]."""
    scaled = weight * reach[None, :, None, None]
    scale = np.maximum(np.abs(scaled).max(axis=(1, 2, 3)) / 127, MIN_REACH).astype(np.float32)
    return np.rint(scaled / scale[:, None, None, None]).astype(np.int8), scale


def input_scale(low: Array, high: Array) -> tuple[np.float32, np.uint8]:
    """Return scale and zero point of integers 0 … 255 that cover ``low`` to ``high`` and represent zero exactly."""
    bottom, top = min(0.0, float(low.min())), max(0.0, float(high.max()))
    scale = np.float32(max(top - bottom, MIN_REACH) / 255)
    return scale, np.uint8(np.rint(-bottom / scale))


def quantize(model: onnx.ModelProto, ranges: Mapping[str, Array]) -> onnx.ModelProto:
    """Return a copy of the model with Q/DQ nodes around the convolutions named in ``ranges``.

    Args:
        model: a model whose weights are initializers named NAME.weight.
        ranges: NAME ⇒ minimum and maximum of each input channel of that convolution, [2, C_in].

    Raises:
        ValueError: a convolution is missing or has a different number of input channels.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    nodes = [node for node in graph.node if node.op_type == "Conv" and node.input[1] in weights]
    convolutions = {node.input[1].removesuffix(".weight"): node for node in nodes}
    if len(convolutions) < len(nodes):
        raise ValueError("a convolution's weight is shared by several nodes, as when a graph unrolls several steps")
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
