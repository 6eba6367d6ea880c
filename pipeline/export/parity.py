"""Check that TensorRT plans match their ONNX files, in single calls and whole images, through a server.

``MIN_PSNR`` is a proxy for LPIPS, which needs PyTorch: noise at 45 dB changes an image's LPIPS by 0.013–0.018, at 52 dB
by less than 0.002 (docs/decisions.md). ``python -m train.evaluate --runtimes onnx,trt`` measures the actual change.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import tritonclient.grpc as triton
from pydicom import dcmread
from pydicom.data import get_testdata_file
from tritonclient.utils import InferenceServerException

from pipeline.method.images import Image, crop_square, resize_cubic
from pipeline.method.options import Options
from pipeline.method.upscale import Array, Call, Networks, generator, network_lr, upsample_all, upscale
from pipeline.models import fused_model
from pipeline.presets import Preset
from pipeline.remote import infer
from pipeline.spec import Model

RECORDED = (299, 150, 1)
"""Timesteps at which calls are compared."""
MAX_CALL_ERROR = 0.05
MIN_PSNR = 52.0
MAX_DARK = 0.5
DARK = 0.2
MIN_ERROR = 1e-10
"""Lower bound of the mean squared error: 100 dB, because JSON has no infinity."""
ADVICE = "use --precision fp32, or bf16"


class ParityError(Exception):
    """A plan differs too much from its ONNX file."""


@dataclass(frozen=True)
class Parity:
    """Differences between plans and ONNX files."""

    calls: dict[str, float]
    """Description of the call ⇒ max │plan - ONNX│ / max │ONNX│."""
    psnr: float
    """PSNR of the worst whole image, in dB."""
    dark: float
    """Largest shift of the mean brightness of an image's dark areas, in gray levels of 255."""


def judge(parity: Parity) -> None:
    """Reject plans that differ too much, including by NaN.

    Raises:
        ParityError: the plans are too far from the ONNX files.
    """
    wrong = [f"{call}: {error:.1%}" for call, error in parity.calls.items() if not error < MAX_CALL_ERROR]
    if wrong:
        raise ParityError(f"the plan's error must be below {MAX_CALL_ERROR:.0%}, got {', '.join(wrong)}: {ADVICE}")
    if not parity.psnr > MIN_PSNR:
        raise ParityError(
            f"whole images: PSNR against ONNX must be above {MIN_PSNR:g} dB, got {parity.psnr:.1f}: {ADVICE}"
        )
    if not parity.dark < MAX_DARK:
        raise ParityError(
            f"the shift of dark areas must be below {MAX_DARK:g} gray levels, got {parity.dark:.2f}: {ADVICE}"
        )


def radiographs(preset: Preset) -> list[Image]:
    """Return LR images of the preset's size from a radiograph in pydicom-data: as is, and underexposed.

    Raises:
        ParityError: the package is not installed.
    """
    path = get_testdata_file("RG1_UNCR.dcm")
    if path is None:
        raise ParityError("the package pydicom-data has no RG1_UNCR.dcm: pip install pydicom-data")
    file = dcmread(path)
    values, center, width = file.pixel_array.astype(np.float32), file.WindowCenter, file.WindowWidth
    # its window by PS3.3 C.11.2.1.2.1; MONOCHROME1: small values are bright
    whole = crop_square(1 - np.clip((values - (center - 0.5)) / (width - 1) + 0.5, 0, 1).astype(np.float32))
    lr = resize_cubic(whole, preset.data.lr_size, preset.data.lr_size).clip(0, 1)
    return [lr, lr * np.float32(0.4)]


def remote(server: triton.InferenceServerClient, name: str, model: Model) -> Call:
    """Return a function that calls model ``name`` on the server with the inputs of ``model``, ignoring others."""

    def run(**inputs: Array) -> tuple[Array, ...]:
        own = {tensor: inputs[tensor] for tensor in model.input_names}
        return infer(server, name, own, [tensor.name for tensor in model.outputs])

    return run


