"""The graph of several denoising steps is that of one, taken that often."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from pipeline.export.unroll import unroll
from pipeline.runtimes.onnx import open_session

STEPS = 3


def one_step() -> onnx.ModelProto:
    """z, condition, factor [B, 1], noise [B, 1] ⇒ (z + 2·condition)·factor + noise."""

    def value(name: str, *dims: int | str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *dims])

    nodes = [
        helper.make_node("Mul", ["condition", "two"], ["doubled"], "double"),
        helper.make_node("Add", ["z", "doubled"], ["sum"], "add"),
        helper.make_node("Mul", ["sum", "factor"], ["scaled"], "scale"),
        helper.make_node("Add", ["scaled", "noise"], ["after"], "next"),
    ]
    inputs = [value("z", 1), value("condition", 1), value("factor", 1), value("noise", 1)]
    two = helper.make_tensor("two", TensorProto.FLOAT, [1], [2.0])
    graph = helper.make_graph(nodes, "step", inputs, [value("after", 1)], [two])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def test_every_step_gets_its_own_inputs_and_the_result_of_the_one_before(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    found = unroll(one_step(), STEPS)
    onnx.checker.check_model(found, full_check=True)
    onnx.save(found, str(tmp_path / "model.onnx"))
    z, condition = rng.random((2, 2, 1), dtype=np.float32)
    factor, noise = rng.random((2, 2, STEPS), dtype=np.float32)
    feed = {"z": z, "condition": condition, "factor": factor, "noise": noise}
    (after,) = open_session(tmp_path / "model.onnx").run(None, feed)
    for k in range(STEPS):
        z = (z + 2 * condition) * factor[:, k : k + 1] + noise[:, k : k + 1]
    np.testing.assert_allclose(after, z, rtol=1e-6)


@pytest.mark.parametrize("steps", [1, 10])
def test_weights_are_stored_once(steps: int) -> None:
    found = unroll(one_step(), steps)
    assert [w.name for w in found.graph.initializer].count("two") == 1
    assert len(found.graph.node) == steps * (4 + 2)
    assert found.graph.input[2].type.tensor_type.shape.dim[1].dim_value == steps
