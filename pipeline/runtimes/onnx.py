"""The networks of a model repository in this process: its own ONNX files by onnxruntime or OpenVINO."""

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
    """A CPU session on one ONNX file, with onnxruntime's own choice of threads.

    Raises:
        ValueError: the file is missing or damaged.
    """
    try:
        return ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own errors have no base class of theirs
        raise ValueError(f"cannot load '{path}': {str(error).splitlines()[0]}") from error


def onnx_networks(repository: Path, preset: Preset, runtime: Runtime = "onnxruntime") -> Networks:
    """Encoder, denoiser, decoder and what fuses them, of a ``repository`` that was exported from ``preset``.

    Args:
        repository: the model repository.
        preset: the system.
        runtime: "openvino" runs those in bfloat16 and INT8 that the preset allows, as a server of that runtime does.

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


Run = Callable[[Mapping[str, Array]], Sequence[Array]]
"""Inputs by name ⇒ the outputs."""


def network(path: Path, model: Model, inputs: list[str], run: Run) -> Call:
    """The model's outputs as a function of its inputs by name; arguments that it does not have are ignored.

    Raises:
        ValueError: the file has other inputs than the model.
    """
    names = model.input_names
    if inputs != names:
        raise ValueError(
            f"'{path}' must have the inputs {', '.join(names)}, got {', '.join(inputs)}: it belongs to another preset"
        )
    return lambda **arrays: tuple(run({name: arrays[name] for name in names}))


def onnxruntime_network(path: Path, model: Model) -> Call:
    """The network; raises ValueError where the file is missing, damaged or of another preset."""
    session = open_session(path)
    inputs = [tensor.name for tensor in session.get_inputs()]
    return network(path, model, inputs, lambda feed: session.run(None, feed))


def openvino_network(path: Path, model: Model, sequential: bool) -> Call:
    """The network, in bfloat16, with the model's warm-up shape as the usual one; ``alone``: an image at a time.

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
