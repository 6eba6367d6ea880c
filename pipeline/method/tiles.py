"""Upscale images too large for one call in tiles without seams. NumPy and OpenCV.

Everything that depends on the surroundings is shared by all tiles: the noise, the history and presentation, the
restored image and the latent. The decoder has no normalisation, so that a tile with a margin as wide as its reach is
decoded as part of the whole. The U-Net normalises by the statistics of its input: up to ``CONTEXT`` pixels, that is the
whole image; beyond, overlapping parts of that size, blended linearly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from pipeline.method.images import Image, downscale_by_area, pad_to_multiple, to_network
from pipeline.method.options import Options
from pipeline.method.presentation import presentations, rotate
from pipeline.method.reduction import History, faithful_to, lr_error, read_history
from pipeline.method.sampled import as_sampled
from pipeline.method.sampler import Seed, image_noise
from pipeline.method.upscale import Array, Networks, Result, Samples, combine, condition, draw_latents, mean
from pipeline.presets import Preset
from pipeline.spec import MAX_SIDE, PRESENTATIONS, SCALE

MARGIN = 48
"""Reach of restorer and decoder, in LR pixels, rounded up to the networks' multiple."""
SIDE = 320
"""Side of a tile with its margin, in LR pixels: all are alike, as runtimes prepare for every size that they meet."""
SEAM = 32
"""LR pixels over which a tile continues the doubt of its neighbours before it, as each also sees its own history."""
CONTEXT, OVERLAP = 1024, 256
"""Maximum side of the U-Net's input, and minimum overlap of two, in LR pixels."""


class Window(NamedTuple):
    """A tile of a canvas, in LR pixels, and the part of the canvas that is computed for it."""

    rows: slice
    columns: slice
    around_rows: slice
    around_columns: slice

    def crop(self, around: Array, scale: int = 1) -> Array:
        """Return the tile from an array [..., h, w] of what is around it."""
        top = scale * (self.rows.start - self.around_rows.start)
        left = scale * (self.columns.start - self.around_columns.start)
        height, width = scale * (self.rows.stop - self.rows.start), scale * (self.columns.stop - self.columns.start)
        return around[..., top : top + height, left : left + width]

    def around(self, canvas: Array) -> Array:
        return canvas[..., self.around_rows, self.around_columns]


def windows(height: int, width: int) -> list[Window]:
    """Divide a canvas into tiles, row by row."""

    def spans(n: int) -> list[tuple[slice, slice]]:
        core, found = SIDE - 2 * MARGIN, []
        for start in range(0, n, core):
            first = max(0, min(start - MARGIN, n - SIDE))
            found.append((slice(start, min(start + core, n)), slice(first, min(first + SIDE, n))))
        return found

    return [Window(r, c, ar, ac) for r, ar in spans(height) for c, ac in spans(width)]


def rotated(window: Window, turns: int, height: int, width: int) -> Window:
    """Return the window after ``turns`` counterclockwise quarter turns of its canvas [height, width]."""
    for _ in range(turns % 4):
        mirrored, around = (slice(width - s.stop, width - s.start) for s in (window.columns, window.around_columns))
        window = Window(mirrored, window.rows, around, window.around_rows)
        height, width = width, height
    return window


