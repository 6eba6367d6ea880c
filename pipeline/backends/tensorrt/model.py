"""A Triton backend for TensorRT plans, based on the Python backend, for servers without the native one.

Triton uses it for every model with ``backend: "tensorrt"`` if it finds no ``libtriton_tensorrt.so``. Names and dtypes
come from the model's configuration, as does ``cc_model_filenames``, the plan for each kind of GPU. It requires the
packages ``tensorrt`` (10.1 or newer) and ``cuda-python`` (12 or newer).
"""

from __future__ import annotations

import ctypes
import importlib
import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

from pipeline.backends.batches import Batches, Feed

Array = NDArray[Any]
Shapes = dict[str, tuple[int, ...]]

MAX_SHAPES = 32
"""Maximum number of input shapes with a cached execution context and CUDA graph."""


class CudaError(Exception):
    """A call to the CUDA runtime failed."""


def load_packages() -> tuple[Any, Any]:
    """Import TensorRT and the CUDA runtime."""
    try:
        tensorrt = importlib.import_module("tensorrt")
    except (ImportError, OSError) as error:
        raise pb_utils.TritonModelException(
            f"the server's Python has no TensorRT ({error}): pip install tensorrt"
        ) from error
    for name in ("cuda.bindings.runtime", "cuda.cudart"):
        try:
            return tensorrt, importlib.import_module(name)
        except (ImportError, OSError) as error:
            reason = error
    raise pb_utils.TritonModelException(f"the server's Python has no CUDA ({reason}): pip install cuda-python")


class Cuda:
    """The CUDA runtime with errors as exceptions: ``cuda.Malloc(n)`` returns the value of ``cudaMalloc(n)``."""

    def __init__(self, cudart: Any) -> None:
        self.cudart = cudart
        self.kind = cudart.cudaMemcpyKind

    def __getattr__(self, name: str) -> Any:
        function = getattr(self.cudart, f"cuda{name}")

        def call(*arguments: Any) -> Any:
            error, *values = function(*arguments)
            if error != self.cudart.cudaError_t.cudaSuccess:
                raise CudaError(f"cuda{name}: {self.cudart.cudaGetErrorString(error)[1].decode()}")
            return values[0] if values else None

        return call


