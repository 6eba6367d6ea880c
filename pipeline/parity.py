"""Is a server's TensorRT plan the network that its ONNX file is? Single calls, and whole images of all T steps."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tritonclient.grpc as triton
from pydicom.data import get_testdata_file

from client import Client
from pipeline.files import read_image
from pipeline.images import Image, crop_square, psnr, resize_cubic
from pipeline.spec import Preset
from pipeline.superres import Array, Networks, generator, upscale

RECORDED = (299, 150, 1)
"""Timesteps whose calls are compared."""
MAX_UNET_ERROR = 0.05
MIN_PSNR = 45.0
MAX_DARK = 0.5
DARK = 0.2
ADVICE = "use --precision fp32, or bf16"


class ParityError(Exception):
    """The plan is not the network."""


def record_inputs(networks: Networks, preset: Preset, image: Image) -> dict[int, tuple[Array, Array]]:
    """What the U-Net is given at the recorded timesteps of a whole run of DDPM: {t: (x, t)}."""
    recorded: dict[int, tuple[Array, Array]] = {}

    def denoise(x: Array, t: Array) -> Array:
        if (time := int(t[0, 0])) in RECORDED:
            recorded[time] = x.copy(), t.copy()
        return networks.denoise(x, t)

    upscale([image], [0], generator(replace(networks, denoise=denoise), preset, sampler="ddpm"), preset)
    return recorded


@dataclass(frozen=True)
class Parity:
    """How far a plan is from the ONNX file."""

    unet_error: dict[int, float]
    """By timestep: max │plan - ONNX│ / max │ONNX│"""
    psnr: float
    """of the worst of the whole images, in dB"""
    dark: float
    """the largest shift of the mean brightness of an image's dark areas, in gray levels of 255"""


def judge(parity: Parity) -> None:
    """Refuse a plan that is not the network.

    Raises:
        ParityError: it is too far from the ONNX file.
    """
    wrong = [f"t = {t}: {error:.1%}" for t, error in parity.unet_error.items() if not error < MAX_UNET_ERROR]
    if wrong:
        raise ParityError(f"the plan's U-Net is off by {', '.join(wrong)}, allowed is {MAX_UNET_ERROR:.0%}: {ADVICE}")
    if not parity.psnr > MIN_PSNR:
        raise ParityError(f"whole images: PSNR against ONNX is {parity.psnr:.1f} dB, needed is {MIN_PSNR:g}: {ADVICE}")
    if not parity.dark < MAX_DARK:
        raise ParityError(f"dark areas are shifted by {parity.dark:.2f} gray levels, allowed is {MAX_DARK:g}: {ADVICE}")


def radiographs(preset: Preset) -> list[Image]:
    """LR images of the preset's size from the radiograph of pydicom-data: as it is, and underexposed.

    Raises:
        ParityError: the package is not installed.
    """
    path = get_testdata_file("RG1_UNCR.dcm")
    if path is None:
        raise ParityError("the package pydicom-data holds no RG1_UNCR.dcm: pip install pydicom-data")
    whole = crop_square(read_image(Path(path)).image)
    lr = resize_cubic(whole, preset.data.lr_size, preset.data.lr_size).clip(0, 1)
    return [lr, lr * np.float32(0.4)]


def measure_parity(url: str, preset: Preset, networks: Networks) -> Parity:
    """Compare ``unet_trt`` with ``unet_onnx`` on the server at ``url``: single calls, and whole images of all T steps.

    Args:
        networks: the ONNX files in this process, from which the calls are recorded.
    """
    images = radiographs(preset)
    errors = {}
    with triton.InferenceServerClient(url) as server:
        for t, (x, time) in record_inputs(networks, preset, images[0]).items():
            inputs = [
                triton.InferInput(name, a.shape, "FP32").set_data_from_numpy(a) for name, a in (("x", x), ("t", time))
            ]
            plan, onnx = (
                server.infer(name, inputs).as_numpy(preset.diffusion.prediction) for name in ("unet_trt", "unet_onnx")
            )
            errors[t] = float(np.abs(plan - onnx).max() / np.abs(onnx).max())
    worst, dark = float("inf"), 0.0
    with Client(url) as client:
        for image in images:
            plan, onnx = (
                client.upscale(image, sampler="ddpm", denoiser=denoiser, faithful=False).image
                for denoiser in ("trt", "onnx")
            )
            worst = min(worst, psnr(plan, onnx))
            where = onnx < DARK
            dark = max(dark, 255 * abs(float((plan - onnx)[where].mean())) if where.any() else 0.0)
    return Parity(errors, worst, dark)


def report(parity: Parity) -> str:
    """For people."""
    calls = ", ".join(f"{error:.2%} at t = {t}" for t, error in parity.unet_error.items())
    dark = f"dark areas shifted by {parity.dark:.2f} gray levels"
    return f"U-Net off by {calls}; whole images: PSNR {parity.psnr:.1f} dB, {dark}"
