"""The complete method for any networks: image ⇒ condition ⇒ denoising loop ⇒ samples ⇒ result. NumPy only.

The networks are Triton models in the server, onnxruntime sessions in the exporter and the benchmarks, and PyTorch
modules in ``pipeline.networks.eager``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.method.images import Image, fold, pad_to_multiple, to_network, upsample
from pipeline.method.options import Options
from pipeline.method.presentation import upright
from pipeline.method.reduction import History, faithful_to, lr_error, read_history
from pipeline.method.sampled import Generate, Sampled, as_sampled
from pipeline.method.sampler import ETA, Seed, StepMany, Watch, advance, image_noise, rows, sample, step, trajectory
from pipeline.method.schedule import make_schedule
from pipeline.models import NetworkModels
from pipeline.presets import DiffusionSpec, Preset
from pipeline.spec import MAX_BATCH, MAX_BATCH_PIXELS, NOISY, SCALE, Output, SamplerName, Start

Array = NDArray[np.float32]
Z = TypeVar("Z", bound=Any)

SMOOTHING = 2.0
"""Standard deviation, in pixels, of the Gaussian smoothing of the samples' variance."""
FLOOR = np.float32(0.0002)
"""Minimum doubt, in [0, 1] of gray: keeps the band open where all samples agree."""


@dataclass(frozen=True)
class Networks:
    """The networks as functions of float32 arrays; ``lr`` is used only by networks that take the LR image."""

    encode: Callable[[Array, Array], Array]
    """(image [B, C, H, W], lr [B, C, H/4, W/4]) ⇒ latent [B, 4, H/8, W/8]."""
    denoise: Callable[[Array, Array], Array]
    """(x [B, 8, h, w], t [B, 1]) ⇒ ε or v [B, 4, h, w]."""
    decode: Callable[[Array, Array], tuple[Array, ...]]
    """(latent [B, 4, h, w], lr [B, C, 2h, 2w]) ⇒ image [B, C, 8h, 8w] and, if estimated, doubt [B, 8h, 8w]."""
    restore: Callable[[Array], tuple[Array, ...]] | None = None
    """lr [B, C, h, w] ⇒ (restored [B, C, h, w], history [B, ESTIMATES]); None without a restorer."""
    fused: Callable[..., tuple[Array, ...]] | None = None
    """``pipeline.models.fused_model`` by input names, if available: same result with fewer calls."""


Call = Callable[..., tuple[Array, ...]]
"""A model call: inputs by name ⇒ outputs; unknown inputs are ignored."""


def networks_of(models: NetworkModels, calls: Mapping[str, Call]) -> Networks:
    """Return the networks from model calls by model name."""
    unet, encoder, decoder = (calls[model.name] for model in (models.denoiser, models.encoder, models.decoder))
    restorer = None if models.restorer is None else calls[models.restorer.name]
    return Networks(
        encode=lambda image, lr: encoder(image=image, lr=lr)[0],
        denoise=lambda x, t: unet(x=x, t=t)[0],
        decode=lambda latent, lr: decoder(latent=latent, lr=lr),
        restore=restorer and (lambda lr: restorer(lr=lr)),
        fused=calls.get(models.fused.name),
    )


@dataclass(frozen=True)
class Result:
    """An upscaled image with its error estimates."""

    upscaled: Image
    """[4H, 4W] in [0, 1]."""
    spread: Image | None
    """[4H, 4W], half-width of the band around the result that contains 90 % of HR pixels; None if not available: for a
    single sample, unless the preset's networks estimate their doubt."""
    lr_error: float
    """max │LR - reduced(upscaled)│, in [0, 1], with the LR image's reduction."""
    history: History
    """History of the LR image."""
    expected_error: float | None
    """Expected mean absolute error, in [0, 1]; None if not available."""


def padded(images: Sequence[Image], preset: Preset) -> Array:
    """Pad LR images of one shape by reflection to the preset's multiple; return [B, H', W']."""
    return np.stack([pad_to_multiple(image, preset.lr_multiple) for image in images])


def network_lr(images: Sequence[Image], preset: Preset) -> Array:
    """Pad LR images of one shape and convert them for the networks; return [B, C, H', W'] in [-1, 1]."""
    return to_network(padded(images, preset), preset.data.channels)


def upsample_all(lr: Array) -> Array:
    """Upsample [B, C, h, w] with identical channels ×4 bicubically."""
    return np.stack([np.repeat(upsample(image[0])[None], len(image), axis=0) for image in lr])


