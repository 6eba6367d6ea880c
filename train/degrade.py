"""Degradation of radiographs: presentation, downscaling, noise and JPEG.

The paper's protocol is one case, ``DEGRADATION_ROWS["cubic"]``. Noise and JPEG affect only the LR image, not HR.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage

from pipeline.method.images import downscale, downscale_by_area
from pipeline.spec import REDUCTIONS, SCALE, ReductionName
from train.augment import add_noise

Gray = NDArray[np.uint8]


@dataclass(frozen=True)
class Degradation:
    """Steps from a radiograph to an LR image, in this order."""

    window: tuple[float, float] | None = None
    """darkest and brightest value shown, in [0, 1]; None: full range"""
    gamma: float = 1.0
    invert: bool = False
    turns: int = 0
    """counterclockwise quarter turns"""
    blur: float = 0.0
    """standard deviation of a Gaussian blur, in HR pixels"""
    kernel: ReductionName = "cubic"
    noise: float = 0.0
    """standard deviation of white noise on the LR image, in gray levels (0–255)"""
    jpeg: int | None = None
    """JPEG quality of the LR image, 1–100"""


DEGRADATION_ROWS = {
    "cubic": Degradation(),
    "area": Degradation(kernel="area"),
    "bicubic": Degradation(kernel="bicubic"),
    "lanczos": Degradation(kernel="lanczos"),
    "blur": Degradation(blur=1.2),
    "jpeg50": Degradation(jpeg=50),
    "jpeg30": Degradation(jpeg=30),
    "area-jpeg75": Degradation(kernel="area", jpeg=75),
    "noise5": Degradation(noise=5.0),
    "noise10": Degradation(noise=10.0),
    "inverted": Degradation(invert=True),
    "turned": Degradation(turns=1),
    "window": Degradation(window=(0.2, 0.8)),
}
"""Degradations to report, by name."""


def prepared(hr: Gray, d: Degradation) -> Gray:
    """Apply window, gamma, inversion and rotation: the image that upscaling should recover."""
    if d.window is not None or d.gamma != 1.0:
        low, high = d.window or (0.0, 1.0)
        shown = np.clip((np.arange(256) / 255 - low) / (high - low), 0, 1) ** d.gamma
        hr = np.rint(255 * shown).astype(np.uint8)[hr]
    if d.invert:
        hr = np.bitwise_not(hr)
    return np.ascontiguousarray(np.rot90(hr, d.turns))


def reduce(hr: Gray, name: ReductionName) -> Gray:
    """Downscale [H, W] to [H/4, W/4] with the library's own rounding; sides must be multiples of 4."""
    if name == "cubic":
        return downscale(hr)
    if name == "area":
        return downscale_by_area(hr, SCALE)
    if name == "nearest":
        return np.ascontiguousarray(hr[SCALE // 2 :: SCALE, SCALE // 2 :: SCALE])
    height, width = (side // SCALE for side in hr.shape)
    return np.asarray(PILImage.fromarray(hr).resize((width, height), PILImage.Resampling[name.upper()]))


def degrade(hr: Gray, d: Degradation, rng: np.random.Generator) -> tuple[Gray, Gray]:
    """Return the LR image of a radiograph and the HR image that upscaling should recover.

    Args:
        hr: uint8 [H, W], sides multiples of 4.
        d: the degradation.
        rng: source of the noise.

    Returns:
        (LR uint8 [H/4, W/4], HR uint8 [H, W]), with sides swapped by odd quarter turns.
    """
    hr = prepared(hr, d)
    blurred = cv2.GaussianBlur(hr, (0, 0), d.blur) if d.blur else hr
    lr = reduce(blurred, d.kernel)
    if d.noise:
        lr = add_noise(lr, d.noise, rng)
    if d.jpeg is not None:
        encoded = cv2.imencode(".jpg", lr, (cv2.IMWRITE_JPEG_QUALITY, d.jpeg))[1]
        lr = cv2.imdecode(encoded, cv2.IMREAD_GRAYSCALE)
    return lr, hr


def draw(rng: np.random.Generator) -> Degradation:
    """Draw a random degradation for training: half are clean; all kernels, noise and JPEG of varying strength."""
    kernel = REDUCTIONS[int(rng.choice(len(REDUCTIONS), p=(0.3, 0.3, 0.1, 0.12, 0.12, 0.06)))]
    d = Degradation(kernel=kernel, blur=float(rng.uniform(0.5, 1.5)) if rng.random() < 0.15 else 0.0)
    if rng.random() < 0.25:
        d = replace(d, noise=float(rng.uniform(0, 12)))
    if rng.random() < 0.3:
        d = replace(d, jpeg=int(rng.integers(30, 96)))
    if rng.random() < 0.15:
        low = float(rng.uniform(0, 0.3))
        d = replace(d, window=(low, low + float(rng.uniform(0.5, 0.7))))
    if rng.random() < 0.15:
        d = replace(d, gamma=float(np.exp(rng.uniform(-0.4, 0.4))))
    return replace(d, invert=bool(rng.random() < 0.08), turns=int(rng.integers(1, 4)) if rng.random() < 0.08 else 0)
