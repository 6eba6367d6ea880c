"""The autoencoder of preset ``best``, whose latent encodes the detail missing from the restored LR image.

It has no normalisation, so that decoding does not depend on an image's size or surroundings.
"""

from __future__ import annotations

from functools import reduce
from operator import add

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.networks.blocks import Residual, conv3, scale_down
from pipeline.networks.presentation import Presentation
from pipeline.networks.restorer import Restorer, estimates
from pipeline.presets import DetailVAESpec
from pipeline.spec import HISTORY, SCALE


def upsample(lr: Tensor) -> Tensor:
    """Upsample [B, C, h, w] ⇒ [B, C, 4h, 4w] bicubically, like ``pipeline.method.images.upsample``."""
    if torch.compiler.is_exporting():
        return upsample_by_sums(lr)
    return F.interpolate(lr, scale_factor=SCALE, mode="bicubic", align_corners=False)


def cubic(distance: float) -> float:
    """Return Keys' (1981) kernel with a = -0.75."""
    a, d = -0.75, abs(distance)
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * (d**3 - 5 * d**2 + 8 * d - 4) if d < 2 else 0.0


REACH = 2
PHASES = [[cubic((p + 0.5) / SCALE - 0.5 - k) for k in range(-REACH, REACH + 1)] for p in range(SCALE)]
"""Weights of a pixel and its neighbours for each of the SCALE output pixels."""


def upsample_by_sums(lr: Tensor) -> Tensor:
    """Compute ``upsample`` from products and sums of LR pixels and a pixel shuffle.

    Runtimes execute this faster than their cubic ``Resize``, and in float32 even if convolutions run in bfloat16, which
    would cause errors of a gray level.
    """
    (h, w), sides, phases = lr.shape[2:], (REACH, REACH), lr.new_tensor(PHASES)[..., None, None]
    one = F.pad(lr.flatten(0, 1)[:, None], (*sides, *sides), mode="replicate")
    rows = reduce(add, [phases[:, k] * one.narrow(2, k, h) for k in range(2 * REACH + 1)])
    squares = reduce(add, [phases[:, k] * rows.narrow(3, k, w)[:, :, None] for k in range(2 * REACH + 1)])
    return F.pixel_shuffle(squares.flatten(1, 2), SCALE).view(*lr.shape[:2], SCALE * h, SCALE * w)


class Doubt(nn.Module):
    """Estimate of each pixel's error from the features that the image is decoded from."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.conv = conv3(features, width)
        self.lr = conv3(2, width)
        self.history = nn.Linear(HISTORY, width)
        self.up = nn.Sequential(nn.SiLU(), conv3(width, SCALE**2), nn.ELU(), nn.PixelShuffle(SCALE))

    def forward(self, features: Tensor, lr: Tensor, restored: Tensor, history: Tensor) -> Tensor:
        """Return the half-width, in [0, 1] of gray, that contains 90 % of errors: [B, 1, 4h, 4w].

        Args:
            features: [B, C, h, w].
            lr: the original LR image, [B, 1, h, w].
            restored: the restored LR image, [B, 1, h, w].
            history: the restorer's raw output, [B, HISTORY], before ``estimates``.
        """
        # scaled up, because changes are small relative to gray values
        seen = self.lr(torch.cat([lr, 10 * (lr - restored)], dim=1))
        levels: Tensor = 1 + self.up(self.conv(features) + seen + self.history(history)[:, :, None, None]).float()
        return levels / 255


class DetailVAE(nn.Module):
    """Image and LR image ⇄ latent at 1/8 of the image's resolution, or 1/4 (the LR image's).

    ``latent_mean`` and ``latent_std``, [4, 1, 1], are the statistics of the training images' latents, with which
    ``pipeline.networks.vae.Encoder`` and ``Decoder`` standardise every channel.
    """

    latent_mean: Tensor
    latent_std: Tensor

    def __init__(self, spec: DetailVAESpec) -> None:
        super().__init__()
        w, z, blocks, shrink = spec.width, spec.latent_channels, spec.encoder_blocks, spec.factor // SCALE
        self.spec = spec
        self.encoder = nn.Sequential(
            conv3((SCALE**2 + 1) * spec.channels, w),
            *(Residual(w) for _ in range(blocks)),
            nn.Conv2d(w, w, 4, stride=2, padding=1) if shrink == 2 else conv3(w, w),
            *(Residual(w) for _ in range(blocks)),
            nn.SiLU(),
            conv3(w, 2 * z),
        )
        self.from_latent = nn.Sequential(conv3(z, w), Residual(w), conv3(w, shrink**2 * w), nn.PixelShuffle(shrink))
        self.from_lr = conv3(spec.channels, w)
        self.blocks = nn.Sequential(*(Residual(w) for _ in range(spec.decoder_blocks)))
        # SiLU before the shuffle, so that runtimes fuse it into the convolution
        self.up = nn.Sequential(conv3(w, SCALE**2 * spec.tail), nn.SiLU(), nn.PixelShuffle(SCALE))
        self.out = scale_down(conv3(spec.tail, spec.channels))
        self.restorer = Restorer(spec.restorer)
        self.doubt = Doubt(w, spec.doubt)
        self.presentation = Presentation()
        self.register_buffer("latent_mean", torch.zeros(z, 1, 1))
        self.register_buffer("latent_std", torch.ones(z, 1, 1))

    def posterior(self, image: Tensor, lr: Tensor) -> tuple[Tensor, Tensor]:
        """Return (mean, log variance) of the latent, both [B, 4, H/8, W/8] float32.

        Args:
            image: [B, 1, H, W] in [-1, 1].
            lr: [B, 1, H/4, W/4] in [-1, 1].
        """
        restored = self.restorer(lr)[0]
        detail = F.pixel_unshuffle(image - upsample(restored), SCALE)
        # scaled up, because detail is small relative to gray values
        mean, logvar = self.encoder(torch.cat([SCALE * detail, restored], dim=1)).float().chunk(2, dim=1)
        return mean, logvar.clamp(-10, 2)

    def features(self, latent: Tensor, restored: Tensor) -> Tensor:
        """Return features [B, C, 2h, 2w] from a raw latent [B, 4, h, w] and a restored LR image [B, 1, 2h, 2w]."""
        features: Tensor = self.blocks(self.from_latent(latent) + self.from_lr(restored))
        return features

    def image(self, features: Tensor, restored: Tensor) -> Tensor:
        """Return the image [B, 1, 8h, 8w], float32, approximately in [-1, 1]."""
        image: Tensor = upsample(restored) + self.out(self.up(features)).float()
        return image

    def decode(self, latent: Tensor, lr: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Decode a latent and an LR image.

        Args:
            latent: raw latent, [B, 4, h, w].
            lr: [B, 1, 2h, 2w] in [-1, 1].

        Returns:
            The image [B, 1, 8h, 8w], approximately in [-1, 1], its doubt [B, 1, 8h, 8w], see ``Doubt``, and the
            ``estimates`` for ``lr``; float32.
        """
        restored, history = self.restorer(lr)
        return self.decode_restored(latent, lr, restored, history)

    def decode_restored(
        self, latent: Tensor, lr: Tensor, restored: Tensor, history: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Decode with the restorer's outputs for ``lr``; see ``decode``."""
        features = self.features(latent, restored)
        found = estimates(history, self.presentation(lr))
        return self.image(features, restored), self.doubt(features, lr, restored, history), found
