"""The TensorRT backend around a device of host memory and a "plan" that doubles: memory, graphs, batches, errors.

The device runs what is enqueued at once, except while a graph is captured: then it is kept, and done at every launch.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from enum import IntEnum
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tritonclient.utils

from pipeline import ROOT

BACKEND = ROOT / "pipeline" / "backends" / "tensorrt" / "model.py"
CONFIG: dict[str, Any] = {
    "name": "double",
    "max_batch_size": 4,
    "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": [-1]}],
    "output": [
        {"name": "y", "data_type": "TYPE_FP32", "dims": [-1]},
        {"name": "rows", "data_type": "TYPE_INT32", "dims": [1]},
    ],
    "default_model_filename": "model.plan",
    "cc_model_filenames": {},
}
LONGEST = 64
"""of a row that the plan takes"""


class Error(IntEnum):
    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2
    cudaErrorNoDevice = 100
    cudaErrorStreamCaptureInvalidated = 901


class FakeCuda(ModuleType):
    """The part of ``cuda.bindings.runtime`` that the backend uses, on host memory."""

    cudaError_t = Error
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)
    cudaDeviceAttr = SimpleNamespace(cudaDevAttrComputeCapabilityMajor=9, cudaDevAttrComputeCapabilityMinor=0)

    def __init__(self) -> None:
        super().__init__("runtime")
        self.memory: dict[int, Any] = {}
        self.allocated: list[int] = []
        self.available = 1 << 20
        self.present = True
        self.capturing: list[Callable[[], object]] | None = None
        self.capturable = True
        self.graphs: dict[int, list[Callable[[], object]]] = {}
        self.launched: list[int] = []

    def enqueue(self, operation: Callable[[], object]) -> None:
        self.capturing.append(operation) if self.capturing is not None else operation()

    def cudaGetErrorString(self, error: Error) -> tuple[Error, bytes]:
        return Error.cudaSuccess, f"fake {error.name}".encode()

    def cudaSetDevice(self, _device: int) -> tuple[Error]:
        return (Error.cudaSuccess if self.present else Error.cudaErrorNoDevice,)

    def cudaDeviceGetAttribute(self, attribute: int, _device: int) -> tuple[Error, int]:
        return Error.cudaSuccess, attribute

    def cudaMalloc(self, size: int) -> tuple[Error, int | None]:
        if size > self.available:
            return Error.cudaErrorMemoryAllocation, None
        block = ctypes.create_string_buffer(b"\xff" * size, size)  # as used memory is: no zeros
        self.memory[ctypes.addressof(block)] = block
        self.allocated.append(size)
        return Error.cudaSuccess, ctypes.addressof(block)

    def cudaFree(self, address: int) -> tuple[Error]:
        del self.memory[address]
        return (Error.cudaSuccess,)

    cudaMallocHost, cudaFreeHost = cudaMalloc, cudaFree

    def cudaStreamCreate(self) -> tuple[Error, int]:
        return Error.cudaSuccess, 7

    def cudaStreamDestroy(self, _stream: int) -> tuple[Error]:
        return (Error.cudaSuccess,)

    cudaStreamSynchronize = cudaStreamDestroy

    def cudaMemcpyAsync(self, to: int, source: int, size: int, _kind: int, _stream: int) -> tuple[Error]:
        assert {to, source} <= self.memory.keys(), "memory that is not allocated (any more)"
        self.enqueue(lambda: ctypes.memmove(to, source, size))
        return (Error.cudaSuccess,)

    def cudaStreamBeginCapture(self, _stream: int, _mode: int) -> tuple[Error]:
        self.capturing = []
        return (Error.cudaSuccess,)

    def cudaStreamEndCapture(self, _stream: int) -> tuple[Error, Any]:
        graph, self.capturing = self.capturing, None
        return (Error.cudaSuccess, graph) if self.capturable else (Error.cudaErrorStreamCaptureInvalidated, None)

    def cudaGraphInstantiate(self, graph: Any, _flags: int) -> tuple[Error, int]:
        key = max(self.graphs, default=0) + 1
        self.graphs[key] = graph
        return Error.cudaSuccess, key

    def cudaGraphDestroy(self, _graph: Any) -> tuple[Error]:
        return (Error.cudaSuccess,)

    def cudaGraphLaunch(self, key: int, _stream: int) -> tuple[Error]:
        self.launched.append(key)
        for operation in self.graphs[key]:
            operation()
        return (Error.cudaSuccess,)

    def cudaGraphExecDestroy(self, key: int) -> tuple[Error]:
        del self.graphs[key]
        return (Error.cudaSuccess,)


class FakeContext:
    """An execution context of y = 2x, rows = batch."""

    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda, self.shape, self.address = cuda, (0, 0), dict[str, int]()
        self.workspace = (0, 0)

    def set_input_shape(self, _name: str, shape: tuple[int, int]) -> bool:
        self.shape = shape
        return shape[1] <= LONGEST

    def get_tensor_shape(self, name: str) -> tuple[int, int]:
        return self.shape if name in ("x", "y") else (self.shape[0], 1)

    def update_device_memory_size_for_shapes(self) -> int:
        return 8 * self.shape[0] * self.shape[1]

    def set_device_memory(self, address: int, size: int) -> None:
        self.workspace = address, size

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.address[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == 7
        assert (
            self.workspace[0] in self.cuda.memory and self.workspace[1] >= self.update_device_memory_size_for_shapes()
        )
        if self.cuda.capturing is not None and not self.cuda.capturable:
            return False
        count = self.shape[0] * self.shape[1]

        def array(name: str, kind: Any, size: int) -> Any:
            return np.ctypeslib.as_array((kind * size).from_address(self.address[name]))

        def run() -> None:
            assert not np.isnan(array("x", ctypes.c_float, count)).any(), "input that nobody wrote"
            array("y", ctypes.c_float, count)[:] = 2 * array("x", ctypes.c_float, count)
            array("rows", ctypes.c_int32, self.shape[0])[:] = self.shape[0]

        self.cuda.enqueue(run)
        return True


class FakeEngine:
    names = ("x", "y", "rows")
    num_io_tensors = 3

    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda = cuda

    def get_tensor_name(self, index: int) -> str:
        return self.names[index]

    def get_tensor_mode(self, name: str) -> str:
        return "in" if name == "x" else "out"

    def get_tensor_dtype(self, name: str) -> Any:
        return np.int32 if name == "rows" else np.float32

    def get_tensor_profile_shape(self, _name: str, _profile: int) -> list[tuple[int, int]]:
        return [(1, 1), (1, 8), (4, LONGEST)]

    def create_execution_context(self, strategy: str) -> FakeContext:
        assert strategy == "user"
        return FakeContext(self.cuda)


def fake_tensorrt(cuda: FakeCuda) -> Any:
    """The part of ``tensorrt`` that the backend uses; a file that holds "plan" is a plan."""

    class Logger:
        WARNING = 2
        said: list[str] = []  # noqa: RUF012

        def __init__(self, _severity: int) -> None:
            pass

        def log(self, _severity: int, message: str) -> None:
            self.said.append(message)

    return SimpleNamespace(
        __version__="10.8.0",
        Logger=Logger,
        nptype=lambda dtype: dtype,
        TensorIOMode=SimpleNamespace(INPUT="in", OUTPUT="out"),
        ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="user"),
        Runtime=lambda _log: SimpleNamespace(
            deserialize_cuda_engine=lambda data: FakeEngine(cuda) if data == b"plan" else None
        ),
    )


class Refused(Exception):
    """Triton's ``TritonModelException``."""


