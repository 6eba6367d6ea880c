"""A Triton backend that runs ONNX models with OpenVINO on the CPU, for servers without the native one.

It is based on the Python backend. Triton uses it for every model with ``backend: "openvino"`` if it finds no
``libtriton_openvino.so``. Names and dtypes come from the model's configuration; its parameter
``HINT_BF16`` is the same as in the native backend ("YES": bfloat16 if the processor supports it; else float32).
``ONE_A_CALL`` is specific to this backend ("YES": process a batch sequentially, on all cores).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.backends.batches import RunFeed, open_batches, warmup_shapes
from pipeline.runtimes import openvino


def load(path: Path, config: dict[str, Any]) -> tuple[list[str], list[str], RunFeed]:
    """See ``pipeline.backends.batches.open_batches``."""
    wanted = {name for name, value in config.get("parameters", {}).items() if value["string_value"] == "YES"}
    inputs, outputs, run = openvino.load(
        path, bf16="HINT_BF16" in wanted, usual=warmup_shapes(config), sequential="ONE_A_CALL" in wanted
    )
    return inputs, outputs, lambda feed: dict(zip(outputs, run(feed), strict=True))


class TritonPythonModel:
    """An instance of an ONNX model."""

    def initialize(self, args: dict[str, str]) -> None:
        self.batches = open_batches("OpenVINO", args, load)

    def execute(self, requests: list[Any]) -> list[Any]:
        return self.batches.answer(requests, lambda tensor: tensor.as_numpy())
