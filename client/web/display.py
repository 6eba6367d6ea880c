"""What the page shows of an image and its result: PNG pictures made when they are asked for."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from client.formats.dicom_display import Window
from client.pictures import OPAQUE, heat, hottest_of
from pipeline.method.images import Image, upsample

MAX_SHOWN = 4096
"""Maximum side of a picture on the page, in pixels: browsers on phones show no larger ones. Downloads are full-size."""
LEVELS = 2**16


@dataclass(frozen=True)
class Display:
    """An image before and after upscaling, and the uncertainty to lay over it, ready for display."""

    before: NDArray[np.uint16]
    """[4H, 4W] or smaller: upsampled by bicubic interpolation."""
    after: NDArray[np.uint16] | None
    """Of the same shape; None before upscaling."""
    doubt: bytes | None
    """A PNG in colour, transparent where the result is certain."""
    hottest: float
    """Uncertainty of the hottest colour, in [0, 1]."""

    def size(self) -> int:
        """Return its memory, in bytes."""
        return self.before.nbytes + (0 if self.after is None else self.after.nbytes) + len(self.doubt or b"")


def make_display(lr: Image, upscaled: Image | None = None, spread: Image | None = None) -> Display:
    """Make the pictures of an LR image [H, W] and its result [4H, 4W] with its spread, all in [0, 1]."""
    hottest = 0.0 if spread is None else hottest_of(spread)
    doubt = None if spread is None else overlay(fit(spread), hottest)
    return Display(levels(fit(upsample(lr))), None if upscaled is None else levels(fit(upscaled)), doubt, hottest)


def fit(image: Image) -> Image:
    """Reduce an image to ``MAX_SHOWN`` pixels per side."""
    share = MAX_SHOWN / max(image.shape)
    return image if share >= 1 else cv2.resize(image, None, fx=share, fy=share, interpolation=cv2.INTER_AREA)


def levels(image: Image) -> NDArray[np.uint16]:
    return (image * np.float32(LEVELS - 1) + np.float32(0.5)).clip(0, LEVELS - 1).astype(np.uint16)


def through_window(image: NDArray[np.uint16], center: float, width: float) -> bytes:
    """Return a PNG of an image through a window, whose center and width are in [0, 1] of gray."""
    table = 255 * Window(center, width, "LINEAR_EXACT")(np.linspace(0, 1, LEVELS))
    return png(np.rint(table).astype(np.uint8)[image])


def overlay(spread: Image, hottest: float) -> bytes:
    """Return a PNG of the uncertainty, in the colours of ``client.pictures.uncertainty_map``."""
    share = np.clip(spread / hottest, 0, 1).astype(np.float32)
    alpha = np.rint(255 * OPAQUE * share).astype(np.uint8)
    return png(np.dstack([heat(share)[..., ::-1], alpha]))


def png(pixels: NDArray[np.uint8]) -> bytes:
    """Encode quickly rather than densely: most pictures go to a browser on the same machine."""
    data: bytes = cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()
    return data
