"""The whole method around any networks: image ⇒ condition ⇒ denoising loop ⇒ samples ⇒ result. NumPy only.

The server runs it with networks that are Triton models, the exporter and the benchmarks with onnxruntime sessions, and
``pipeline.networks.eager`` with PyTorch.
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
from pipeline.method.sampler import ETA, Seed, StepMany, image_noise, rows, sample, trajectory
from pipeline.method.schedule import make_schedule
from pipeline.models import NetworkModels
from pipeline.presets import DiffusionSpec, Preset
from pipeline.spec import MAX_BATCH, MAX_BATCH_PIXELS, NOISY, SCALE, Output, SamplerName, Start

Array = NDArray[np.float32]
Z = TypeVar("Z", bound=Any)

SMOOTHING = 2.0
"""Standard deviation, in pixels, of the Gaussian that averages the samples' variance."""
FLOOR = np.float32(0.0002)
"""The least doubt, in [0, 1] of gray: keeps the band open where all samples agree."""


@dataclass(frozen=True)
class Networks:
    """The networks on float32 arrays, as in the models' interfaces; ``lr`` is for those that see it."""

    encode: Callable[[Array, Array], Array]
    """(image [B, C, H, W], lr [B, C, H/4, W/4]) ⇒ latent [B, 4, H/8, W/8]"""
    denoise: Callable[[Array, Array], Array]
    """(x [B, 8, h, w], t [B, 1]) ⇒ ε, v or z_0 [B, 4, h, w]"""
    decode: Callable[[Array, Array], tuple[Array, ...]]
    """(latent [B, 4, h, w], lr [B, C, 2h, 2w]) ⇒ image [B, C, 8h, 8w]; of those that tell it, its doubt [B, 8h, 8w]"""
    restore: Callable[[Array], tuple[Array, Array]] | None = None
    """lr [B, C, h, w] ⇒ (restored [B, C, h, w], history [B, ESTIMATES]), where the preset has a restorer"""
    fused: Callable[..., tuple[Array, ...]] | None = None
    """``pipeline.models.fused_model`` by the names of its inputs, where it is there: fewer calls for the same result"""


Call = Callable[..., tuple[Array, ...]]
"""A model: its inputs by name ⇒ its outputs; arguments that it does not have are ignored."""


def networks_of(models: NetworkModels, calls: Mapping[str, Call]) -> Networks:
    """The networks as calls of models, which are given by the models' names."""
    unet, encoder, decoder = (calls[model.name] for model in (models.denoiser, models.encoder, models.decoder))
    restorer = None if models.restorer is None else calls[models.restorer.name]

    def restore(lr: Array) -> tuple[Array, Array]:
        assert restorer is not None
        restored, history = restorer(lr=lr)
        return restored, history

    return Networks(
        encode=lambda image, lr: encoder(image=image, lr=lr)[0],
        denoise=lambda x, t: unet(x=x, t=t)[0],
        decode=lambda latent, lr: decoder(latent=latent, lr=lr),
        restore=None if restorer is None else restore,
        fused=calls.get(models.fused.name),
    )


@dataclass(frozen=True)
class Result:
    """What is known of one upscaled image."""

    upscaled: Image
    """[4H, 4W] in [0, 1]"""
    spread: Image | None
    """[4H, 4W], half the width of the band around the result that holds nine of ten HR pixels; None where nothing tells
    it: of one sample, unless the preset's networks tell their doubt."""
    lr_error: float
    """max │LR - reduced(upscaled)│, in [0, 1], as the LR image was reduced"""
    history: History
    """how the LR image was made"""
    expected_error: float | None
    """mean absolute error to be expected, in [0, 1]; None where nothing tells it"""


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
    steps: int,
    sampler: SamplerName,
    start: Start,
    step_many: StepMany[Z] | None = None,
) -> Z:
    """``pipeline.method.sampler.sample`` of a preset's diffusion, on arrays and tensors alike."""
    return sample(
        denoise,
        make_schedule(diffusion),
        noise,
        steps=steps,
        eta=ETA[sampler],
        prediction=diffusion.prediction,
        z_lr=z_lr if start == "lr" else None,
        step_many=step_many,
    )


def generator(networks: Networks, preset: Preset, options: Options | None = None) -> Generate:
    """The denoising loop around networks on arrays, in as few calls as they allow.

    Args:
        networks: the preset's.
        preset: the system.
        options: steps, sampler and start count here. None: the preset's own.
    """
    options = options or Options.of(preset)
    diffusion, fused = preset.diffusion, networks.fused
    wanted = (options.steps, options.sampler, options.start)
    if fused and preset.fused == "superres_onnx" and wanted == (diffusion.ddim_steps, "ddim", "noise"):
        return fused_generator(fused, preset)

    def generate(lr: Array, seeds: Sequence[Seed]) -> Sampled:
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

        z_0 = draw_latents(
            *(denoise, image_noise(seeds, latent), c, diffusion, *wanted),
            step_many=step_many if fused and preset.fused == "denoise" else None,
        )
        return as_sampled(networks.decode(z_0, lr), history)

    return generate


