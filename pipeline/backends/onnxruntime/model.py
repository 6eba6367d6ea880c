"""A Triton backend for ONNX models, based on the Python backend, for servers without the native one.

Triton uses it for every model with ``backend: "onnxruntime"`` if it finds no ``libtriton_onnxruntime.so``. Names and
dtypes come from the model's configuration; its parameter ``intra_op_thread_count`` is that of the native backend.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils

from pipeline.backends.batches import Feed, RunFeed, int_parameter, open_batches, warmup_shapes
from pipeline.runtimes import cuda


def session_options(parameters: dict[str, Any]) -> ort.SessionOptions:
    """Return onnxruntime's options from the ``parameters`` of the model's configuration."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = int_parameter(parameters, "intra_op_thread_count")
    # spinning threads would take cores from Triton and from the caller preparing the next call
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


LARGE = 4 * 320**2
"""Bytes of inputs from which a call's memory is given back afterwards: those of a tile of a large image."""


def load(path: Path, config: dict[str, Any], kind: str, device: str) -> tuple[list[str], list[str], RunFeed]:
    """See ``pipeline.backends.batches.open_batches``; on the instance's GPU if possible."""
    options = session_options(config.get("parameters", {}))
    if kind == "GPU" and "CUDAExecutionProvider" in ort.get_available_providers():
        session, run, without_graph = cuda.load(path, options, int(device), warmup_shapes(config))
        providers = ", ".join(session.get_providers())
        pb_utils.Logger.log_info(
            f"'{path}' runs on {providers}{without_graph and f', without graphs: {without_graph}'}"
        )
        return *names_of(session), lambda feed: dict(zip(names_of(session)[1], run(feed), strict=True))
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    wanted = [output["name"] for output in config["output"]]
    shrinking = ort.RunOptions()
    shrinking.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")

    def run_on_cpu(feed: Feed) -> dict[str, Any]:
        large = sum(array.nbytes for array in feed.values()) >= LARGE
        return dict(zip(wanted, session.run(wanted, feed, shrinking if large else None), strict=True))

    return *names_of(session), run_on_cpu


def names_of(session: ort.InferenceSession) -> tuple[list[str], list[str]]:
    """Return the names of a session's inputs and outputs."""
    return [tensor.name for tensor in session.get_inputs()], [tensor.name for tensor in session.get_outputs()]


def as_onnx(tensor: Any) -> Any:
    """Return the tensor's array, with Triton's bytes decoded to str for onnxruntime."""
    array = tensor.as_numpy()
    if array.dtype != np.object_:
        return array
    return np.array([value.decode() for value in array.flat], dtype=np.object_).reshape(array.shape)


class TritonPythonModel:
    """An instance of an ONNX model."""

    def initialize(self, args: dict[str, str]) -> None:
        kind, device = args["model_instance_kind"], args["model_instance_device_id"]
        self.batches = open_batches("onnxruntime", args, partial(load, kind=kind, device=device))

    def execute(self, requests: list[Any]) -> list[Any]:
        return self.batches.answer(requests, as_onnx)
