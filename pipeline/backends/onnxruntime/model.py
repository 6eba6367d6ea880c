"""A Triton backend for ONNX models, written on the Python backend, for servers without the native one.

Triton takes it for every model with ``backend: "onnxruntime"`` where it finds no ``libtriton_onnxruntime.so``.
Names and dtypes come from the model's configuration; these ``parameters`` have the native backend's names and
meaning: ``intra_op_thread_count``, ``inter_op_thread_count``, ``execution_mode`` (0 sequential, 1 parallel).
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils

Feed = dict[str, Any]
"""Input name ⇒ array."""


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
    # threads that spin between calls take the cores from Triton and from the caller, which prepares the next call
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
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


def failure(error: Exception) -> Any:
    """The answer to a request that failed."""
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(f"onnxruntime: {error}"))


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
        responses: list[Any] = [None] * len(requests)
        groups: dict[Any, list[tuple[int, Feed]]] = defaultdict(list)
        for index, request in enumerate(requests):
            try:
                feed = {n: as_onnx(pb_utils.get_input_tensor_by_name(request, n)) for n in self.inputs}
            except Exception as error:  # an input that cannot be read is its request's own answer
                responses[index] = failure(error)
                continue
            shapes = tuple((name, array.shape[1:]) for name, array in feed.items())
            groups[shapes if self.batched else index].append((index, feed))
        for members in groups.values():
            indices, feeds = zip(*members, strict=True)
            try:
                answers = self._run(feeds)
            except Exception as error:  # onnxruntime's exceptions have no common base
                answers = [failure(error) for _ in feeds]
            for index, answer in zip(indices, answers, strict=True):
                responses[index] = answer
        return responses

    def _run(self, feeds: Sequence[Feed]) -> list[Any]:
        """Join the feeds along the batch axis, run, and split the results again."""
        if len(feeds) == 1:
            parts = [[result] for result in self.session.run(list(self.outputs), feeds[0])]
        else:
            joined = {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}
            ends = np.cumsum([len(next(iter(feed.values()))) for feed in feeds])[:-1]
            parts = [np.split(result, ends) for result in self.session.run(list(self.outputs), joined)]
        return [
            pb_utils.InferenceResponse(
                [
                    pb_utils.Tensor(name, np.ascontiguousarray(part[k], dtype=dtype))
                    for (name, dtype), part in zip(self.outputs.items(), parts, strict=True)
                ]
            )
            for k in range(len(feeds))
        ]