def call_error(plan: Array, onnx: Array) -> float:
    """Return max │plan - ONNX│ / max │ONNX│; NaN if the plan has a NaN."""
    return float(np.abs(plan - onnx).max() / np.abs(onnx).max())


def compare_images(plan: Image, onnx: Image) -> tuple[float, float]:
    """Return the PSNR in dB and the shift of the dark areas' mean in gray levels of 255; NaN if a value is NaN."""
    error = np.mean(np.square(plan - onnx, dtype=np.float64))
    where = onnx < DARK
    shift = np.mean((plan - onnx)[where]) if where.any() else 0.0
    return float(-10 * np.log10(np.maximum(error, MIN_ERROR))), 255 * abs(float(shift))


def record_fused(networks: Networks, preset: Preset, image: Image) -> dict[str, Array]:
    """Return the inputs of the fused model for an image with default options."""
    recorded: dict[str, Array] = {}

    def fused(**inputs: Array) -> tuple[Array, ...]:
        recorded.update(inputs)
        assert networks.fused is not None
        return networks.fused(**inputs)

    upscale([image], [0], generator(replace(networks, fused=fused), preset), preset)
    return recorded


def measure_parity(url: str, preset: Preset, networks: Networks, pairs: Sequence[tuple[Model, Model]]) -> Parity:
    """Compare plans with the ONNX models of the same server.

    The denoiser is compared on its inputs at the recorded timesteps of a whole run, and by whole images from all steps
    of DDPM; the other networks are compared on one call.

    Args:
        url: gRPC address of the server.
        preset: the repository's preset.
        networks: the ONNX files in this process; their encoder and decoder are used with both denoisers.
        pairs: (network, its plan), the denoiser first.

    Raises:
        ParityError: the server cannot run one of them.
    """
    calls: dict[str, float] = {}
    images = radiographs(preset)
    lr = network_lr(images[:1], preset)
    image = upsample_all(lr)
    try:
        with triton.InferenceServerClient(url) as server:
            both = [tuple(remote(server, model.name, network) for model in (plan, network)) for network, plan in pairs]
            plan_denoise, onnx_denoise = both[0]

            def recording(x: Array, t: Array) -> Array:
                onnx = onnx_denoise(x=x, t=t)[0]
                call = f"{pairs[0][1].name} at t = {t[0, 0]:g}"
                if t[0, 0] in RECORDED and call not in calls:
                    calls[call] = call_error(plan_denoise(x=x, t=t)[0], onnx)
                return onnx

            options = Options.of(preset, sampler="ddpm", faithful=False)

            def draw(denoise: Callable[[Array, Array], Array]) -> list[Image]:
                generate = generator(replace(networks, denoise=denoise, fused=None), preset, options)
                results = upscale(images, [0] * len(images), generate, preset, options)
                return [result.upscaled for result in results]

            def planned(x: Array, t: Array) -> Array:
                return plan_denoise(x=x, t=t)[0]

            found = [compare_images(plan, onnx) for plan, onnx in zip(draw(planned), draw(recording), strict=True)]
            inputs = {"image": image, "latent": networks.encode(image, lr), "lr": lr}
            for (network, model), (plan, onnx) in zip(pairs[1:], both[1:], strict=True):
                arrays = record_fused(networks, preset, images[0]) if network == fused_model(preset) else inputs
                calls[model.name] = call_error(plan(**arrays)[0], onnx(**arrays)[0])
    except InferenceServerException as error:
        raise ParityError(f"the server does not answer: {error.message()}") from error
    # unlike min() and max(), NumPy's propagate NaN
    return Parity(calls, float(np.min([psnr for psnr, _ in found])), float(np.max([dark for _, dark in found])))


def report(parity: Parity) -> str:
    """Return a readable summary."""
    calls = ", ".join(f"{call}: {error:.2%}" for call, error in parity.calls.items())
    dark = f"dark areas shifted by {parity.dark:.2f} gray levels"
    return f"calls off by {calls}; whole images: PSNR {parity.psnr:.1f} dB, {dark}"