def repeat_rows(coefficients: Array, batch: int) -> Array:
    """The same for every image of a batch, in an array of its own."""
    return np.repeat(coefficients[None], batch, axis=0)


@cache
def default_rows(diffusion: DiffusionSpec) -> Array:
    """The coefficients of the preset's own steps, [steps, 4]."""
    return rows(trajectory(make_schedule(diffusion), diffusion.ddim_steps, ETA["ddim"], diffusion.prediction))


def fused_generator(fused: Callable[..., tuple[Array, ...]], preset: Preset) -> Generate:
    """The preset's own options, in one call."""
    diffusion, shrink = preset.diffusion, preset.vae.factor // SCALE

    def generate(lr: Array, seeds: Sequence[Seed]) -> Sampled:
        noise = image_noise(seeds, (preset.vae.latent_channels, lr.shape[2] // shrink, lr.shape[3] // shrink))()
        image, rows = (lr[:, 0] + 1) / 2, repeat_rows(default_rows(diffusion), len(lr))
        return Sampled(*fused(image=image, noise=noise, coefficients=rows))

    return generate


def crop(upscaled: Array, image: Image) -> Array:
    """[..., H', W'] ⇒ [..., 4H, 4W], without the padding of ``image``, [H, W]."""
    height, width = (side * SCALE for side in image.shape)
    return upscaled[..., :height, :width]


def scatter(drawn: Sequence[Image]) -> Image:
    """[4H, 4W], how far the samples of an image deviate from each other around each pixel.

    The variance is averaged over a few pixels around: a few samples tell it badly pixel by pixel, and where projected
    ones may differ follows the grid of the reduction.
    """
    variance = cv2.GaussianBlur(np.var(drawn, axis=0, ddof=1, dtype=np.float32), (0, 0), SMOOTHING)
    return np.sqrt(variance) + FLOOR


def mean(arrays: Sequence[Image]) -> Image:
    """Of arrays of one shape; of one it is that itself."""
    return arrays[0] if len(arrays) == 1 else np.mean(arrays, axis=0)


@dataclass(frozen=True)
class Samples:
    """The samples of one image."""

    images: list[Image]
    """[4H, 4W] each, in [0, 1]"""
    history: History
    network_doubt: Image | None
    """[4H, 4W], the mean of the samples' doubts, of networks that tell it"""

    def doubt(self) -> Image | None:
        """[4H, 4W]: what the networks tell, or else the samples' scatter; None where there is but one."""
        if self.network_doubt is not None:
            return self.network_doubt
        return scatter(self.images) if len(self.images) > 1 else None


def combine(samples: Samples, image: Image, preset: Preset, output: Output, pixel_mm: float | None = None) -> Result:
    """The samples of one image ⇒ its result: the first or their mean, with the calibrated spread."""
    images, band = samples.images, preset.band
    noisy, strange = samples.history.noise > NOISY, preset.is_unusual_spacing(pixel_mm)
    wider = np.float32((band.noisy if noisy else 1.0) * (band.strange if strange else 1.0))
    upscaled = images[0] if output == "sample" else mean(images)
    doubt, scale = samples.doubt(), band.scale(len(images))
    spread = None if doubt is None or scale is None else np.float32(scale) * wider * doubt
    expected = (
        None
        if samples.network_doubt is None or band.error is None
        else band.error * float(wider * samples.network_doubt.mean())
    )
    return Result(upscaled, spread, lr_error(upscaled, image, samples.history), samples.history, expected)


def draw_samples(
    images: Sequence[Image],
    seeds: Sequence[int],
    generate: Generate,
    preset: Preset,
    options: Options,
) -> Iterator[Samples]:
    """Yield every image's samples, for images of one shape.

    The first sample of an image is the same however many are drawn. Those of an image that is yielded are not kept.
    """
    lr, generate = network_lr(images, preset), upright(generate)
    jobs: list[tuple[int, Seed]] = [
        (i, seed if k == 0 else (seed, k)) for i, seed in enumerate(seeds) for k in range(options.samples)
    ]
    size = min(MAX_BATCH, max(1, MAX_BATCH_PIXELS // lr[0, 0].size))
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
        options: samples, output, faithful and degradation count here. None: the preset's own.
        pixel_mm: the distance of each image's pixels, in mm, where it is known.
    """
    options = options or Options.of(preset)
    all_samples = draw_samples(images, seeds, generate, preset, options)
    sizes = [None] * len(images) if pixel_mm is None else pixel_mm
    return [
        combine(of_one, i, preset, options.output, mm) for of_one, i, mm in zip(all_samples, images, sizes, strict=True)
    ]