class Tensor:
    def __init__(self, name: str, array: Any) -> None:
        self.name, self.array = name, array

    def as_numpy(self) -> Any:
        return self.array


class Failure(str):
    """Triton's ``TritonError``."""

    INVALID_ARG, UNAVAILABLE, INTERNAL = "invalid", "unavailable", "internal"
    code: str

    def __new__(cls, message: str, code: str) -> Failure:
        error = super().__new__(cls, message)
        error.code = code
        return error


class Response:
    def __init__(self, tensors: Any = (), error: Failure | None = None) -> None:
        self.tensors, self.error = {t.name: t.array for t in tensors}, error


class Request(dict[str, Tensor]):
    def request_id(self) -> str:
        return "7"


class Log:
    said: list[tuple[str, str]] = []  # noqa: RUF012

    def __getattr__(self, name: str) -> Callable[[str], None]:
        return lambda message: self.said.append((name, message))


TRITON = SimpleNamespace(
    TritonModelException=Refused,
    TritonError=Failure,
    Logger=Log(),
    Tensor=Tensor,
    InferenceResponse=Response,
    get_input_tensor_by_name=lambda request, name: request.get(name),
    triton_string_to_numpy=lambda name: tritonclient.utils.triton_to_np_dtype(name.removeprefix("TYPE_")),
)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    cuda = FakeCuda()
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", TRITON)
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt(cuda))
    for name in ("cuda", "cuda.bindings"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cuda)
    return cuda


