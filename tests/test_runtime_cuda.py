"""Runs of an ONNX file on memory of a device: on the CPU's where there is no GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from pipeline import ROOT
from pipeline.models import onnx_models
from pipeline.presets import BEST
from pipeline.runtimes.cuda import load, replay_graphs
from pipeline.runtimes.onnx import open_session

USUAL = {"x": (3,)}


@pytest.fixture
def double(tmp_path: Path) -> Path:
    """y = 2x, and the input's shape as a second output."""
    nodes = [helper.make_node("Add", ["x", "x"], ["y"]), helper.make_node("Shape", ["x"], ["shape"])]
    graph = helper.make_graph(
        nodes,
        "double",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", "N"])],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, ["B", "N"]),
            helper.make_tensor_value_info("shape", TensorProto.INT64, [2]),
        ],
    )
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(path))
    return path


@pytest.fixture
def run(double: Path) -> Callable[..., list[Any]]:
    replay = replay_graphs(open_session(double), USUAL, "cpu", 0)
    return lambda x: replay({"x": x})


@pytest.mark.parametrize("shape", [(1, 3), (4, 3), (1, 5)], ids=["usual", "usual, batched", "another shape"])
def test_gives_all_outputs_for_every_shape(run: Callable[..., list[Any]], shape: tuple[int, int]) -> None:
    for seed in range(3):
        x = np.random.default_rng(seed).random(shape, np.float32)
        y, found = run(x)
        np.testing.assert_array_equal(y, 2 * x)
        np.testing.assert_array_equal(found, shape)


@pytest.mark.filterwarnings("ignore:Specified provider 'CUDAExecutionProvider' is not in available provider names")
@pytest.mark.parametrize("usual", [USUAL, None])
def test_without_cuda_the_model_runs_on_the_cpu(double: Path, usual: Any) -> None:
    if "CUDAExecutionProvider" in ort.get_available_providers():
        pytest.skip("onnxruntime-gpu is here")
    session, run, reason = load(double, ort.SessionOptions(), 0, usual)
    assert session.get_providers() == ["CPUExecutionProvider"]
    assert reason
    x = np.ones((2, 3), np.float32)
    np.testing.assert_array_equal(run({"x": x})[0], 2 * x)


@pytest.mark.gpu
@pytest.mark.skipif("CUDAExecutionProvider" not in ort.get_available_providers(), reason="onnxruntime-gpu is missing")
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("model", [*onnx_models(BEST)], ids=lambda model: model.name)
def test_on_a_gpu_the_networks_are_replayed_as_graphs(model: Any, batch: int) -> None:
    path = ROOT / "model_repository" / model.name / "1" / "model.onnx"
    usual = {name: tuple(dims) for name, dims in zip(model.input_names, model.warmup, strict=True)}
    session, run, reason = load(path, ort.SessionOptions(), 0, usual)
    assert session.get_providers()[0] == "CUDAExecutionProvider"
    assert reason == ""
    cpu = open_session(path)
    for seed in range(2):
        rng = np.random.default_rng(seed)
        feed = {name: rng.random((batch, *dims), np.float32) for name, dims in usual.items()}
        (found,) = run(feed)
        (expected,) = cpu.run(None, feed)
        assert np.abs(found - expected).max() < 0.01 * np.abs(expected).max()
        assert np.abs(run(feed)[0] - found).max() < 1e-3
