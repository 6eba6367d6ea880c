"""Several calls of the networks as one: K denoising steps, or the whole way from image to image, for export.

The sampler's step is ``pipeline.sampler.advance`` itself, unrolled; its coefficients are inputs, so one graph serves
every schedule, sampler and number of steps, and images at different timesteps can share a batch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.images import KERNEL, PROJECTIONS
from pipeline.sampler import Step, advance
from pipeline.spec import SCALE, Preset
from pipeline.unet import UNet
from pipeline.vae import Decoder


def unrolled(unet: UNet, z: Tensor, c: Tensor, coefficients: Tensor, noise: Tensor | None) -> Tensor:
    """As many steps as ``coefficients`` [B, K, 4] (t, z, predicted, sigma) has rows; ``noise`` is [B, K, 4, h, w]."""
    for k in range(coefficients.shape[1]):
        step = Step(*coefficients[:, k, :, None, None, None].unbind(1))
        predicted = unet(torch.cat([z, c], dim=1), step.t.flatten(1))
        z = advance(z, step, predicted, None if noise is None else noise[:, k])
    return z


class Denoise(nn.Module):
    """K denoising steps."""

    def __init__(self, unet: UNet) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, z: Tensor, condition: Tensor, coefficients: Tensor, noise: Tensor) -> Tensor:
        """z_t [B, 4, h, w], what the U-Net sees of the LR image, and K rows and noises ⇒ z after K steps."""
        return unrolled(self.unet, z, condition, coefficients, noise)


class Whole(nn.Module):
    """LR image ⇒ upscaled image, by K deterministic steps from pure noise."""

    kernel: Tensor

    def __init__(self, unet: UNet, decoder: Decoder, preset: Preset) -> None:
        super().__init__()
        self.unet, self.decoder = unet, decoder
        self.fold = preset.vae.factor // SCALE
        # a buffer, because CUDA graphs hold no copies of what lies in pageable memory
        self.register_buffer("kernel", torch.from_numpy(KERNEL), persistent=False)

    def forward(self, image: Tensor, noise: Tensor, coefficients: Tensor) -> Tensor:
        """Upscale images whose sides the networks can take.

        Args:
            image: [B, H, W] in [0, 1].
            noise: [B, 4, h, w], standard normal.
            coefficients: [B, K, 4], a row a step: t, z, predicted, sigma, of which the last is not used.

        Returns:
            [B, 4H, 4W] in [0, 1]; it downscales to ``image``.
        """
        lr = 2 * image[:, None] - 1
        z_0 = unrolled(self.unet, noise, F.pixel_unshuffle(lr, self.fold), coefficients, None)
        return project((self.decoder(z_0, lr) + 1) / 2, image[:, None], self.kernel)[:, 0]


def project(image: Tensor, lr: Tensor, kernel: Tensor) -> Tensor:
    """``pipeline.images.project`` of [B, 1, 4H, 4W], on squares of SCALE² pixels folded into channels.

    ``kernel`` is ``pipeline.images.KERNEL``, on the image's device.
    """
    kernel = kernel.reshape(1, -1, 1, 1)
    back = kernel / kernel.square().sum()
    squares = F.pixel_unshuffle(image, SCALE)
    for _ in range(PROJECTIONS):
        missing = lr - (squares * kernel).sum(1, keepdim=True).clamp(0, 1)
        squares = (squares + missing * back).clamp(0, 1)
    return F.pixel_shuffle(squares, SCALE)