def condition(lr: Array, preset: Preset, encode: Callable[[Array, Array], Array]) -> Array:
    """Return the U-Net's condition: the latent of the upsampled LR images, or their pixels folded to its size."""
    if preset.condition == "lr":
        return fold(lr, preset.vae.factor // SCALE)
    return encode(upsample_all(lr), lr)


def draw_latents(
    denoise: Callable[[Z, int], Z],
    noise: Callable[[], Z],
    z_lr: Z,
    diffusion: DiffusionSpec,
    steps: int,
    sampler: SamplerName,
    start: Start,
    step_many: StepMany[Z] | None = None,
    watch: Watch[Z] | None = None,
) -> Z:
    """Call ``pipeline.method.sampler.sample`` with a preset's diffusion; arrays or tensors."""
    return sample(
        denoise,
        make_schedule(diffusion),
        noise,
        steps=steps,
        eta=ETA[sampler],
        prediction=diffusion.prediction,
        z_lr=z_lr if start == "lr" else None,
        step_many=step_many,
        watch=watch,
    )


Progress = Callable[[int, Callable[[], Array]], None]
"""(steps just taken, function that returns the images as they are expected to become, [B, 4H, 4W])."""


def generator(
    networks: Networks, preset: Preset, options: Options | None = None, progress: Progress | None = None
) -> Generate:
    """Return the denoising loop of networks on arrays, using as few calls as possible.

    Args:
        networks: the preset's networks.
        preset: the system.
        options: steps, sampler and start are used. None: the preset's defaults.
        progress: called between calls of the denoiser.
    """
    options = options or Options.of(preset)
    diffusion, fused = preset.diffusion, networks.fused
    wanted = (options.steps, options.sampler, options.start)
    if fused and preset.fused == "superres_onnx" and wanted == (diffusion.ddim_steps, "ddim", "noise"):
        return fused_generator(fused, preset)

    def generate(images: Array, seeds: Sequence[Seed]) -> Sampled:
        lr = to_network(images, preset.data.channels)
        restored, history = (lr, None) if networks.restore is None else networks.restore(lr)
        c = condition(restored, preset, networks.encode)
        latent = (preset.vae.latent_channels, *c.shape[2:])
        x = np.concatenate([np.empty((len(lr), *latent), np.float32), c], axis=1)
        t = np.empty((len(lr), 1), np.float32)

        def denoise(z_t: Array, time: int) -> Array:
            x[:, : z_t.shape[1]] = z_t
            t[:] = time
            return networks.denoise(x, t)

        def step_many(z: Array, coefficients: Array, noise: list[Array]) -> Array:
            assert fused is not None
            rows, noises = repeat_rows(coefficients, len(z)), np.stack(noise, axis=1)
            return fused(z=z, condition=c, coefficients=rows, noise=noises)[0]

        def watch(count: int, z_t: Array, time: int) -> None:
            assert progress is not None
            last = step(make_schedule(diffusion), time, None, 0.0, diffusion.prediction)
            progress(
                count, lambda: as_sampled(networks.decode(advance(z_t, last, denoise(z_t, time)), lr), None).images
            )

        z_0 = draw_latents(
            *(denoise, image_noise(seeds, latent), c, diffusion, *wanted),
            step_many=step_many if fused and preset.fused == "denoise" else None,
            watch=watch if progress else None,
        )
        return as_sampled(networks.decode(z_0, lr), history)

    return generate


def repeat_rows(coefficients: Array, batch: int) -> Array:
    """Repeat the coefficients for every image of a batch."""
    return np.repeat(coefficients[None], batch, axis=0)


@cache
def default_rows(diffusion: DiffusionSpec) -> Array:
    """Return the coefficients of the default steps, [steps, 4]."""
    return rows(trajectory(make_schedule(diffusion), diffusion.ddim_steps, ETA["ddim"], diffusion.prediction))


def fused_generator(fused: Callable[..., tuple[Array, ...]], preset: Preset) -> Generate:
    """Return a generator that upscales with default options in one call."""
    diffusion, shrink = preset.diffusion, preset.vae.factor // SCALE

    def generate(images: Array, seeds: Sequence[Seed]) -> Sampled:
        batch, height, width = images.shape
        noise = image_noise(seeds, (preset.vae.latent_channels, height // shrink, width // shrink))()
        return Sampled(*fused(image=images, noise=noise, coefficients=repeat_rows(default_rows(diffusion), batch)))

    return generate


def crop(upscaled: Array, image: Image) -> Array:
    """Crop [..., H', W'] to [..., 4H, 4W], removing the padding of ``image`` [H, W]."""
    height, width = (side * SCALE for side in image.shape)
    return upscaled[..., :height, :width]


def scatter(drawn: Sequence[Image]) -> Image:
    """Return the local standard deviation of an image's samples, [4H, 4W].

    The variance is smoothed over neighbouring pixels: few samples estimate it poorly per pixel, and for projected
    samples it follows the reduction's grid.
    """
    variance = cv2.GaussianBlur(np.var(drawn, axis=0, ddof=1, dtype=np.float32), (0, 0), SMOOTHING)
    return np.sqrt(variance) + FLOOR


def mean(arrays: Sequence[Image]) -> Image:
    """Return the mean of arrays of one shape; a single array is returned as is."""
    return arrays[0] if len(arrays) == 1 else np.mean(arrays, axis=0)


@dataclass(frozen=True)
class Samples:
    """The samples of one image."""

    images: list[Image]
    """[4H, 4W] each, in [0, 1]."""
    history: History
    network_doubt: Image | None
    """[4H, 4W], mean of the samples' doubts; None if the networks do not estimate it."""

    def doubt(self) -> Image | None:
        """Return the networks' doubt, or else the samples' scatter, [4H, 4W]; None for a single sample."""
        if self.network_doubt is not None:
            return self.network_doubt
        return scatter(self.images) if len(self.images) > 1 else None


def combine(samples: Samples, image: Image, preset: Preset, output: Output, pixel_mm: float | None = None) -> Result:
    """Combine the samples of an image: the first or their mean, with the calibrated spread."""
    images, band = samples.images, preset.band
    noisy, unusual = samples.history.noise > NOISY, preset.is_unusual_spacing(pixel_mm)
    wider = np.float32((band.noisy if noisy else 1.0) * (band.strange if unusual else 1.0))
    upscaled = images[0] if output == "sample" else mean(images)
    doubt, scale = samples.doubt(), band.scale(len(images))
    spread = None if doubt is None or scale is None else np.float32(scale) * wider * doubt
    expected = (
        None
        if samples.network_doubt is None or band.error is None
        else band.error * float(wider * samples.network_doubt.mean())
    )
    return Result(upscaled, spread, lr_error(upscaled, image, samples.history), samples.history, expected)


def images_per_call(pixels: int) -> int:
    """Return how many images of ``pixels`` LR pixels the networks get at once."""
    return min(MAX_BATCH, max(1, MAX_BATCH_PIXELS // pixels))


def draw_samples(
    images: Sequence[Image],
    seeds: Sequence[int],
    generate: Generate,
    preset: Preset,
    options: Options,
) -> Iterator[Samples]:
    """Yield the samples of each image, for images of one shape.

    The first sample of an image does not depend on the number drawn. Yielded samples are not kept.
    """
    lr, generate = padded(images, preset), upright(generate)
    jobs: list[tuple[int, Seed]] = [
        (i, seed if k == 0 else (seed, k)) for i, seed in enumerate(seeds) for k in range(options.samples)
    ]
    size = images_per_call(lr[0].size)
    of_one: list[Image] = []
    doubts: list[Array] = []
    for chunk in (jobs[first : first + size] for first in range(0, len(jobs), size)):
        which, chunk_seeds = zip(*chunk, strict=True)
        found = generate(lr[list(which)], chunk_seeds)
        for row, i in enumerate(which):
            estimates = None if found.estimates is None else found.estimates[row]
            history = read_history(estimates, options.degradation, images[i].size)
            raw = crop(found.images[row], images[i])
            of_one.append(faithful_to(images[i], raw, history) if options.faithful else np.clip(raw, 0.0, 1.0))
            if found.doubt is not None:
                doubts.append(crop(found.doubt[row], images[i]))
            if len(of_one) == options.samples:
                yield Samples(of_one, history, mean(doubts) if doubts else None)
                of_one, doubts = [], []


def upscale(
    images: Sequence[Image],
    seeds: Sequence[int],
    generate: Generate,
    preset: Preset,
    options: Options | None = None,
    *,
    pixel_mm: Sequence[float | None] | None = None,
) -> list[Result]:
    """Upscale images of one shape together.

    Args:
        images: float32 [H, W] in [0, 1], all of one shape.
        seeds: one per image.
        generate: draws samples, see ``generator``.
        preset: the system.
        options: samples, output, faithful and degradation are used. None: the preset's defaults.
        pixel_mm: each image's pixel spacing, in mm, if known.
    """
    options = options or Options.of(preset)
    all_samples = draw_samples(images, seeds, generate, preset, options)
    sizes = [None] * len(images) if pixel_mm is None else pixel_mm
    return [
        combine(of_one, i, preset, options.output, mm) for of_one, i, mm in zip(all_samples, images, sizes, strict=True)
    ]
