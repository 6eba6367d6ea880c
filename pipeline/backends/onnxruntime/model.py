"""A Triton backend for ONNX models, written on the Python backend, for servers without the native one.

Triton takes it for every model with ``backend: "onnxruntime"`` where it finds no ``libtriton_onnxruntime.so``.
Names and dtypes come from the model's configuration; these ``parameters`` have the native backend's names and
meaning: ``intra_op_thread_count``, ``inter_op_thread_count``, ``execution_mode`` (0 sequential, 1 parallel).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils

from pipeline.backends.batches import Batches, Feed, check_names, joined, model_file, number, warmup_shapes
from pipeline.runtimes import cuda


def session_options(parameters: dict[str, Any]) -> ort.SessionOptions:
    """onnxruntime's options from the ``parameters`` of the model's configuration."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = number(parameters, "intra_op_thread_count")
    options.inter_op_num_threads = number(parameters, "inter_op_thread_count")
    # threads that spin between calls take the cores from Triton and from the caller, which prepares the next call
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if number(parameters, "execution_mode") == 1:
        options.execution_mode = ort.ExecutionMode.ORT_PARALLEL
    return options


def load(
    path: Path, config: dict[str, Any], kind: str, device: str
) -> tuple[ort.InferenceSession, Callable[[Feed], dict[str, Any]]]:
    """The model's session, and its function to outputs by name: on the instance's GPU where onnxruntime can use one."""
    options = session_options(config.get("parameters", {}))
    if kind == "GPU" and "CUDAExecutionProvider" in ort.get_available_providers():
        session, run, without_graph = cuda.load(path, options, int(device), warmup_shapes(config))
        providers = ", ".join(session.get_providers())
        pb_utils.Logger.log_info(
            f"'{path}' runs on {providers}{without_graph and f', without graphs: {without_graph}'}"
        )
        found = [tensor.name for tensor in session.get_outputs()]
        return session, lambda feed: dict(zip(found, run(feed), strict=True))
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    wanted = [output["name"] for output in config["output"]]
    return session, lambda feed: dict(zip(wanted, session.run(wanted, feed), strict=True))


def as_onnx(tensor: Any) -> Any:
    """The tensor's array; strings are bytes for Triton and str for onnxruntime."""
    array = tensor.as_numpy()
    if array.dtype != np.object_:
        return array
    return np.array([value.decode() for value in array.flat], dtype=np.object_).reshape(array.shape)


class TritonPythonModel:
    """One instance of one ONNX model."""

    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        path = model_file(args, config, "model.onnx")
        try:
            session, run = load(path, config, args["model_instance_kind"], args["model_instance_device_id"])
        except Exception as error:  # onnxruntime's exceptions have no common base
            raise pb_utils.TritonModelException(f"onnxruntime cannot load '{path}': {error}") from error
        self.batches = Batches("onnxruntime", config, lambda feeds: run(joined(feeds)))
        check_names("input", self.batches.inputs, [i.name for i in session.get_inputs()], exact=True)
        check_names("output", list(self.batches.outputs), [o.name for o in session.get_outputs()], exact=False)

    def execute(self, requests: list[Any]) -> list[Any]:
        return self.batches.answer(requests, as_onnx)
