"""ONNX files by OpenVINO on the CPU, as the backend and the benchmarks run them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import openvino

from pipeline.processor import BFLOAT16, multiplies

Shapes = Mapping[str, tuple[int, ...]]
Feed = Mapping[str, Any]
"""Input name ⇒ array."""


class OpenVINOError(Exception):
    """The file cannot be loaded; the message is OpenVINO's."""


def load(
    path: Path, *, bf16: bool, usual: Shapes | None = None, threads: int = 0
) -> tuple[list[str], list[str], Callable[[Feed], Mapping[str, Any]]]:
    """The names of inputs and outputs, and the function from inputs to outputs by name.

    Args:
        path: of the ONNX file.
        bf16: compute in bfloat16 where the processor has it, else in float32.
        usual: shapes, batch axis included, for which a second network is compiled: it takes no other and is faster.
        threads: 0 for OpenVINO's own choice.

    Raises:
        OpenVINOError: the file is missing or damaged.
    """
    properties = {
        "PERFORMANCE_HINT": "LATENCY",
        # asked for bfloat16, OpenVINO would imitate it on some processors that lack it
        "INFERENCE_PRECISION_HINT": "bf16" if bf16 and multiplies(BFLOAT16) else "f32",
        **({"INFERENCE_NUM_THREADS": threads} if threads else {}),
    }
    try:
        core = openvino.Core()
        model = core.read_model(path)
        inputs, outputs = ([tensor.any_name for tensor in of] for of in (model.inputs, model.outputs))
        any_shape = core.compile_model(model, "CPU", properties).create_infer_request()
        usual_shape = any_shape
        if usual:
            model.reshape({name: list(shape) for name, shape in usual.items()})
            usual_shape = core.compile_model(model, "CPU", properties).create_infer_request()
    except Exception as error:  # OpenVINO raises RuntimeError for whatever it is
        raise OpenVINOError(str(error).strip().splitlines()[-1]) from error

    def run(feed: Feed) -> Mapping[str, Any]:
        fits = usual == {name: array.shape for name, array in feed.items()}
        results = (usual_shape if fits else any_shape).infer(dict(feed), share_inputs=True)
        return {name: results[name] for name in outputs}

    return inputs, outputs, run