def starts(n: int, side: int, overlap: int, multiple: int) -> list[int]:
    """Return where parts of ``side`` start that cover n with at least about ``overlap``."""
    if n <= side:
        return [0]
    count = -(-(n - overlap) // (side - overlap))
    return [int(multiple * round(a / multiple)) for a in np.linspace(0, n - side, count)]


def blended(call: Callable[[Array, Array], Array], z: Array, c: Array, side: int, overlap: int, multiple: int) -> Array:
    """Call a network on overlapping parts of z and c [1, ·, h, w] and blend the results linearly."""
    height, width = z.shape[2:]
    if max(height, width) <= side:
        return call(z, c)
    total, weight = np.zeros_like(z), np.zeros(z.shape[2:], np.float32)
    for top in starts(height, side, overlap, multiple):
        for left in starts(width, side, overlap, multiple):
            part = np.s_[..., top : top + side, left : left + side]
            found = call(np.ascontiguousarray(z[part]), np.ascontiguousarray(c[part]))
            ramps = [np.minimum(overlap, np.minimum(np.arange(n) + 1, n - np.arange(n))) for n in found.shape[2:]]
            share = np.outer(*ramps).astype(np.float32)
            total[part] += share * found
            weight[part[1:]] += share
    return total / weight


class Doubts:
    """What tiles, row by row, say of those after them, within a seam: [h, w] in HR pixels."""

    def __init__(self, width: int) -> None:
        self.above = np.full((SCALE * SEAM, SCALE * width), np.nan, np.float32)
        self.left = np.empty((0, 0), np.float32)

    def joined(self, around: Array, window: Window) -> Array:
        """Return the doubt of a tile from that of what is around it, continuing its neighbours' doubt."""
        top = SCALE * (window.rows.start - window.around_rows.start)
        left = SCALE * (window.columns.start - window.around_columns.start)
        height, width = (
            SCALE * (window.rows.stop - window.rows.start),
            SCALE * (window.columns.stop - window.columns.start),
        )
        doubt = around[top:, left:].copy()
        ramp = (np.arange(SCALE * SEAM, dtype=np.float32) + 1) / (SCALE * SEAM + 1)
        if window.columns.start:
            join(doubt, self.left, ramp)
        columns = slice(SCALE * window.columns.start, SCALE * window.columns.stop)
        if window.rows.start:
            join(doubt[:, :width].T, self.above[:, columns].T, ramp)
        self.left = doubt[:, width : width + SCALE * SEAM]
        below = doubt[height : height + SCALE * SEAM, :width]
        self.above[: len(below), columns] = below
        return doubt[:height, :width]


def join(doubt: Array, before: Array, ramp: Array) -> None:
    """Let the first columns of ``doubt`` continue ``before``, in place."""
    height, width = (min(a, b) for a, b in zip(doubt.shape, before.shape, strict=True))
    part = doubt[:height, :width]
    part += (before[:height, :width] - part) * (1 - ramp[:width])


class Tile(NamedTuple):
    """A finished part of an upscaled image."""

    top: int
    left: int
    result: Result
    """Of the tile; positions and sizes are in HR pixels."""


def presentation(image: Image, networks: Networks, preset: Preset) -> tuple[int, bool]:
    """Return an image's presentation, one of ``PRESENTATIONS``, as its reduced copy shows it."""
    assert networks.restore is not None
    small = downscale_by_area(image, -(-max(image.shape) // MAX_SIDE))
    _, estimates = networks.restore(to_network(pad_to_multiple(small, preset.lr_multiple)[None], preset.data.channels))
    return PRESENTATIONS[int(presentations(estimates)[0])]


def restore(lr: Array, networks: Networks) -> tuple[Array, Array]:
    """Restore an LR canvas [1, C, h, w] in tiles; return it with the mean of their estimates, [ESTIMATES]."""
    assert networks.restore is not None
    canvas, estimates, pixels = np.empty_like(lr), [], []
    for window in windows(*lr.shape[2:]):
        restored, found = networks.restore(np.ascontiguousarray(window.around(lr)))
        canvas[..., window.rows, window.columns] = window.crop(restored)
        estimates.append(found[0])
        pixels.append(restored.size)
    return canvas, np.average(estimates, axis=0, weights=pixels).astype(np.float32)


def upscale_tiles(
    image: Image,
    seed: int,
    networks: Networks,
    preset: Preset,
    options: Options,
    pixel_mm: float | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> Iterator[Tile]:
    """Upscale an image of up to ``preset.max_side`` pixels per side; yield its tiles row by row.

    Args:
        image: float32 [H, W] in [0, 1].
        seed: of the noise.
        networks: of a preset with a restorer, whose U-Net sees the LR image.
        preset: the system.
        options: all are used.
        pixel_mm: pixel spacing, in mm, if known.
        progress: called with the number of steps just taken, after each call of the denoiser for the whole image.
    """
    turns, inverted = presentation(image, networks, preset)
    padded = pad_to_multiple(image, preset.lr_multiple)
    upright = rotate(1 - padded if inverted else padded, -turns)
    lr = to_network(upright[None], preset.data.channels)
    restored, estimates = restore(lr, networks)
    history = read_history(estimates, options.degradation, image.size)
    c = condition(restored, preset, networks.encode)
    shrink = preset.vae.factor // SCALE

    def denoise(z_t: Array, time: int) -> Array:
        def call(z: Array, c: Array) -> Array:
            return networks.denoise(np.concatenate([z, c], axis=1), np.full((1, 1), time, np.float32))

        predicted = blended(call, z_t, c, CONTEXT // shrink, OVERLAP // shrink, preset.unet.factor)
        progress(1)
        return predicted

    seeds: list[Seed] = [seed, *((seed, k) for k in range(1, options.samples))]
    latents = [
        draw_latents(
            *(denoise, image_noise([one], (preset.vae.latent_channels, *c.shape[2:])), c, preset.diffusion),
            *(options.steps, options.sampler, options.start),
        )
        for one in seeds
    ]
    shown, before = (turns, inverted), Doubts(padded.shape[1])
    for window in windows(*padded.shape):
        yield tile(image, padded, window, shown, lr, latents, history, networks, preset, options, pixel_mm, before)


def tile(
    image: Image,
    padded: Image,
    window: Window,
    shown: tuple[int, bool],
    lr: Array,
    latents: list[Array],
    history: History,
    networks: Networks,
    preset: Preset,
    options: Options,
    pixel_mm: float | None,
    before: Doubts,
) -> Tile:
    """Decode a tile of all samples and combine them; arguments as in ``upscale_tiles``.

    ``lr`` and ``latents`` are upright; ``shown`` is how ``image`` and ``padded`` are turned; ``before`` is updated.
    """
    turns, inverted = shown
    shrink = preset.vae.factor // SCALE
    turned = rotated(window, -turns, *padded.shape)
    small = [slice(s.start // shrink, s.stop // shrink) for s in (turned.around_rows, turned.around_columns)]
    seen = np.ascontiguousarray(turned.around(lr))
    target = np.ascontiguousarray(window.around(padded))
    images, doubts = [], []
    for latent in latents:
        found = as_sampled(networks.decode(np.ascontiguousarray(latent[..., small[0], small[1]]), seen), None)
        raw = rotate(1 - found.images[0] if inverted else found.images[0], turns)
        images.append(faithful_to(target, raw, history) if options.faithful else np.clip(raw, 0.0, 1.0))
        if found.doubt is not None:
            doubts.append(rotate(found.doubt[0], turns))
    upscaled = images[0] if options.output == "sample" else mean(images)
    error = lr_error(upscaled, target, history)
    doubt = before.joined(mean(doubts), window) if doubts else None
    # without what padding added
    rows, columns = (slice(s.start, min(s.stop, n)) for s, n in zip(window[:2], image.shape, strict=True))
    window = window._replace(rows=rows, columns=columns)
    core = Samples(
        [window.crop(drawn, SCALE) for drawn in images],
        history,
        None if doubt is None else doubt[: SCALE * (rows.stop - rows.start), : SCALE * (columns.stop - columns.start)],
    )
    result = combine(core, image[rows, columns], preset, options.output, pixel_mm)
    return Tile(SCALE * rows.start, SCALE * columns.start, replace(result, lr_error=error))
