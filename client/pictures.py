"""Labelled pictures of results."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage
from PIL import ImageDraw, ImageFont

from pipeline.method.images import Image, psnr, ssim, to_integers, upsample
from pipeline.spec import SCALE

CAUTION = "generated detail, not for diagnosis"
OPAQUE = 0.65
"""Opacity of the hottest colour."""


def labelled_row(panels: Sequence[tuple[str, str, Image]], caption: str = "") -> PILImage.Image:
    """Arrange panels of one size in a row, each under a title and a smaller second line, with a caption below."""
    height, width = panels[0][2].shape
    gap = max(4, width // 64)
    sizes = [max(11, width // n) for n in (14, 18)]
    large, small = (ImageFont.load_default(size) for size in sizes)
    head, foot = int(sizes[0] + 1.9 * sizes[1]), int(1.8 * sizes[1]) if caption else 0
    picture = PILImage.new("L", (len(panels) * (width + gap) + gap, head + height + gap + foot), 255)
    draw = ImageDraw.Draw(picture)
    for i, (title, line, image) in enumerate(panels):
        left = gap + i * (width + gap)
        draw.text((left, 0.2 * sizes[1]), title, font=large, fill=0)
        draw.text((left, sizes[0] + 0.5 * sizes[1]), line, font=small, fill=80)
        picture.paste(PILImage.fromarray(to_integers(image, 8)), (left, head))
    draw.text((gap, head + height + 0.5 * sizes[1]), caption, font=small, fill=80)
    return picture


def stack(pictures: Sequence[PILImage.Image]) -> PILImage.Image:
    """Stack pictures vertically."""
    size = max(picture.width for picture in pictures), sum(picture.height for picture in pictures)
    stacked = PILImage.new("L", size, 255)
    top = 0
    for picture in pictures:
        stacked.paste(picture, (0, top))
        top += picture.height
    return stacked


def enlarge(image: Image) -> Image:
    """Enlarge ×4, each pixel becoming a square."""
    return np.kron(image, np.ones((SCALE, SCALE), np.float32))


def comparison(lr: Image, upscaled: Image, hr: Image | None = None) -> PILImage.Image:
    """Draw LR | bicubic | upscaled | HR with PSNR and SSIM against HR; without HR, only the first three.

    ``lr`` is [H, W], ``upscaled`` and ``hr`` are [4H, 4W], all in [0, 1].
    """
    height, width = lr.shape
    panels = [
        (f"LR {width} x {height}", enlarge(lr)),
        ("bicubic x4", np.clip(upsample(lr), 0, 1)),
        ("upscaled x4", upscaled),
    ]
    if hr is None:
        return labelled_row([(title, "", image) for title, image in panels], CAUTION)
    rated = [(title, f"{psnr(image, hr):.2f} dB   SSIM {ssim(image, hr):.4f}", image) for title, image in panels]
    return labelled_row([*rated, (f"HR {hr.shape[1]} x {hr.shape[0]}", "reference", hr)], CAUTION)


def heat(values: Image) -> NDArray[np.uint8]:
    """Map [H, W] in [0, 1] to RGB [H, W, 3], from black through red to light yellow."""
    rgb: NDArray[np.uint8] = cv2.applyColorMap(to_integers(values, 8), cv2.COLORMAP_INFERNO)[..., ::-1]
    return rgb


def hottest_of(spread: Image) -> float:
    """Return the spread that gets the hottest colour: almost the largest, so that single pixels do not dim the rest."""
    return max(float(np.quantile(spread, 0.999)), 1e-6)


def uncertainty_map(image: Image, spread: Image) -> PILImage.Image:
    """Draw an image under a heat map of its spread, with a colour bar in gray levels of 255.

    Args:
        image: [H, W] in [0, 1].
        spread: [H, W] in [0, 1], half-width of the band that contains 90 % of true pixels.
    """
    height, width = image.shape
    hottest = hottest_of(spread)
    share = np.clip(spread / hottest, 0.0, 1.0).astype(np.float32)
    cover = OPAQUE * share[..., None]
    overlay = (1 - cover) * 255.0 * image[..., None] + cover * heat(share)
    size = max(11, width // 18)
    font, gap, bar = ImageFont.load_default(size), max(4, width // 64), max(8, width // 20)
    head, foot = int(1.6 * size), int(1.8 * size)
    picture = PILImage.new("RGB", (width + bar + 4 * gap + 4 * size, head + height + gap + foot), "white")
    picture.paste(PILImage.fromarray(overlay.round().clip(0, 255).astype(np.uint8)), (gap, head))
    ramp = np.repeat(np.linspace(1, 0, height, dtype=np.float32)[:, None], bar, axis=1)
    left = width + 2 * gap
    picture.paste(PILImage.fromarray(heat(ramp)), (left, head))
    draw = ImageDraw.Draw(picture)
    draw.text((gap, 0.2 * size), "half width of the 90 % band, of 255 levels", font=font, fill="black")
    for part in range(5):
        y = head + (height - 1) * (1 - part / 4)
        draw.line((left + bar, y, left + bar + gap, y), fill="black")
        draw.text((left + bar + 2 * gap, y), f"{255 * hottest * part / 4:.1f}", font=font, fill="black", anchor="lm")
    draw.text((gap, head + height + 0.5 * size), CAUTION, font=font, fill="dimgray")
    return picture
