"""The networks of a model repository in this process: onnxruntime sessions on the repository's own ONNX files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from pipeline.spec import Model, Preset, onnx_models
from pipeline.superres import Networks


def open_session(path: Path) -> ort.InferenceSession:
    """A CPU session on one ONNX file, with onnxruntime's own choice of threads.

    Raises:
        ValueError: the file is missing or damaged.
    """
    try:
        return ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own errors have no base class of theirs
        raise ValueError(f"cannot load '{path}': {str(error).splitlines()[0]}") from error


def onnx_networks(repository: Path, preset: Preset) -> Networks:
    """Encoder, denoiser, decoder and what fuses them, of a ``repository`` that was exported from ``preset``.

    Raises:
        ValueError: a file is missing, damaged or of another preset.
    """
    denoise, encode, decode, fused = (network(repository / m.name / "1" / "model.onnx", m) for m in onnx_models(preset))
    return Networks(
        encode=lambda image, lr: encode(image=image, lr=lr),
        denoise=lambda x, t: denoise(x=x, t=t),
        decode=lambda latent, lr: decode(latent=latent, lr=lr),
        fused=fused,
    )


def network(path: Path, model: Model) -> Callable[..., NDArray[np.float32]]:
    """The model's only output as a function of its inputs by name; arguments that it does not have are ignored.

    Raises:
        ValueError: the file is missing, damaged or of another preset.
    """
    session, names = open_session(path), model.input_names
    if (found := [tensor.name for tensor in session.get_inputs()]) != names:
        raise ValueError(f"'{path}' has the inputs {', '.join(found)}, needed are {', '.join(names)}: another preset's")

    def run(**inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        output: NDArray[np.float32] = session.run(None, {name: inputs[name] for name in names})[0]
        return output

    return run
