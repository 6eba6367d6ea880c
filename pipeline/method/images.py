"""Array operations: degradation (HR → LR), bicubic upsampling, padding, conversions, PSNR, SSIM. NumPy and OpenCV."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.spec import SCALE

Image = NDArray[np.float32]
"""Gray image, float32 [H, W] in [0, 1]."""


def resize_cubic(image: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    """Resize by OpenCV ``INTER_CUBIC``, as in the paper; any OpenCV dtype, integers are rounded and saturated."""
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC)


def crop_square(image: NDArray[Any]) -> NDArray[Any]:
    """Crop to the central square of the shorter side."""
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return image[top : top + side, left : left + side]


def downscale(image: NDArray[Any], factor: int = SCALE) -> NDArray[Any]:
    """Reduce an HR image by the paper's protocol; sides are cropped to a multiple of ``factor``."""
    height, width = image.shape[0] // factor, image.shape[1] // factor
    return resize_cubic(image[: height * factor, : width * factor], height, width)


def downscale_by_area(image: NDArray[Any], factor: int) -> NDArray[Any]:
    """Average every ``factor``×``factor`` pixels; sides are cropped to a multiple of ``factor``."""
    height, width = image.shape[0] // factor, image.shape[1] // factor
    return cv2.resize(image[: height * factor, : width * factor], (width, height), interpolation=cv2.INTER_AREA)


def fold(images: NDArray[np.float32], n: int) -> NDArray[np.float32]:
    """Fold space to depth, [B, C, H, W] ⇒ [B, C·n², H/n, W/n], like torch's ``pixel_unshuffle``."""
    b, c, h, w = images.shape
    return images.reshape(b, c, h // n, n, w // n, n).transpose(0, 1, 3, 5, 2, 4).reshape(b, c * n * n, h // n, w // n)


def upsample(image: Image) -> Image:
    """Upsample ×4 bicubically without clipping, like ``F.interpolate(mode="bicubic", align_corners=False)``."""
    return resize_cubic(image, image.shape[0] * SCALE, image.shape[1] * SCALE)


def pad_to_multiple(image: Image, multiple: int) -> Image:
    """Pad bottom and right by reflection to a multiple of ``multiple``."""
    bottom, right = (-side % multiple for side in image.shape)
    return np.pad(image, ((0, bottom), (0, right)), mode="reflect") if bottom or right else image


def to_network(images: NDArray[np.float32], channels: int) -> NDArray[np.float32]:
    """Convert [..., H, W] in [0, 1] to [..., channels, H, W] in [-1, 1]."""
    return np.repeat((images * 2.0 - 1.0)[..., None, :, :].astype(np.float32), channels, axis=-3)


def from_network(image: NDArray[np.float32]) -> Image:
    """Convert [C, H, W] in [-1, 1] to [H, W] in [0, 1], the mean of the channels, without clipping."""
    return ((image.mean(axis=0) + 1.0) / 2.0).astype(np.float32)


def to_integers(image: Image, bits: int) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Quantize [0, 1] to 0 … 2^bits-1, for 8 or 16 bits."""
    levels = np.rint(np.clip(image, 0.0, 1.0) * (2**bits - 1))
    return levels.astype(np.uint8) if bits == 8 else levels.astype(np.uint16)


def from_integers(image: NDArray[np.uint8] | NDArray[np.uint16]) -> Image:
    """Convert uint8 0 … 255 or uint16 0 … 65535 to [0, 1]."""
    return (image / np.iinfo(image.dtype).max).astype(np.float32)


def psnr(image: Image, reference: Image) -> float:
    """Return the peak signal-to-noise ratio of the 8-bit images in dB; inf if they are equal."""
    error = to_integers(image, 8).astype(np.float64) - to_integers(reference, 8)
    mse = float(np.mean(error**2))
    return float("inf") if mse == 0.0 else float(10.0 * np.log10(255.0**2 / mse))


def ssim(image: Image, reference: Image) -> float:
    """Return the structural similarity (Wang et al. 2004) of the 8-bit images: 11×11 Gaussian window, σ = 1.5."""
    x, y = (to_integers(a, 8).astype(np.float64) for a in (image, reference))

    def blur(a: NDArray[np.float64]) -> NDArray[np.float64]:
        return cv2.GaussianBlur(a, (11, 11), 1.5)[5:-5, 5:-5]

    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    similarity = ((2 * mean_x * mean_y + c1) * (2 * covariance + c2)) / (
        (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
    )
    return float(similarity.mean())