@pytest.fixture
def backend(cuda: FakeCuda) -> Any:
    assert cuda, "its modules are in place before the backend looks for them"
    spec = importlib.util.spec_from_file_location("tensorrt_backend", BACKEND)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "model.plan").write_bytes(b"plan")
    return tmp_path


def load(backend: Any, folder: Path, **changes: Any) -> Any:
    model = backend.TritonPythonModel()
    model.initialize(
        {
            "model_config": json.dumps({**CONFIG, **changes}),
            "model_repository": str(folder),
            "model_version": "1",
            "model_instance_kind": "GPU",
            "model_instance_device_id": "0",
        }
    )
    return model


@pytest.fixture
def model(backend: Any, folder: Path) -> Iterator[Any]:
    model = load(backend, folder)
    yield model
    model.finalize()
    assert not model.engine.cuda.cudart.memory, "all memory is given back"
    assert not model.engine.cuda.cudart.graphs


def request(rows: int, length: int, value: float = 1.0) -> Request:
    return Request(x=Tensor("x", np.full((rows, length), value, np.float32)))


def run(model: Any, *requests: Any) -> list[Response]:
    responses: list[Response] = model.execute(list(requests))
    return responses


def assert_doubled(response: Response, asked: Request, together: int) -> None:
    assert response.error is None
    np.testing.assert_array_equal(response.tensors["y"], 2 * asked["x"].array)
    np.testing.assert_array_equal(response.tensors["rows"], np.full((len(asked["x"].array), 1), together, np.int32))


def test_memory_is_allocated_once_for_the_largest_batch(model: Any, cuda: FakeCuda) -> None:
    run(model, request(4, 8))
    tensors = [4 * 8 * 4, 4 * 8 * 4, 4 * 4]
    activations = 4 * 8 * 8
    assert sorted(cuda.allocated) == sorted([*tensors, *tensors, activations]), "on the device and pinned on the host"
    for rows in (1, 2, 3, 4):
        asked = request(rows, 8, rows)
        assert_doubled(run(model, asked)[0], asked, rows)
    assert len(cuda.allocated) == 7


def test_a_small_first_request_reserves_tensors_for_the_largest_batch_too(model: Any, cuda: FakeCuda) -> None:
    run(model, request(1, 8))
    assert sorted(cuda.allocated) == sorted([*[4 * 8 * 4, 4 * 8 * 4, 4 * 4] * 2, 8 * 8])


def test_memory_grows_for_larger_shapes_and_old_graphs_go(model: Any, cuda: FakeCuda) -> None:
    run(model, request(1, 8))
    (old,) = cuda.graphs
    large = request(1, 32, 3)
    assert_doubled(run(model, large)[0], large, 1)
    assert len(cuda.graphs) == 1
    small = request(1, 8, 5)
    assert_doubled(run(model, small)[0], small, 1)
    assert old in cuda.graphs or len(cuda.graphs) == 2
    assert len(cuda.memory) == 7, "what was too small is free again"


def test_every_shape_has_one_graph_which_later_requests_launch(model: Any, cuda: FakeCuda) -> None:
    run(model, request(4, 16))
    for value in range(3):
        for rows in (4, 2):
            asked = request(rows, 16, value)
            assert_doubled(run(model, asked)[0], asked, rows)
    first, second = sorted(cuda.graphs)
    assert cuda.launched.count(first) == 4
    assert cuda.launched.count(second) == 3


def test_the_number_of_graphs_is_bounded_and_the_oldest_go_first(model: Any, backend: Any, cuda: FakeCuda) -> None:
    run(model, request(4, LONGEST))
    backend.MAX_SHAPES = 3
    for length in (1, 2, 3, 2, 4):
        asked = request(1, length, length)
        assert_doubled(run(model, asked)[0], asked, 1)
        assert len(cuda.graphs) <= 3
    assert [dict(key)["x"] for key in model.engine.prepared] == [(1, 3), (1, 2), (1, 4)]


def test_a_plan_that_cannot_be_captured_runs_without_a_graph(model: Any, cuda: FakeCuda) -> None:
    cuda.capturable = False
    for value in (1, 2):
        asked = request(2, 8, value)
        assert_doubled(run(model, asked)[0], asked, 2)
    assert not cuda.launched
    assert "no CUDA graph" in model.engine.log.said[0]


def test_requests_of_one_shape_run_together_and_are_split_again(model: Any) -> None:
    asked = [request(1, 8, 1), request(1, 5, 2), request(2, 8, 3), request(1, 8, 4)]
    for response, one, together in zip(run(model, *asked), asked, (4, 1, 4, 4), strict=True):
        assert_doubled(response, one, together)


