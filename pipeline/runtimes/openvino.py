"""ONNX files run by OpenVINO on the CPU, for the backend and the benchmarks."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import openvino

from pipeline.runtimes.processor import BFLOAT16, cpu_supports

Shapes = Mapping[str, Sequence[int]]
"""Input name ⇒ shape without the batch axis."""
Feed = Mapping[str, Any]
"""Input name ⇒ array."""


LONG = 0.3
"""Seconds from which an inference was of something large, whose memory is then given back: that takes 0.04 s."""


class OpenVINOError(Exception):
    """The file cannot be loaded; the message is OpenVINO's."""


class Network:
    """A model compiled for one item on all cores, and for OpenVINO's optimal number of concurrent items (streams).

    Every item of a batch is a separate inference. On two cores this is as fast as a batched inference, without waiting
    for the slowest core at every layer. After an error the model is recompiled, because state left by invalid shapes
    would make later valid inferences fail. What long inferences needed is not kept: the largest image would hold half a
    gigabyte for good.
    """

    def __init__(self, core: openvino.Core, model: openvino.Model, properties: dict[str, Any]) -> None:
        self.core, self.model, self.properties = core, model, properties
        self.outputs = [tensor.any_name for tensor in model.outputs]
        _ = self.all_cores

    def _compiled(self, hint: str) -> openvino.CompiledModel:
        return self.core.compile_model(self.model, "CPU", {**self.properties, "PERFORMANCE_HINT": hint})

    @cached_property
    def all_cores(self) -> openvino.InferRequest:
        return self._compiled("LATENCY").create_infer_request()

    @cached_property
    def streams(self) -> list[openvino.InferRequest]:
        compiled = self._compiled("THROUGHPUT")
        count = compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
        return [compiled.create_infer_request() for _ in range(count)]

    def _results(self, request: openvino.InferRequest) -> list[Any]:
        request.wait()
        return [request.get_tensor(name).data.copy() for name in self.outputs]

    def infer(self, feed: Feed) -> list[Any]:
        """Return all outputs for one item, on all cores."""
        began = time.monotonic()
        try:
            results = self.all_cores.infer(dict(feed), share_inputs=True)
            found = [results[name] for name in self.outputs]
            release(self.all_cores, began)
        except Exception:
            self.__dict__.pop("all_cores", None)  # absent if compilation failed
            raise
        return found

    def infer_sequentially(self, feeds: Sequence[Feed]) -> list[list[Any]]:
        """Return all outputs for each item, one item at a time."""
        return [self.infer(feed) for feed in feeds]

    def infer_in_streams(self, feeds: Sequence[Feed]) -> list[list[Any]]:
        """Return all outputs for each item; the remainder runs sequentially if it would leave half the streams idle."""
        if len(feeds) == 1:
            return self.infer_sequentially(feeds)
        rest = len(feeds) % len(self.streams)
        count = len(feeds) - (rest if 2 * rest <= len(self.streams) else 0)
        found: list[list[Any]] = []
        started: deque[openvino.InferRequest] = deque()
        began = time.monotonic()
        try:
            for i, feed in enumerate(feeds[:count]):
                if len(started) == len(self.streams):
                    found.append(self._results(started.popleft()))
                started.append(self.streams[i % len(self.streams)])
                started[-1].start_async(dict(feed), share_inputs=True)
            while started:
                found.append(self._results(started.popleft()))
            release(self.streams[0], began)
        except Exception:
            for request in started:  # they still read the feeds
                with contextlib.suppress(Exception):
                    request.wait()
            self.__dict__.pop("streams", None)
            raise
        return found + self.infer_sequentially(feeds[count:])


def release(request: openvino.InferRequest, began: float) -> None:
    """Give back the memory of a request's network, none of which is running, if its last inferences were long."""
    if time.monotonic() - began > LONG:
        request.get_compiled_model().release_memory()


@cache
def shared_core() -> openvino.Core:
    """Return the process's core.

    Every core gives signal handlers a stack of its own, and when freed, one that an earlier core may have freed
    already: the next signal would kill the process.
    """
    return openvino.Core()


def load(
    path: Path, *, bf16: bool, usual: Shapes | None = None, sequential: bool = False
) -> tuple[list[str], list[str], Callable[[Feed], list[Any]]]:
    """Return the names of inputs and outputs, and a function from inputs by name to outputs.

    Args:
        path: ONNX file.
        bf16: compute in bfloat16 if the processor supports it, else in float32.
        usual: shapes of a batched model for which a second network is compiled, which takes two thirds of the time.
            None: run each call as a single inference.
        sequential: process a batch sequentially, for models whose results depend on the number of cores in use.

    Raises:
        OpenVINOError: the file is missing or damaged.
    """
    # if requested, OpenVINO emulates bfloat16 on some processors without it
    properties = {"INFERENCE_PRECISION_HINT": "bf16" if bf16 and cpu_supports(BFLOAT16) else "f32"}
    try:
        core = shared_core()
        model = core.read_model(path)
        inputs = [tensor.any_name for tensor in model.inputs]
        any_shape = Network(core, model, properties)
        if usual is None:
            return inputs, any_shape.outputs, any_shape.infer
        fixed = model.clone()
        fixed.reshape({name: [1, *shape] for name, shape in usual.items()})
        usual_shape = Network(core, fixed, properties)
        if not sequential:
            _ = usual_shape.streams
    except Exception as error:  # OpenVINO raises RuntimeError for any problem
        raise OpenVINOError((str(error).strip() or type(error).__name__).splitlines()[-1]) from error

    def run(feed: Feed) -> list[Any]:
        fits = {name: array.shape[1:] for name, array in feed.items()} == usual
        network = usual_shape if fits else any_shape
        total = len(next(iter(feed.values())))
        items = [{name: array[i : i + 1] for name, array in feed.items()} for i in range(total)]
        found = network.infer_sequentially(items) if sequential else network.infer_in_streams(items)
        return found[0] if total == 1 else [np.concatenate(outputs) for outputs in zip(*found, strict=True)]

    return inputs, any_shape.outputs, run
