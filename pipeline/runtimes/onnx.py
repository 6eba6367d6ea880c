"""A model repository's networks in this process: its ONNX files run by onnxruntime or OpenVINO."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import onnxruntime as ort

from pipeline.method.upscale import Array, Call, Networks, networks_of
from pipeline.models import onnx_models
from pipeline.presets import Preset
from pipeline.spec import Model

Runtime = Literal["onnxruntime", "openvino"]


def open_session(path: Path) -> ort.InferenceSession:
    """Open a CPU session on an ONNX file, with onnxruntime's default number of threads.

    Raises:
        ValueError: the file is missing or damaged.
    """
    try:
        return ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions have no common base
        raise ValueError(f"cannot load '{path}': {str(error).splitlines()[0]}") from error


def onnx_networks(repository: Path, preset: Preset, runtime: Runtime = "onnxruntime") -> Networks:
    """Load the networks of a ``repository`` exported from ``preset``.

    Args:
        repository: the model repository.
        preset: the system.
        runtime: "openvino" uses bfloat16 and INT8 where the preset allows, like a server with that runtime.

    Raises:
        ValueError: a file is missing, damaged or of another preset, or OpenVINO is not installed.
    """
    models = onnx_models(preset)
    found = {
        m.name: openvino_network(
            repository / m.name / "1" / preset.openvino_file(m.name), m, sequential=m.name in preset.sequential
        )
        if runtime == "openvino" and m.name in preset.bfloat16
        else onnxruntime_network(repository / m.name / "1" / "model.onnx", m)
        for m in models
    }
    return networks_of(models, found)


RunNetwork = Callable[[Mapping[str, Array]], Sequence[Array]]
"""Inputs by name ⇒ outputs."""


def network(path: Path, model: Model, inputs: list[str], run: RunNetwork) -> Call:
    """Return a function from the model's inputs by name to its outputs, ignoring unknown inputs.

    Raises:
        ValueError: the file's inputs differ from the model's.
    """
    names = model.input_names
    if inputs != names:
        raise ValueError(
            f"'{path}' must have the inputs {', '.join(names)}, got {', '.join(inputs)}: it belongs to another preset"
        )
    return lambda **arrays: tuple(run({name: arrays[name] for name in names}))


def onnxruntime_network(path: Path, model: Model) -> Call:
    """Load the network; raise ValueError if the file is missing, damaged or of another preset."""
    session = open_session(path)
    inputs = [tensor.name for tensor in session.get_inputs()]
    return network(path, model, inputs, lambda feed: session.run(None, feed))


def openvino_network(path: Path, model: Model, sequential: bool) -> Call:
    """Load the network in bfloat16, optimised for the model's warm-up shape; ``sequential``: one image at a time.

    Raises:
        ValueError: the file is missing, damaged or of another preset, or OpenVINO is not installed.
    """
    try:
        from pipeline.runtimes import openvino
    except ImportError as error:
        raise ValueError("OpenVINO is not installed: pip install --no-deps openvino==2026.4.1") from error
    usual = dict(zip(model.input_names, model.warmup, strict=True))
    try:
        inputs, _, run = openvino.load(path, bf16=True, usual=usual, sequential=sequential)
    except openvino.OpenVINOError as error:
        raise ValueError(f"cannot load '{path}': {error}") from error
    return network(path, model, inputs, run)
