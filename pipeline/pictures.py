"""Labelled pictures of results, for people to look at."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image as PILImage
from PIL import ImageDraw, ImageFont

from pipeline.images import Image, psnr, ssim, to_integers, upsample
from pipeline.spec import SCALE

CAUTION = "generated detail, not for diagnosis"


def labelled_row(panels: Sequence[tuple[str, str, Image]], caption: str = "") -> PILImage.Image:
    """Panels of one size beside each other, each under its title and a smaller second line, and a caption below."""
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
    """Pictures below each other."""
    size = max(picture.width for picture in pictures), sum(picture.height for picture in pictures)
    stacked = PILImage.new("L", size, 255)
    top = 0
    for picture in pictures:
        stacked.paste(picture, (0, top))
        top += picture.height
    return stacked


def enlarge(image: Image) -> Image:
    """×4, each pixel a square."""
    return np.kron(image, np.ones((SCALE, SCALE), np.float32))


def comparison(lr: Image, upscaled: Image, hr: Image | None = None, caption: str = CAUTION) -> PILImage.Image:
    """LR | bicubic | upscaled | HR, with PSNR and SSIM against HR; without HR only the first three.

    ``lr`` is [H, W], ``upscaled`` and ``hr`` are [4H, 4W], all in [0, 1].
    """
    height, width = lr.shape
    panels = [
        (f"LR {width} x {height}", enlarge(lr)),
        ("bicubic x4", np.clip(upsample(lr), 0, 1)),
        ("upscaled x4", upscaled),
    ]
    if hr is None:
        return labelled_row([(title, "", image) for title, image in panels], caption)
    rated = [(title, f"{psnr(image, hr):.2f} dB   SSIM {ssim(image, hr):.4f}", image) for title, image in panels]
    return labelled_row([*rated, (f"HR {hr.shape[1]} x {hr.shape[0]}", "reference", hr)], caption)
