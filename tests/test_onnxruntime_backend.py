"""The ONNX backend in a real server, on models that have nothing to do with super-resolution."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tritonclient.grpc as triton
from numpy.typing import NDArray
from onnx import TensorProto, helper
from tritonclient.utils import InferenceServerException

from tests.conftest import RunningServer, StartServer

# `rows` tells in every row how many rows ran together
DOUBLE = """
backend: "onnxruntime"
max_batch_size: 8
input { name: "x" data_type: TYPE_FP32 dims: -1 }
output { name: "y" data_type: TYPE_FP32 dims: -1 }
output { name: "rows" data_type: TYPE_INT64 dims: 1 }
dynamic_batching { preferred_batch_size: 4 max_queue_delay_microseconds: 2000000 }
parameters { key: "intra_op_thread_count" value { string_value: "1" } }
"""
WORDS = """
backend: "onnxruntime"
max_batch_size: 0
input { name: "words" data_type: TYPE_STRING dims: -1 }
output { name: "same" data_type: TYPE_STRING dims: -1 }
"""
PICK = """
backend: "onnxruntime"
max_batch_size: 4
input { name: "index" data_type: TYPE_INT64 dims: 1 }
output { name: "picked" data_type: TYPE_FP32 dims: 1 }
"""


def save(
    folder: Path, config: str, nodes: list[Any], inputs: list[Any], outputs: list[Any], constants: Any = ()
) -> None:
    graph = helper.make_graph(nodes, "graph", inputs, outputs, list(constants))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    (folder / "1").mkdir(parents=True)
    onnx.save(model, str(folder / "1" / "model.onnx"))
    (folder / "config.pbtxt").write_text(config)


def value(name: str, kind: int, dims: list[Any]) -> Any:
    return helper.make_tensor_value_info(name, kind, dims)


def save_double(folder: Path, config: str) -> None:
    constants = [
        helper.make_tensor("one", TensorProto.INT64, [1], [1]),
        helper.make_tensor("zero", TensorProto.INT64, [1], [0]),
    ]
    nodes = [
        helper.make_node("Add", ["x", "x"], ["y"]),
        helper.make_node("Shape", ["x"], ["count"], start=0, end=1),
        helper.make_node("Concat", ["count", "one"], ["shape"], axis=0),
        helper.make_node("Expand", ["count", "shape"], ["rows"]),
    ]
    outputs = [value("y", TensorProto.FLOAT, ["B", "N"]), value("rows", TensorProto.INT64, ["B", 1])]
    save(folder, config, nodes, [value("x", TensorProto.FLOAT, ["B", "N"])], outputs, constants[:1])


@pytest.fixture(scope="module")
def server(start_server: StartServer, tmp_path_factory: pytest.TempPathFactory) -> RunningServer:
    repository = tmp_path_factory.mktemp("models")
    save_double(repository / "double", DOUBLE)
    save(
        repository / "words",
        WORDS,
        [helper.make_node("Identity", ["words"], ["same"])],
        [value("words", TensorProto.STRING, ["N"])],
        [value("same", TensorProto.STRING, ["N"])],
    )
    save(
        repository / "pick",
        PICK,
        [helper.make_node("Gather", ["table", "index"], ["picked"])],
        [value("index", TensorProto.INT64, ["B", 1])],
        [value("picked", TensorProto.FLOAT, ["B", 1])],
        [helper.make_tensor("table", TensorProto.FLOAT, [3], [10, 20, 30])],
    )
    save_double(repository / "wrong_name", DOUBLE.replace('"x"', '"z"'))
    save_double(repository / "wrong_thread_count", DOUBLE.replace('string_value: "1"', 'string_value: "many"'))
    save_double(repository / "damaged", DOUBLE)
    (repository / "damaged" / "1" / "model.onnx").write_bytes(b"not an ONNX file")
    return start_server(repository, "--exit-on-error=false", ready="double")


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(server.url("grpc")) as client:
        yield client


def infer(client: triton.InferenceServerClient, model: str, name: str, array: NDArray[Any], dtype: str) -> Any:
    tensor = triton.InferInput(name, array.shape, dtype)
    tensor.set_data_from_numpy(array)
    return client.infer(model, [tensor])


def test_runs_a_model_of_any_shape(client: triton.InferenceServerClient) -> None:
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    result = infer(client, "double", "x", x, "FP32")
    np.testing.assert_array_equal(result.as_numpy("y"), 2 * x)


def test_requests_run_together_and_are_split_again(client: triton.InferenceServerClient) -> None:
    inputs = [np.full((rows, 5), rows, np.float32) for rows in (1, 2, 1)]
    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(lambda x: infer(client, "double", "x", x, "FP32"), inputs))
    for x, result in zip(inputs, results, strict=True):
        np.testing.assert_array_equal(result.as_numpy("y"), 2 * x)
        np.testing.assert_array_equal(result.as_numpy("rows"), np.full((len(x), 1), 4))


def test_strings_and_models_without_a_batch_axis(client: triton.InferenceServerClient) -> None:
    words = np.array([b"lung", "clavícula".encode()], dtype=object)
    assert infer(client, "words", "words", words, "BYTES").as_numpy("same").tolist() == words.tolist()


def test_a_failing_run_is_an_error_and_the_next_one_works(client: triton.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match="onnxruntime.*indices element out of data bounds"):
        infer(client, "pick", "index", np.array([[7]], np.int64), "INT64")
    result = infer(client, "pick", "index", np.array([[2]], np.int64), "INT64")
    assert result.as_numpy("picked").tolist() == [[30]]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("wrong_name", "the configuration's inputs are ['z'], the model file's are ['x']"),
        ("wrong_thread_count", "parameter 'intra_op_thread_count' must be a whole number, got 'many'"),
        ("damaged", "onnxruntime cannot load"),
    ],
)
def test_a_model_that_cannot_be_loaded_says_why(client: triton.InferenceServerClient, model: str, message: str) -> None:
    index = {entry.name: entry for entry in client.get_model_repository_index().models}
    assert index[model].state != "READY"
    assert message in index[model].reason