def test_results_stay_when_the_next_request_uses_the_memory(model: Any) -> None:
    asked = request(1, 8, 1)
    (first,) = run(model, asked)
    run(model, request(1, 8, 2))
    assert_doubled(first, asked, 1)


def test_models_without_a_batch_axis_are_not_joined(backend: Any, folder: Path) -> None:
    model = load(backend, folder, max_batch_size=0)
    asked = [request(2, 8, 1), request(2, 8, 2)]
    for response, one in zip(run(model, *asked), asked, strict=True):
        assert_doubled(response, one, 2)


def test_an_error_answers_only_its_own_requests(model: Any) -> None:
    good = request(1, 8)
    TRITON.Logger.said.clear()
    first, missing, too_long = run(model, good, Request(), request(1, LONGEST + 1))
    assert_doubled(first, good, 1)
    assert missing.error == "tensorrt: input 'x' is missing"
    assert missing.error.code == Failure.INVALID_ARG
    assert too_long.error == f"tensorrt: input 'x' is (1, {LONGEST + 1}), the plan takes (1, 1) to (4, {LONGEST})"
    assert too_long.error.code == Failure.INTERNAL
    refused, failed = TRITON.Logger.said
    assert refused == ("log_info", "double: request '7' is not allowed: input 'x' is missing")
    assert failed[0] == "log_error"
    assert failed[1].startswith("double: request '7' failed:\nTraceback ")
    assert_doubled(run(model, good)[0], good, 1)


def test_too_little_memory_is_an_error_and_smaller_requests_still_work(model: Any, cuda: FakeCuda) -> None:
    good = request(2, 8)
    run(model, good)
    cuda.available = 4 * 8 * 4
    (response,) = run(model, request(4, 32))
    assert response.error == "tensorrt: cudaMalloc: fake cudaErrorMemoryAllocation"
    assert_doubled(run(model, good)[0], good, 2)


def test_each_kind_of_gpu_takes_its_plan(backend: Any, folder: Path) -> None:
    (folder / "1" / "model.plan").write_bytes(b"of another GPU")
    (folder / "1" / "model_sm90.plan").write_bytes(b"plan")
    assert_doubled(run(load(backend, folder, cc_model_filenames={"9.0": "model_sm90.plan"}), request(1, 2))[0],
                   request(1, 2), 1)  # fmt: skip
    with pytest.raises(Refused, match="TensorRT 10.8.0 cannot load"):
        load(backend, folder, cc_model_filenames={"8.9": "model_sm90.plan"})


def test_a_missing_plan_is_named(backend: Any, folder: Path) -> None:
    (folder / "1" / "model.plan").unlink()
    with pytest.raises(Refused, match=r"1/model.plan' for this GPU \(compute capability 9.0\) is missing"):
        load(backend, folder)


def test_a_plan_that_cannot_be_loaded_says_what_may_be_wrong(backend: Any, folder: Path) -> None:
    (folder / "1" / "model.plan").write_bytes(b"pla")
    with pytest.raises(Refused, match=r"1/model\.plan'"):
        load(backend, folder)


def test_a_configuration_of_another_network_is_refused(backend: Any, folder: Path) -> None:
    with pytest.raises(Refused, match=r"inputs are z \(float32\), the plan's are x \(float32\)"):
        load(backend, folder, input=[{"name": "z", "data_type": "TYPE_FP32", "dims": [-1]}])
    with pytest.raises(Refused, match=r"outputs are y \(float16\), the plan's are rows \(int32\), y \(float32\)"):
        load(backend, folder, output=[{"name": "y", "data_type": "TYPE_FP16", "dims": [-1]}])


def test_no_gpu(backend: Any, folder: Path, cuda: FakeCuda) -> None:
    cuda.present = False
    with pytest.raises(Refused, match="no GPU can be used: cudaSetDevice: fake cudaErrorNoDevice"):
        load(backend, folder)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        (["tensorrt"], "has no TensorRT .*: pip install tensorrt"),
        (["cuda.bindings.runtime", "cuda.cudart"], "has no CUDA .*: pip install cuda-python"),
    ],
)
def test_missing_packages_are_named(
    backend: Any, folder: Path, missing: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in missing:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(Refused, match=message):
        load(backend, folder)


def test_the_older_name_of_the_cuda_package_will_do(
    backend: Any, folder: Path, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    monkeypatch.setitem(sys.modules, "cuda.cudart", cuda)
    assert_doubled(run(load(backend, folder), request(1, 2))[0], request(1, 2), 1)
