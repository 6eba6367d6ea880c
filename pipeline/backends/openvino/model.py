"""A Triton backend that runs ONNX models with OpenVINO on the CPU, for servers without the native one.

It is based on the Python backend. Triton uses it for every model with ``backend: "openvino"`` if it finds no
``libtriton_openvino.so``. Names and dtypes come from the model's configuration; its parameter
``HINT_BF16`` is the same as in the native backend ("YES": bfloat16 if the processor supports it; else float32).
``ONE_A_CALL`` is specific to this backend ("YES": process a batch sequentially, on all cores).
"""

from __future__ import annotations

import json
from typing import Any

import triton_python_backend_utils as pb_utils

from pipeline.backends.batches import Batches, check_names, join_feeds, model_file, warmup_shapes
from pipeline.runtimes import openvino


class TritonPythonModel:
    """An instance of an ONNX model."""

    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        path = model_file(args, config, "model.onnx")
        parameters = config.get("parameters", {})
        try:
            inputs, outputs, run = openvino.load(
                path,
                bf16=parameters.get("HINT_BF16", {}).get("string_value") == "YES",
                usual=warmup_shapes(config),
                sequential=parameters.get("ONE_A_CALL", {}).get("string_value") == "YES",
            )
        except openvino.OpenVINOError as error:
            raise pb_utils.TritonModelException(f"OpenVINO cannot load '{path}': {error}") from error

        self.batches = Batches(
            "OpenVINO", config, lambda feeds: dict(zip(outputs, run(join_feeds(feeds)), strict=True))
        )
        check_names("input", self.batches.inputs, inputs, exact=True)
        check_names("output", list(self.batches.outputs), outputs, exact=False)

    def execute(self, requests: list[Any]) -> list[Any]:
        return self.batches.answer(requests, lambda tensor: tensor.as_numpy())
