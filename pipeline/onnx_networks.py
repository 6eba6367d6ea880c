"""The networks of a model repository in this process: onnxruntime sessions on the repository's own ONNX files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from pipeline.superres import Networks


def open_session(path: Path, threads: int = 0) -> ort.InferenceSession:
    """A CPU session on one ONNX file; ``threads`` 0 takes every core."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run(session: ort.InferenceSession, **inputs: NDArray[np.float32]) -> NDArray[np.float32]:
    """The only output of a model."""
    output: NDArray[np.float32] = session.run(None, inputs)[0]
    return output


def onnx_networks(repository: Path, threads: int = 0) -> Networks:
    """Encoder, denoiser and decoder of ``repository``."""
    encoder, unet, decoder = (
        open_session(repository / name / "1" / "model.onnx", threads)
        for name in ("vae_encoder", "unet_onnx", "vae_decoder")
    )
    return Networks(
        encode=lambda image: run(encoder, image=image),
        denoise=lambda x, t: run(unet, x=x, t=t),
        decode=lambda latent: run(decoder, latent=latent),
    )
