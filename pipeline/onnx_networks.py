"""The networks of a model repository in this process: onnxruntime sessions on the repository's own ONNX files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

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


def run(session: ort.InferenceSession, **inputs: NDArray[np.float32]) -> NDArray[np.float32]:
    """The only output of a model."""
    output: NDArray[np.float32] = session.run(None, inputs)[0]
    return output


def onnx_networks(repository: Path) -> Networks:
    """Encoder, denoiser and decoder of ``repository``.

    Raises:
        ValueError: a file is missing or damaged.
    """
    encoder, unet, decoder = (
        open_session(repository / name / "1" / "model.onnx") for name in ("vae_encoder", "unet_onnx", "vae_decoder")
    )
    return Networks(
        encode=lambda image: run(encoder, image=image),
        denoise=lambda x, t: run(unet, x=x, t=t),
        decode=lambda latent: run(decoder, latent=latent),
    )
