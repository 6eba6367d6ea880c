"""A Triton backend for ONNX models, written on the Python backend, for servers without the native one.

Triton takes it for every model with ``backend: "onnxruntime"`` where it finds no ``libtriton_onnxruntime.so``.
Names and dtypes come from the model's configuration; these ``parameters`` have the native backend's names and
meaning: ``intra_op_thread_count``, ``inter_op_thread_count``, ``execution_mode`` (0 sequential, 1 parallel).
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils


def session_options(parameters: dict[str, Any]) -> ort.SessionOptions:
    """onnxruntime's options from the ``parameters`` of the model's configuration."""

    def number(name: str) -> int:
        text = parameters.get(name, {}).get("string_value", "0")
        if not text.isdecimal():
            raise pb_utils.TritonModelException(f"parameter '{name}' is '{text}', allowed is a whole number")
        return int(text)

    options = ort.SessionOptions()
    options.intra_op_num_threads = number("intra_op_thread_count")
    options.inter_op_num_threads = number("inter_op_thread_count")
    if number("execution_mode") == 1:
        options.execution_mode = ort.ExecutionMode.ORT_PARALLEL
    return options


def execution_providers(kind: str, device: str) -> list[Any]:
    """CUDA on the instance's device for a GPU instance where onnxruntime has it, and always the CPU."""
    cpu: list[Any] = ["CPUExecutionProvider"]
    if kind == "GPU" and "CUDAExecutionProvider" in ort.get_available_providers():
        return [("CUDAExecutionProvider", {"device_id": int(device)}), *cpu]
    return cpu


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
        name = config["default_model_filename"] or "model.onnx"
        path = Path(args["model_repository"]) / args["model_version"] / name
        if not path.is_file():
            raise pb_utils.TritonModelException(f"model file '{path}' is missing")
        self.batched = config["max_batch_size"] > 0
        self.inputs = [i["name"] for i in config["input"]]
        self.outputs = {o["name"]: pb_utils.triton_string_to_numpy(o["data_type"]) for o in config["output"]}
        try:
            self.session = ort.InferenceSession(
                str(path),
                session_options(config.get("parameters", {})),
                providers=execution_providers(args["model_instance_kind"], args["model_instance_device_id"]),
            )
        except Exception as error:  # onnxruntime's exceptions have no common base
            raise pb_utils.TritonModelException(f"onnxruntime cannot load '{path}': {error}") from error
        self._compare("input", self.inputs, [i.name for i in self.session.get_inputs()])
        self._compare("output", list(self.outputs), [o.name for o in self.session.get_outputs()])

    def _compare(self, what: str, configured: list[str], found: list[str]) -> None:
        wrong = set(configured) - set(found) if what == "output" else set(configured) ^ set(found)
        if wrong:
            raise pb_utils.TritonModelException(
                f"the configuration's {what}s are {sorted(configured)}, the ONNX file's are {sorted(found)}"
            )

    def execute(self, requests: list[Any]) -> list[Any]:
        """Run all requests whose inputs agree in everything but the batch axis in one call."""
        feeds = [{n: as_onnx(pb_utils.get_input_tensor_by_name(r, n)) for n in self.inputs} for r in requests]
        groups: dict[Any, list[int]] = defaultdict(list)
        for index, feed in enumerate(feeds):
            shapes = tuple((name, a.shape[1:]) for name, a in feed.items())
            groups[shapes if self.batched else index].append(index)
        responses: list[Any] = [None] * len(requests)
        for members in groups.values():
            for index, response in zip(members, self._run([feeds[i] for i in members]), strict=True):
                responses[index] = response
        return responses

    def _run(self, feeds: list[dict[str, Any]]) -> list[Any]:
        joined = feeds[0] if len(feeds) == 1 else {name: np.concatenate([f[name] for f in feeds]) for name in feeds[0]}
        try:
            results = self.session.run(list(self.outputs), joined)
        except Exception as error:  # onnxruntime's exceptions have no common base
            failure = pb_utils.TritonError(f"onnxruntime: {error}")
            return [pb_utils.InferenceResponse(error=failure) for _ in feeds]
        if len(feeds) == 1:
            parts = [[r] for r in results]
        else:
            ends = np.cumsum([len(next(iter(f.values()))) for f in feeds])[:-1]
            parts = [np.split(r, ends) for r in results]
        return [
            pb_utils.InferenceResponse(
                [
                    pb_utils.Tensor(name, np.ascontiguousarray(part[k], dtype=dtype))
                    for (name, dtype), part in zip(self.outputs.items(), parts, strict=True)
                ]
            )
            for k in range(len(feeds))
        ]