class Buffer:
    """A tensor's memory on the device and, if ``pinned``, on the host."""

    def __init__(self, cuda: Cuda, pinned: bool = True) -> None:
        self.cuda, self.pinned = cuda, pinned
        self.size = self.device = self.host = 0

    def reserve(self, size: int) -> None:
        """Ensure at least ``size`` bytes; growing changes the address."""
        if size > self.size:
            self.free()
            self.device = int(self.cuda.Malloc(size))
            self.host = int(self.cuda.MallocHost(size)) if self.pinned else 0
            self.size = size

    def free(self) -> None:
        if self.device:
            self.cuda.Free(self.device)
        if self.host:
            self.cuda.FreeHost(self.host)
        self.size = self.device = self.host = 0

    def view(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """Return the host memory as an array."""
        count = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return np.ndarray(shape, dtype, memoryview((ctypes.c_char * count).from_address(self.host)))


@dataclass
class Prepared:
    """Cached resources for inputs of one shape."""

    context: Any
    outputs: Shapes
    graph: Any
    """A CUDA graph of copies and execution; None if it cannot be captured, as in networks with loops."""


class Engine:
    """A plan on one device, with its stream and memory.

    Every shape has its own execution context, because changing a context's shapes invalidates its captured graph. All
    contexts share the memory of the activations.
    """

    def __init__(self, trt: Any, cuda: Cuda, path: Path, dtypes: dict[str, Any], rows: int) -> None:
        """``dtypes``: dtype of every tensor by name; ``rows``: maximum batch size, for which memory is reserved."""
        self.trt, self.cuda, self.dtypes, self.rows = trt, cuda, dtypes, rows
        self.log = trt.Logger(trt.Logger.WARNING)
        self.runtime = trt.Runtime(self.log)
        self.engine = self.runtime.deserialize_cuda_engine(path.read_bytes())
        if self.engine is None:
            raise pb_utils.TritonModelException(
                f"TensorRT {trt.__version__} cannot load '{path}': it is damaged, or was built by another version of "
                "TensorRT or for another kind of GPU; build it again here"
            )
        self.stream = cuda.StreamCreate()
        self.buffers = {name: Buffer(cuda) for name in dtypes}
        self.activations = Buffer(cuda, pinned=False)
        self.prepared: OrderedDict[Any, Prepared] = OrderedDict()

    def tensors(self, mode: Any) -> dict[str, Any]:
        """Return the dtypes of the plan's inputs or outputs by name."""
        names = [self.engine.get_tensor_name(i) for i in range(self.engine.num_io_tensors)]
        return {
            name: self.trt.nptype(self.engine.get_tensor_dtype(name))
            for name in names
            if self.engine.get_tensor_mode(name) == mode
        }

    def run(self, feeds: Sequence[Feed]) -> Feed:
        """Run feeds, joined along the first axis.

        Raises:
            ValueError: the plan does not support the shape.
            CudaError: the device failed.
        """
        shapes = {n: (sum(len(feed[n]) for feed in feeds), *a.shape[1:]) for n, a in feeds[0].items()}
        prepared = self._prepare(shapes)
        for name, shape in shapes.items():
            np.concatenate([feed[name] for feed in feeds], out=self.buffers[name].view(shape, self.dtypes[name]))
        if prepared.graph is None:
            self._enqueue(prepared.context, shapes, prepared.outputs)
        else:
            self.cuda.GraphLaunch(prepared.graph, self.stream)
        self.cuda.StreamSynchronize(self.stream)
        return {n: self.buffers[n].view(shape, self.dtypes[n]).copy() for n, shape in prepared.outputs.items()}

    def _prepare(self, shapes: Shapes) -> Prepared:
        """Return the resources for inputs of these shapes, creating them if not cached."""
        key = tuple(shapes.items())
        if key in self.prepared:
            self.prepared.move_to_end(key)
            return self.prepared[key]
        context = self.engine.create_execution_context(self.trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if context is None:
            raise CudaError("TensorRT cannot create an execution context; see the server's log")
        for name, shape in shapes.items():
            if not context.set_input_shape(name, shape):
                low, _, high = (tuple(s) for s in self.engine.get_tensor_profile_shape(name, 0))
                raise ValueError(f"input '{name}' is {shape}, the plan takes {low} to {high}")
        outputs = {n: tuple(context.get_tensor_shape(n)) for n in self.dtypes if n not in shapes}
        if any(-1 in shape for shape in outputs.values()):
            raise ValueError("the shape of an output depends on the values of the inputs, which is not supported")
        self._reserve({**shapes, **outputs}, context.update_device_memory_size_for_shapes())
        for name, buffer in self.buffers.items():
            context.set_tensor_address(name, buffer.device)
        context.set_device_memory(self.activations.device, self.activations.size)
        for name, shape in shapes.items():
            self.buffers[name].view(shape, self.dtypes[name])[...] = 0  # a valid index, unlike uninitialised memory
        self._enqueue(context, shapes, outputs)  # TensorRT's first run of a shape cannot be captured
        self.cuda.StreamSynchronize(self.stream)
        self._evict(MAX_SHAPES - 1)
        self.prepared[key] = Prepared(context, outputs, self._capture(context, shapes, outputs))
        return self.prepared[key]

    def _reserve(self, shapes: Shapes, activations: int) -> None:
        """Reserve memory for the largest batch of tensors; for activations, which are far larger, this batch's only."""
        needed = [
            (self.buffers[name], max(self.rows, shape[0]) * self._bytes(name, (1, *shape[1:])))
            for name, shape in shapes.items()
        ]
        needed.append((self.activations, activations))
        if any(size > buffer.size for buffer, size in needed):
            self._evict(0)  # graphs and contexts refer to the old addresses
            for buffer, size in needed:
                buffer.reserve(size)

    def _bytes(self, name: str, shape: tuple[int, ...]) -> int:
        return int(np.prod(shape)) * int(self.dtypes[name].itemsize)

    def _enqueue(self, context: Any, inputs: Shapes, outputs: Shapes) -> None:
        """Enqueue copies to the device, execution, and copies back."""
        for name, shape in inputs.items():
            buffer, kind = self.buffers[name], self.cuda.kind.cudaMemcpyHostToDevice
            self.cuda.MemcpyAsync(buffer.device, buffer.host, self._bytes(name, shape), kind, self.stream)
        if not context.execute_async_v3(int(self.stream)):
            raise CudaError("TensorRT cannot execute the plan; see the server's log")
        for name, shape in outputs.items():
            buffer, kind = self.buffers[name], self.cuda.kind.cudaMemcpyDeviceToHost
            self.cuda.MemcpyAsync(buffer.host, buffer.device, self._bytes(name, shape), kind, self.stream)

    def _capture(self, context: Any, inputs: Shapes, outputs: Shapes) -> Any | None:
        self.cuda.StreamBeginCapture(
            self.stream, self.cuda.cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        )
        try:
            try:
                self._enqueue(context, inputs, outputs)
            finally:
                graph = self.cuda.StreamEndCapture(self.stream)
            try:
                return self.cuda.GraphInstantiate(graph, 0)
            finally:
                self.cuda.GraphDestroy(graph)
        except CudaError as error:
            self.log.log(self.trt.Logger.WARNING, f"no CUDA graph, running without: {error}")
            return None

    def _evict(self, keep: int) -> None:
        """Drop the least recently used shapes until ``keep`` are left."""
        while len(self.prepared) > keep:
            _, oldest = self.prepared.popitem(last=False)
            if oldest.graph is not None:
                self.cuda.GraphExecDestroy(oldest.graph)

    def close(self) -> None:
        """Free all memory."""
        self._evict(0)
        for buffer in (*self.buffers.values(), self.activations):
            buffer.free()
        self.cuda.StreamDestroy(self.stream)


def choose_plan(config: dict[str, Any], folder: Path, cuda: Cuda, device: int) -> Path:
    """Return the plan for the device's compute capability, else the default one."""
    major, minor = (
        cuda.DeviceGetAttribute(getattr(cuda.cudart.cudaDeviceAttr, f"cudaDevAttrComputeCapability{part}"), device)
        for part in ("Major", "Minor")
    )
    default = config["default_model_filename"] or "model.plan"
    path = folder / config.get("cc_model_filenames", {}).get(f"{major}.{minor}", default)
    if not path.is_file():
        raise pb_utils.TritonModelException(
            f"plan '{path}' for this GPU (compute capability {major}.{minor}) is missing: build it here"
        )
    return path


class TritonPythonModel:
    """An instance of a plan."""

    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        self.batches = Batches("tensorrt", config, lambda feeds: self.engine.run(feeds))
        dtypes = [
            {t["name"]: np.dtype(pb_utils.triton_string_to_numpy(t["data_type"])) for t in config[part]}
            for part in ("input", "output")
        ]
        trt, cudart = load_packages()
        cuda, device = Cuda(cudart), int(args["model_instance_device_id"])
        try:
            cuda.SetDevice(device)
            path = choose_plan(config, Path(args["model_repository"]) / args["model_version"], cuda, device)
            self.engine = Engine(trt, cuda, path, {**dtypes[0], **dtypes[1]}, config["max_batch_size"])
        except CudaError as error:
            raise pb_utils.TritonModelException(f"no GPU can be used: {error}") from error
        modes = (trt.TensorIOMode.INPUT, trt.TensorIOMode.OUTPUT)
        for kind, configured, mode in zip(("input", "output"), dtypes, modes, strict=True):
            found = {name: np.dtype(dtype) for name, dtype in self.engine.tensors(mode).items()}
            if found != configured:
                raise pb_utils.TritonModelException(
                    f"the configuration's {kind}s are {describe(configured)}, the plan's are {describe(found)}"
                )

    def execute(self, requests: list[Any]) -> list[Any]:
        return self.batches.answer(requests, lambda tensor: tensor.as_numpy())

    def finalize(self) -> None:
        self.engine.close()


def describe(dtypes: dict[str, Any]) -> str:
    """Return a readable list of names and dtypes."""
    return ", ".join(f"{name} ({dtype})" for name, dtype in sorted(dtypes.items()))
