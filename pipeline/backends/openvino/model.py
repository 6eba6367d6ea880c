"""A Triton backend for ONNX models by OpenVINO on the CPU, on the Python backend, for servers without the native one.

Triton takes it for every model with ``backend: "openvino"`` where it finds no ``libtriton_openvino.so``. Names and
dtypes come from the model's configuration; these ``parameters`` have the native backend's names and meaning:
``INFERENCE_NUM_THREADS``, ``HINT_BF16`` ("YES": bfloat16 where the processor has it; else float32). One is its own:
``ONE_A_CALL`` ("YES": the items of a batch one after another, on all cores).
"""

from __future__ import annotations

import json
from typing import Any

import triton_python_backend_utils as pb_utils

from pipeline.backends.batches import Batches, check_names, joined, model_file, number, warmup_shapes
from pipeline.runtimes import openvino


class TritonPythonModel:
    """One instance of one ONNX model."""

    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        path = model_file(args, config, "model.onnx")
        parameters = config.get("parameters", {})
        try:
            inputs, outputs, run = openvino.load(
                path,
                bf16=parameters.get("HINT_BF16", {}).get("string_value") == "YES",
                usual=warmup_shapes(config),
                alone=parameters.get("ONE_A_CALL", {}).get("string_value") == "YES",
                threads=number(parameters, "INFERENCE_NUM_THREADS"),
            )
        except openvino.OpenVINOError as error:
            raise pb_utils.TritonModelException(f"OpenVINO cannot load '{path}': {error}") from error

        self.batches = Batches("OpenVINO", config, lambda feeds: dict(zip(outputs, run(joined(feeds)), strict=True)))
        check_names("input", self.batches.inputs, inputs, exact=True)
        check_names("output", list(self.batches.outputs), outputs, exact=False)

    def execute(self, requests: list[Any]) -> list[Any]:
        return self.batches.answer(requests, lambda tensor: tensor.as_numpy())
