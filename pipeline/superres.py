"""The whole method around any three networks: image ⇒ LR latent ⇒ denoising loop ⇒ image. NumPy only.

The server runs it with networks that are Triton models, the exporter and the benchmarks with onnxruntime sessions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.images import Image, from_network, pad_to_multiple, to_network, upsample
from pipeline.sampler import ETA, image_noise, sample
from pipeline.schedule import make_schedule
from pipeline.spec import SCALE, DiffusionSpec, Preset, SamplerName, Start

Array = NDArray[np.float32]
Z = TypeVar("Z", bound=Any)


@dataclass(frozen=True)
class Networks:
    """The three networks on float32 arrays, as in the models' interfaces."""

    encode: Callable[[Array], Array]
    """image [B, 3, H, W] ⇒ latent [B, 4, H/8, W/8]"""
    denoise: Callable[[Array, Array], Array]
    """(x [B, 8, h, w], t [B, 1]) ⇒ ε [B, 4, h, w]"""
    decode: Callable[[Array], Array]
    """latent [B, 4, h, w] ⇒ image [B, 3, 8h, 8w]"""


def network_input(images: Sequence[Image], preset: Preset) -> Array:
    """LR images of one shape ⇒ the encoder's input: padded by reflection, ×4 bicubic, [B, 3, 4H', 4W'] in [-1, 1]."""
    padded = [pad_to_multiple(image, preset.lr_multiple) for image in images]
    return np.stack([to_network(upsample(image), preset.data.channels) for image in padded])


def network_output(decoded: Array, images: Sequence[Image]) -> list[Image]:
    """The decoder's output ⇒ upscaled images in [0, 1], without the padding of ``network_input``."""
    height, width = (side * SCALE for side in images[0].shape)
    return [from_network(image[:, :height, :width]) for image in decoded]


def sample_with_defaults(
    denoise: Callable[[Z, Z, int], Z],
    z_lr: Z,
    noise: Callable[[], Z],
    diffusion: DiffusionSpec,
    steps: int | None,
    sampler: SamplerName | None,
    start: Start | None,
) -> Z:
    """``pipeline.sampler.sample`` with the preset's choice for what is None, on arrays and tensors alike."""
    sampler = sampler or diffusion.sampler
    return sample(
        denoise,
        z_lr,
        make_schedule(diffusion),
        noise,
        steps=diffusion.default_steps(sampler) if steps is None else steps,
        eta=ETA[sampler],
        start=start or diffusion.start,
    )


def upscale(
    images: Sequence[Image],
    seeds: Sequence[int],
    networks: Networks,
    preset: Preset,
    *,
    steps: int | None = None,
    sampler: SamplerName | None = None,
    start: Start | None = None,
) -> list[Image]:
    """Upscale images of one shape together.

    Args:
        images: float32 [H, W] in [0, 1], all of one shape.
        seeds: one an image.
        networks: encoder, denoiser, decoder.
        preset: the schedule, and what is not given below.
        steps: denoising steps, 1 … T.
        sampler: "ddpm" or "ddim".
        start: "lr", the noised LR latent, or "noise".

    Returns:
        float32 [4H, 4W] in [0, 1], one an image.

    Raises:
        ValueError: ``steps`` is out of range.
    """
    z_lr = networks.encode(network_input(images, preset))
    x = np.concatenate([z_lr, z_lr], axis=1)
    t = np.empty((len(images), 1), np.float32)

    def denoise(z_t: Array, _: Array, time: int) -> Array:
        x[:, : z_t.shape[1]] = z_t
        t[:] = time
        return networks.denoise(x, t)

    draw = image_noise(seeds, z_lr.shape[1:])
    z_0 = sample_with_defaults(denoise, z_lr, draw, preset.diffusion, steps, sampler, start)
    return network_output(networks.decode(z_0), images)
