"""The whole method around any three networks: image ⇒ condition ⇒ denoising loop ⇒ samples ⇒ result. NumPy only.

The server runs it with networks that are Triton models, the exporter and the benchmarks with onnxruntime sessions, and
``pipeline.eager`` with PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.images import (
    Image,
    downscale,
    fold,
    from_network,
    pad_to_multiple,
    project,
    to_network,
    upsample,
)
from pipeline.sampler import ETA, Leap, Seed, image_noise, rows, sample, trajectory
from pipeline.schedule import make_schedule
from pipeline.spec import MAX_BATCH, MAX_BATCH_PIXELS, SCALE, DiffusionSpec, Output, Preset, SamplerName, Start

Array = NDArray[np.float32]
Z = TypeVar("Z", bound=Any)

SMOOTHING = 2.0
"""Standard deviation, in pixels, of the Gaussian that averages the samples' variance."""
FLOOR = np.float32(0.0002)
"""The least doubt, in [0, 1] of gray: keeps the band open where all samples agree."""

Generate = Callable[[Array, Sequence[Seed]], Array]
"""LR images [B, C, h, w] in [-1, 1] and a seed for each ⇒ one sample of each, [B, C, 4h, 4w] in about [-1, 1]; see also
``Whole``."""


@dataclass(frozen=True)
class Networks:
    """The three networks on float32 arrays, as in the models' interfaces; ``lr`` is for those that see it."""

    encode: Callable[[Array, Array], Array]
    """(image [B, C, H, W], lr [B, C, H/4, W/4]) ⇒ latent [B, 4, H/8, W/8]"""
    denoise: Callable[[Array, Array], Array]
    """(x [B, 8, h, w], t [B, 1]) ⇒ ε, v or z_0 [B, 4, h, w]"""
    decode: Callable[[Array, Array], Array]
    """(latent [B, 4, h, w], lr [B, C, 2h, 2w]) ⇒ image [B, C, 8h, 8w]"""
    fused: Callable[..., Array] | None = None
    """``spec.fused_model`` by the names of its inputs, where it is there: fewer calls for the same result"""


@dataclass(frozen=True)
class Result:
    """What is known of one upscaled image."""

    upscaled: Image
    """[4H, 4W] in [0, 1]"""
    spread: Image | None
    """[4H, 4W], half the width of the band around the samples' mean that holds nine of ten HR pixels; None for one
    sample, which has no scatter."""
    lr_error: float
    """max │LR - downscale(upscaled)│, in [0, 1]"""


def network_lr(images: Sequence[Image], preset: Preset) -> Array:
    """LR images of one shape ⇒ padded by reflection to the preset's multiple, [B, C, H', W'] in [-1, 1]."""
    return np.stack([to_network(pad_to_multiple(image, preset.lr_multiple), preset.data.channels) for image in images])


def upsample_all(lr: Array) -> Array:
    """Bicubic ×4 of [B, C, h, w] whose channels are alike."""
    return np.stack([np.repeat(upsample(image[0])[None], len(image), axis=0) for image in lr])


