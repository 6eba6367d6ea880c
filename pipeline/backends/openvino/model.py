"""A Triton backend for ONNX models by OpenVINO on the CPU, on the Python backend, for servers without the native one.

Triton takes it for every model with ``backend: "openvino"`` where it finds no ``libtriton_openvino.so``. Names and
dtypes come from the model's configuration; these ``parameters`` have the native backend's names and meaning:
``INFERENCE_NUM_THREADS``, ``HINT_BF16`` ("YES": bfloat16 where the processor has it; else float32).

The shape of the configuration's warm-up request gets a network of its own, compiled for that shape alone, which is
faster than the one that takes every shape.
"""

from __future__ import annotations

import json
from typing import Any

import openvino
import triton_python_backend_utils as pb_utils

from pipeline.backends.batches import Batches, Feed, check_names, model_file, number

Shapes = dict[str, tuple[int, ...]]


def properties(parameters: dict[str, Any]) -> dict[str, Any]:
    """OpenVINO's from the ``parameters`` of the model's configuration."""
    bf16 = parameters.get("HINT_BF16", {}).get("string_value", "NO") == "YES"
    threads = number(parameters, "INFERENCE_NUM_THREADS")
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",
        **({"INFERENCE_NUM_THREADS": threads} if threads else {}),
    }


def warmup_shapes(config: dict[str, Any]) -> Shapes | None:
    """Of the inputs of the first warm-up request, batch axis included."""
    for request in config.get("model_warmup", []):
        batch = (request["batch_size"],) if config["max_batch_size"] else ()
        return {name: (*batch, *map(int, i["dims"])) for name, i in request["inputs"].items()}
    return None


class TritonPythonModel:
    """One instance of one ONNX model."""

    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        path = model_file(args, config, "model.onnx")
        chosen = properties(config.get("parameters", {}))
        self.usual = warmup_shapes(config)
        try:
            core = openvino.Core()
            model = core.read_model(path)
            inputs, outputs = ([tensor.any_name for tensor in of] for of in (model.inputs, model.outputs))
            check_names("input", [i["name"] for i in config["input"]], inputs, exact=True)
            check_names("output", [o["name"] for o in config["output"]], outputs, exact=False)
            self.any_shape = core.compile_model(model, "CPU", chosen).create_infer_request()
            if self.usual:
                model.reshape({name: list(shape) for name, shape in self.usual.items()})
                self.usual_shape = core.compile_model(model, "CPU", chosen).create_infer_request()
        except pb_utils.TritonModelException:
            raise
        except Exception as error:  # OpenVINO raises RuntimeError for whatever it is
            reason = str(error).strip().splitlines()[-1]
            raise pb_utils.TritonModelException(f"OpenVINO cannot load '{path}': {reason}") from error
        self.batches = Batches("OpenVINO", config, self._run)

    def _run(self, feed: Feed) -> list[Any]:
        usual = self.usual == {name: array.shape for name, array in feed.items()}
        request = self.usual_shape if usual else self.any_shape
        results = request.infer(feed, share_inputs=True)
        return [results[name] for name in self.batches.outputs]

    def execute(self, requests: list[Any]) -> list[Any]:
        return self.batches.answer(requests, lambda tensor: tensor.as_numpy())
