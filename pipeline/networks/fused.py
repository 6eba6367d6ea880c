"""Fused network calls for export: K denoising steps, or the whole pipeline from image to image.

The steps are unrolled calls of ``pipeline.method.sampler.advance``; their coefficients are inputs, so one graph serves
every schedule, sampler and number of steps, and images at different timesteps can share a batch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.method.sampler import Step, advance
from pipeline.networks.detail_vae import DetailVAE
from pipeline.networks.unet import UNet
from pipeline.spec import SCALE


def unrolled(unet: UNet, z: Tensor, c: Tensor, coefficients: Tensor, noise: Tensor | None) -> Tensor:
    """Take K steps with ``coefficients`` [B, K, 4] (t, z, predicted, sigma) and ``noise`` [B, K, 4, h, w]."""
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
        """Return z after K steps from z_t [B, 4, h, w], the U-Net's condition, and K rows and noises."""
        return unrolled(self.unet, z, condition, coefficients, noise)


class Fused(nn.Module):
    """LR image ⇒ upscaled image by K deterministic steps from pure noise."""

    def __init__(self, unet: UNet, vae: DetailVAE) -> None:
        super().__init__()
        self.unet, self.vae = unet, vae
        self.fold = vae.spec.factor // SCALE

    def forward(self, image: Tensor, noise: Tensor, coefficients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Upscale images whose sides the networks support.

        Args:
            image: [B, H, W] in [0, 1].
            noise: [B, 4, h, w], standard normal.
            coefficients: [B, K, 4], one row per step: t, z, predicted, sigma (unused).

        Returns:
            The images [B, 4H, 4W], approximately in [0, 1], not yet projected, their doubt [B, 4H, 4W], and the
            estimates for the LR images [B, ESTIMATES]; see ``DetailVAE.decode``.
        """
        lr = 2 * image[:, None] - 1
        restored, history = self.vae.restorer(lr)
        z_0 = unrolled(self.unet, noise, F.pixel_unshuffle(restored, self.fold), coefficients, None)
        latent = z_0 * self.vae.latent_std + self.vae.latent_mean
        upscaled, doubt, estimates = self.vae.decode_restored(latent, lr, restored, history)
        return (upscaled[:, 0] + 1) / 2, doubt[:, 0], estimates
