"""ONNX files by OpenVINO on the CPU, as the backend and the benchmarks run them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino

from pipeline.processor import BFLOAT16, multiplies

Shapes = Mapping[str, Sequence[int]]
"""Input name ⇒ shape without the batch axis."""
Feed = Mapping[str, Any]
"""Input name ⇒ array."""


class OpenVINOError(Exception):
    """The file cannot be loaded; the message is OpenVINO's."""


BATCHES = (4, 1)
"""Sizes of batch that the usual shape has a network of its own for; others are made up of these."""


def parts(total: int, sizes: Sequence[int]) -> list[int]:
    """``total`` as a sum of ``sizes``, which descend to 1; the largest first."""
    found = []
    for size in sizes:
        count, total = divmod(total, size)
        found += [size] * count
    return found


def load(
    path: Path, *, bf16: bool, usual: Shapes | None = None, alone: bool = False, threads: int = 0
) -> tuple[list[str], list[str], Callable[[Feed], Mapping[str, Any]]]:
    """The names of inputs and outputs, and the function from inputs to outputs by name.

    Args:
        path: of the ONNX file.
        bf16: compute in bfloat16 where the processor has it, else in float32.
        usual: shapes for which further networks are compiled: these take no other and are a fifth to a third faster.
        alone: take the images of a batch one at a time.
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
        usual_shape = {}
        sizes = (1,) if alone else BATCHES
        for batch in sizes if usual else ():
            model.reshape({name: [batch, *shape] for name, shape in (usual or {}).items()})
            usual_shape[batch] = core.compile_model(model, "CPU", properties).create_infer_request()
    except Exception as error:  # OpenVINO raises RuntimeError for whatever it is
        raise OpenVINOError(str(error).strip().splitlines()[-1]) from error

    def run(feed: Feed) -> Mapping[str, Any]:
        fits = usual == {name: array.shape[1:] for name, array in feed.items()}
        total = len(next(iter(feed.values())))
        found, first = [], 0
        for size in parts(total, sizes) if fits or alone else [total]:
            part = {name: array[first : first + size] for name, array in feed.items()}
            found.append((usual_shape[size] if fits else any_shape).infer(part, share_inputs=True))
            first += size
        if len(found) == 1:
            return {name: found[0][name] for name in outputs}
        return {name: np.concatenate([results[name] for results in found]) for name in outputs}

    return inputs, outputs, run
