"""The paper's data split, augmentation and results, and the augmentation of preset ``best``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SPLIT = (0.70, 0.20, 0.10)
"""Shares of the *patients* in training, validation and test."""


@dataclass(frozen=True)
class AugmentationSpec:
    """Augmentation of LR and HR alike, by default the paper's: ``share`` of samples, each operation with a probability.

    Every augmented sample is rotated by one of ``rotations``. The paper does not give the minimum size of a random
    resized crop: its side is uniform in ``smallest_crop`` … 1 times the image's.
    """

    share: float = 0.70
    horizontal_flip: float = 0.50
    rotations: tuple[int, ...] = (90, 180, 270)
    random_resized_crop: float = 0.80
    smallest_crop: float = 0.80
    cutout: float = 0.30
    cutout_side: float = 0.20


AUGMENTATION = {
    "paper": AugmentationSpec(),
    "best": AugmentationSpec(share=0.5, horizontal_flip=1.0, rotations=(0,), random_resized_crop=0.0, cutout=0.0),
}
"""Augmentation by preset."""


@dataclass(frozen=True)
class Reported:
    """A row of the paper's Tables 1 and 2."""

    dataset: Literal["nih", "iu"]
    method: str
    lpips: float
    psnr: float
    ssim: float
    seconds: float | None = None


REPORTED = (
    Reported("nih", "bicubic", lpips=0.3472, psnr=29.59, ssim=0.9176),
    Reported("nih", "PyTorch", lpips=0.1232, psnr=27.34, ssim=0.8647, seconds=7.02),
    Reported("nih", "TensorRT", lpips=0.1223, psnr=27.11, ssim=0.8501, seconds=1.49),
    Reported("iu", "bicubic", lpips=0.3444, psnr=28.36, ssim=0.9019),
    Reported("iu", "PyTorch", lpips=0.1285, psnr=26.74, ssim=0.8621, seconds=7.11),
    Reported("iu", "TensorRT", lpips=0.1290, psnr=27.01, ssim=0.8280, seconds=1.70),
)
