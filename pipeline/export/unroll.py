"""Unroll an ONNX graph of one denoising step: tracing that many calls of the U-Net takes the exporter much longer."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto, helper, numpy_helper


def unroll(step: ModelProto, steps: int) -> ModelProto:
    """Return the graph that takes ``steps`` steps, with the same weights.

    Args:
        step: inputs z, condition, and what differs per step, whose dimension 1 is 1; its output is the next z.
        steps: how often to take it; dimension 1 of the further inputs.
    """
    graph = step.graph
    z, condition, *per_step = (value.name for value in graph.input)
    after = graph.output[0].name
    shared = {"", condition, *(weights.name for weights in graph.initializer)}
    numbers = [numpy_helper.from_array(np.array([k]), f"number_{k}") for k in range(steps + 1)]
    nodes: list[NodeProto] = []
    for k in range(steps):
        for name in per_step:
            bounds = [numbers[k].name, numbers[k + 1].name, numbers[1].name]
            nodes.append(helper.make_node("Slice", [name, *bounds], [f"{name}_{k}"], f"slice_{name}_{k}"))
        given = {z: z if k == 0 else f"{after}_{k - 1}", after: after if k == steps - 1 else f"{after}_{k}"}
        for node in graph.node:
            copy = NodeProto()
            copy.CopyFrom(node)
            copy.name = f"{node.name}_{k}"
            for names in (copy.input, copy.output):
                names[:] = [name if name in shared else given.get(name, f"{name}_{k}") for name in names]
            nodes.append(copy)
    unrolled = ModelProto()
    unrolled.CopyFrom(step)
    del unrolled.graph.node[:], unrolled.graph.value_info[:]
    unrolled.graph.node.extend(nodes)
    unrolled.graph.initializer.extend(numbers)
    for value in unrolled.graph.input[2:]:
        value.type.tensor_type.shape.dim[1].dim_value = steps
    return unrolled
