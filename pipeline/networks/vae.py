"""The autoencoders: diffusers' ``AutoencoderKL``, ours or pretrained, and ``DetailVAE``, which takes the LR image.

Latents are *raw* inside an autoencoder and scaled everywhere else; only ``Encoder`` and ``Decoder`` convert them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from pipeline.networks.detail_vae import DetailVAE
from pipeline.networks.restorer import estimates
from pipeline.networks.tensors import load_tensors
from pipeline.presets import DetailVAESpec, VAESpec

VAE: TypeAlias = AutoencoderKL | DetailVAE
DETAIL_FILE = "vae.safetensors"


def make_vae(spec: VAESpec | DetailVAESpec) -> VAE:
    """Return a new autoencoder. Our ``AutoencoderKL`` has no attention, so that it supports images of any size."""
    if isinstance(spec, DetailVAESpec):
        return DetailVAE(spec)
    n = len(spec.block_out_channels)
    return AutoencoderKL(
        in_channels=spec.channels,
        out_channels=spec.channels,
        latent_channels=spec.latent_channels,
        down_block_types=("DownEncoderBlock2D",) * n,
        up_block_types=("UpDecoderBlock2D",) * n,
        block_out_channels=spec.block_out_channels,
        layers_per_block=spec.layers_per_block,
        norm_num_groups=spec.norm_groups,
        mid_block_add_attention=False,
        scaling_factor=1.0,
        shift_factor=0.0,
    )


def vae_path(weights: Path, spec: VAESpec | DetailVAESpec) -> Path:
    """Return the autoencoder's path in a weights folder: a ``save_pretrained`` folder or, for ``DetailVAE``, a file."""
    return weights / (DETAIL_FILE if isinstance(spec, DetailVAESpec) else "vae")


def load_vae(source: str | Path, spec: VAESpec | DetailVAESpec) -> VAE:
    """Load an autoencoder, in evaluation mode.

    Args:
        source: for ``VAESpec``, a ``save_pretrained`` folder or a hub name such as ``stabilityai/sd-vae-ft-mse``; for
            ``DetailVAESpec``, a file. A ``Path`` is only looked up locally.
        spec: the required architecture.

    Raises:
        ValueError: the latents do not have the shape required by ``spec``, or loading fails.
    """
    return load_detail_vae(Path(source), spec) if isinstance(spec, DetailVAESpec) else load_kl(source, spec)


def load_detail_vae(path: Path, spec: DetailVAESpec) -> DetailVAE:
    """See ``load_vae``."""
    vae = DetailVAE(spec)
    load_tensors(vae, path, f"an autoencoder of {spec}")
    return vae.eval()


def load_kl(source: str | Path, spec: VAESpec) -> AutoencoderKL:
    """See ``load_vae``."""
    if isinstance(source, Path) and not source.is_dir():
        raise ValueError(f"no AutoencoderKL at '{source}': it is not a folder")
    try:
        vae: AutoencoderKL = AutoencoderKL.from_pretrained(source, low_cpu_mem_usage=False)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"no AutoencoderKL at '{source}' (a save_pretrained folder or a hub name): {reason}"
        ) from error
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    found = (vae.config.in_channels, vae.config.latent_channels, factor)
    wanted = (spec.channels, spec.latent_channels, spec.factor)
    if found != wanted:
        raise ValueError(f"autoencoder '{source}' must have (channels, latent channels, factor) {wanted}, got {found}")
    return vae.eval()


def posterior(vae: VAE, image: Tensor, lr: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return (mean, log variance) of the raw latent; images [B, C, H, W] and LR images [B, C, H/4, W/4] in [-1, 1]."""
    if isinstance(vae, DetailVAE):
        assert lr is not None
        return vae.posterior(image, lr)
    distribution = vae.encode(image).latent_dist
    return distribution.mean.float(), distribution.logvar.float()


def decode(vae: VAE, latent: Tensor, lr: Tensor | None) -> Tensor:
    """Decode a raw latent to an image, float32, approximately in [-1, 1]; ``lr`` is for autoencoders that take it."""
    if isinstance(vae, DetailVAE):
        assert lr is not None
        return vae.decode(latent, lr)[0]
    image: Tensor = vae.decode(latent).sample.float()
    return image


def set_latent_scale(vae: VAE, latents: Tensor) -> tuple[list[float], list[float]]:
    """Standardise raw latents [N, C, h, w] to zero mean and unit variance; return their means and deviations.

    A ``DetailVAE`` scales each channel separately; an ``AutoencoderKL``, whose format has one scale, all equally.
    """
    if isinstance(vae, DetailVAE):
        vae.latent_mean.copy_(latents.mean(dim=(0, 2, 3))[:, None, None])
        vae.latent_std.copy_(latents.std(dim=(0, 2, 3))[:, None, None])
        return vae.latent_mean.flatten().tolist(), vae.latent_std.flatten().tolist()
    mean, std = float(latents.mean()), float(latents.std())
    vae.register_to_config(shift_factor=mean, scaling_factor=1.0 / std)
    return [mean], [std]


def latent_scale(vae: VAE) -> tuple[Tensor | float, Tensor | float]:
    """Return the (mean, standard deviation) used to scale latents."""
    if isinstance(vae, DetailVAE):
        return vae.latent_mean, vae.latent_std
    return float(vae.config.shift_factor or 0.0), 1.0 / float(vae.config.scaling_factor)


class Encoder(nn.Module):
    """Image [B, C, H, W] in [-1, 1], and LR image if used ⇒ mean of the scaled latent [B, 4, H/8, W/8]."""

    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, image: Tensor, lr: Tensor | None = None) -> Tensor:
        mean, std = latent_scale(self.vae)
        latent: Tensor = (posterior(self.vae, image, lr)[0] - mean) / std
        return latent


class Decoder(nn.Module):
    """Latent [B, 4, h, w], and LR image if used ⇒ image [B, C, 8h, 8w] and, for ``DetailVAE``, its doubt.

    Images of an ``AutoencoderKL`` are clamped to [-1, 1]; ``pipeline.method.upscale`` clips those of a ``DetailVAE``.
    """

    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latent: Tensor, lr: Tensor | None = None) -> tuple[Tensor, ...]:
        mean, std = latent_scale(self.vae)
        latent = latent * std + mean
        if isinstance(self.vae, DetailVAE):
            assert lr is not None
            image, doubt, _ = self.vae.decode(latent, lr)
            return image, doubt[:, 0]
        return (torch.clamp(decode(self.vae, latent, None), -1.0, 1.0),)


class Restore(nn.Module):
    """LR image ⇒ restored LR image and ``pipeline.networks.restorer.estimates``."""

    def __init__(self, vae: DetailVAE) -> None:
        super().__init__()
        self.restorer, self.presentation = vae.restorer, vae.presentation

    def forward(self, lr: Tensor) -> tuple[Tensor, Tensor]:
        restored, history = self.restorer(lr)
        return restored, estimates(history, self.presentation(lr))