def condition(lr: Array, preset: Preset, encode: Callable[[Array, Array], Array]) -> Array:
    """What the U-Net sees of LR images: their upsampling's latent, or their pixels folded to a latent's size."""
    if preset.condition == "lr":
        return fold(lr, preset.vae.factor // SCALE)
    return encode(upsample_all(lr), lr)


def draw_latents(
    denoise: Callable[[Z, int], Z],
    noise: Callable[[], Z],
    z_lr: Z,
    diffusion: DiffusionSpec,
    steps: int | None,
    sampler: SamplerName | None,
    start: Start | None,
    leap: Leap[Z] | None = None,
) -> Z:
    """``pipeline.sampler.sample`` with the preset's choice for what is None, on arrays and tensors alike."""
    sampler = sampler or diffusion.sampler
    return sample(
        denoise,
        make_schedule(diffusion),
        noise,
        steps=diffusion.default_steps(sampler) if steps is None else steps,
        eta=ETA[sampler],
        prediction=diffusion.prediction,
        z_lr=z_lr if (start or diffusion.start) == "lr" else None,
        leap=leap,
    )


def generator(
    networks: Networks,
    preset: Preset,
    *,
    steps: int | None = None,
    sampler: SamplerName | None = None,
    start: Start | None = None,
    faithful: bool | None = None,
) -> Generate:
    """The denoising loop around networks on arrays, in as few calls as they allow.

    Args:
        networks: encoder, denoiser, decoder.
        preset: the schedule, and what is not given below.
        steps: denoising steps, 1 … T.
        sampler: "ddpm" or "ddim".
        start: "lr", the noised LR latent, or "noise".
        faithful: whether the images are wanted faithful to their LR images, as in ``upscale``, which makes them so if
            these are not.
    """
    diffusion, fused = preset.diffusion, networks.fused
    wanted = (diffusion.ddim_steps if steps is None else steps, sampler or diffusion.sampler, start or diffusion.start)
    usual = wanted == (diffusion.ddim_steps, "ddim", "noise")
    if fused and preset.fused == "superres_onnx" and usual and (preset.faithful if faithful is None else faithful):
        return Whole(fused, preset)

    def generate(lr: Array, seeds: Sequence[Seed]) -> Array:
        c = condition(lr, preset, networks.encode)
        latent = (preset.vae.latent_channels, *c.shape[2:])
        x = np.concatenate([np.empty((len(lr), *latent), np.float32), c], axis=1)
        t = np.empty((len(lr), 1), np.float32)

        def denoise(z_t: Array, time: int) -> Array:
            x[:, : z_t.shape[1]] = z_t
            t[:] = time
            return networks.denoise(x, t)

        def leap(z: Array, coefficients: Array, noise: list[Array]) -> Array:
            assert fused is not None
            return fused(z=z, condition=c, coefficients=repeated(coefficients, len(z)), noise=np.stack(noise, axis=1))

        z_0 = draw_latents(
            *(denoise, image_noise(seeds, latent), c, diffusion, steps, sampler, start),
            leap=leap if fused and preset.fused == "denoise" else None,
        )
        return networks.decode(z_0, lr)

    return generate


def repeated(coefficients: Array, batch: int) -> Array:
    """The same for every image of a batch, in an array of its own."""
    return np.repeat(coefficients[None], batch, axis=0)


@cache
def usual_rows(diffusion: DiffusionSpec) -> Array:
    """The coefficients of the preset's own steps, [steps, 4]."""
    return rows(trajectory(make_schedule(diffusion), diffusion.ddim_steps, ETA["ddim"], diffusion.prediction))


@dataclass(frozen=True)
class Whole:
    """A ``Generate`` for the preset's own options, in one call; its images [B, 4H, 4W] are finished, and faithful."""

    fused: Callable[..., Array]
    preset: Preset

    def __call__(self, lr: Array, seeds: Sequence[Seed]) -> Array:
        diffusion, shrink = self.preset.diffusion, self.preset.vae.factor // SCALE
        noise = image_noise(seeds, (self.preset.vae.latent_channels, lr.shape[2] // shrink, lr.shape[3] // shrink))()
        image = (lr[:, 0] + 1) / 2
        return self.fused(image=image, noise=noise, coefficients=repeated(usual_rows(diffusion), len(lr)))


def crop(upscaled: Array, image: Image) -> Array:
    """[..., H', W'] ⇒ [..., 4H, 4W], without the padding of ``image``, [H, W]."""
    height, width = (side * SCALE for side in image.shape)
    return upscaled[..., :height, :width]


def finish(decoded: Array, image: Image, faithful: bool) -> Image:
    """A decoder's output [C, H', W'] ⇒ [4H, 4W] in [0, 1], without the padding; faithful to ``image`` if asked for."""
    gray = from_network(crop(decoded, image))
    return project(gray, image) if faithful else np.clip(gray, 0.0, 1.0)


def doubt(drawn: Sequence[Image]) -> Image:
    """[4H, 4W], how far the samples of an image deviate from each other around each pixel.

    The variance is averaged over a few pixels around: a few samples tell it badly pixel by pixel, and where projected
    ones may differ follows the grid of ``downscale``.
    """
    variance = cv2.GaussianBlur(np.var(drawn, axis=0, ddof=1, dtype=np.float32), (0, 0), SMOOTHING)
    return np.sqrt(variance) + FLOOR


def combine(drawn: Sequence[Image], image: Image, preset: Preset, output: Output) -> Result:
    """The samples of one image ⇒ its result: the first or their mean, with the calibrated spread."""
    upscaled = drawn[0] if output == "sample" else np.mean(drawn, axis=0)
    spread = np.float32(preset.band.scale(len(drawn))) * doubt(drawn) if len(drawn) > 1 else None
    return Result(upscaled, spread, float(np.abs(image - downscale(upscaled).clip(0.0, 1.0)).max()))


def draw_samples(
    images: Sequence[Image], seeds: Sequence[int], generate: Generate, preset: Preset, samples: int, faithful: bool
) -> Iterator[list[Image]]:
    """Yield every image's samples, [4H, 4W] in [0, 1], for images of one shape.

    The first sample of an image is the same however many are drawn. Those of an image that is yielded are not kept.
    """
    lr = network_lr(images, preset)
    jobs: list[tuple[int, Seed]] = [
        (i, seed if k == 0 else (seed, k)) for i, seed in enumerate(seeds) for k in range(samples)
    ]
    size = min(MAX_BATCH, max(1, MAX_BATCH_PIXELS // lr[0, 0].size))
    finished = isinstance(generate, Whole)
    drawn: list[Image] = []
    for chunk in (jobs[first : first + size] for first in range(0, len(jobs), size)):
        rows, chunk_seeds = zip(*chunk, strict=True)
        for i, decoded in zip(rows, generate(lr[list(rows)], chunk_seeds), strict=True):
            drawn.append(crop(decoded, images[i]) if finished else finish(decoded, images[i], faithful))
            if len(drawn) == samples:
                yield drawn
                drawn = []


def upscale(
    images: Sequence[Image],
    seeds: Sequence[int],
    generate: Generate,
    preset: Preset,
    *,
    samples: int = 1,
    output: Output = "sample",
    faithful: bool | None = None,
) -> list[Result]:
    """Upscale images of one shape together.

    Args:
        images: float32 [H, W] in [0, 1], all of one shape.
        seeds: one an image.
        generate: draws samples, see ``generator``.
        preset: the system.
        samples: how many to draw of each image.
        output: "sample", the first, or "mean".
        faithful: whether results are made to downscale to the images; None: the preset's choice.

    Raises:
        ValueError: ``generate``'s options are out of range, or it was made for faithful images and these must not be.
    """
    faithful = preset.faithful if faithful is None else faithful
    if isinstance(generate, Whole) and not faithful:
        raise ValueError("'faithful' is false, but the generator was made for faithful images: give both the same")
    drawn = draw_samples(images, seeds, generate, preset, samples, faithful)
    return [combine(of_one, image, preset, output) for of_one, image in zip(drawn, images, strict=True)]
