"""ONNX files run by onnxruntime on a GPU, with CUDA graphs for usual shapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnxruntime as ort

Shapes = Mapping[str, Sequence[int]]
"""Input name ⇒ shape without the batch axis."""
Feed = Mapping[str, Any]
"""Input name ⇒ array."""
RunSession = Callable[[Feed], list[Any]]
"""Inputs by name ⇒ all outputs in the file's order."""

NO_GRAPH = -1


def run_options(graph: int) -> ort.RunOptions:
    """Return options to run as the session's CUDA graph of this number, captured by its first run; NO_GRAPH: none."""
    options = ort.RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(graph))
    return options


class CapturedGraph:
    """A CUDA graph for inputs of one shape, with the fixed device memory that a graph requires.

    It replaces hundreds of launches with one; in small networks, launches take longer than arithmetic.
    """

    def __init__(self, session: ort.InferenceSession, feed: Feed, graph: int, kind: str, device: int) -> None:
        self.session, self.options = session, run_options(graph)
        self.binding = session.io_binding()
        results = session.run(None, feed, run_options(NO_GRAPH))
        self.inputs = {name: ort.OrtValue.ortvalue_from_numpy(array, kind, device) for name, array in feed.items()}
        self.outputs = [
            ort.OrtValue.ortvalue_from_shape_and_type(result.shape, result.dtype, kind, device) for result in results
        ]
        for name, value in self.inputs.items():
            self.binding.bind_ortvalue_input(name, value)
        for tensor, value in zip(session.get_outputs(), self.outputs, strict=True):
            self.binding.bind_ortvalue_output(tensor.name, value)

    def __call__(self, feed: Feed) -> list[Any]:
        for name, array in feed.items():
            self.inputs[name].update_inplace(array)
        self.session.run_with_iobinding(self.binding, self.options)
        return [value.numpy() for value in self.outputs]


def replay_graphs(session: ort.InferenceSession, usual: Shapes, kind: str, device: int) -> RunSession:
    """Return a function that runs the session, with a graph for each batch size of the ``usual`` shapes only."""
    recorded: dict[int, CapturedGraph] = {}
    without = run_options(NO_GRAPH)

    def run(feed: Feed) -> list[Any]:
        if {name: array.shape[1:] for name, array in feed.items()} != usual:
            return list(session.run(None, feed, without))
        batch = len(next(iter(feed.values())))
        if batch in recorded:
            return recorded[batch](feed)
        replayed = CapturedGraph(session, feed, batch, kind, device)
        results = replayed(feed)
        recorded[batch] = replayed
        return results

    return run


def load(
    path: Path, options: ort.SessionOptions, device: int, usual: Shapes | None
) -> tuple[ort.InferenceSession, RunSession, str]:
    """Return a session on a GPU, a function that runs it, and why it does not use CUDA graphs, or "".

    If the GPU or CUDA's libraries cannot be used, onnxruntime reports it on stderr and runs on the CPU.

    Args:
        path: ONNX file.
        options: session options.
        device: GPU number.
        usual: shapes of a batched model to run as graphs. None: use no graphs.

    Raises:
        Exception: onnxruntime's, for a damaged file.
    """
    ort.preload_dlls()
    options.use_deterministic_compute = True  # not honoured by all kernels: images may differ by 3e-4
    # an exhaustive search would delay the first image of every size by seconds
    cuda = {"device_id": device, "cudnn_conv_algo_search": "HEURISTIC"}
    reason = "it has no usual shapes"
    if usual is not None:
        try:
            session = ort.InferenceSession(
                str(path), options, providers=[("CUDAExecutionProvider", {**cuda, "enable_cuda_graph": "1"})]
            )
        except Exception as error:  # onnxruntime's exceptions have no common base
            reason = str(error).strip()
        else:
            if "CUDAExecutionProvider" in session.get_providers():
                return session, replay_graphs(session, usual, "cuda", device), ""
            reason = "CUDA cannot be used"
    session = ort.InferenceSession(
        str(path), options, providers=[("CUDAExecutionProvider", cuda), "CPUExecutionProvider"]
    )
    return session, lambda feed: list(session.run(None, feed)), reason
