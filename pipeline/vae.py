"""The autoencoder: diffusers' ``AutoencoderKL``, ours or any pretrained one, with the latent scale kept inside.

A latent here is always the *scaled* one, ``(mean - shift_factor)·scaling_factor``: nothing outside encode and
decode knows the scale.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from pipeline.spec import VAESpec


def make_vae(spec: VAESpec) -> AutoencoderKL:
    """Our own small autoencoder, randomly initialised and without attention, so that it takes images of any size."""
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


def load_vae(source: str | Path, spec: VAESpec) -> AutoencoderKL:
    """Load a pretrained autoencoder: a ``save_pretrained`` folder or a hub name such as ``stabilityai/sd-vae-ft-mse``.

    A ``Path`` is a folder, and nothing else is asked for it.

    Raises:
        ValueError: its latents are not of the shape that ``spec`` names, or it cannot be loaded.
    """
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
        raise ValueError(f"autoencoder '{source}' has (channels, latent channels, factor) {found}, needed is {wanted}")
    return vae.eval()


def set_latent_scale(vae: AutoencoderKL, mean: float, std: float) -> None:
    """Make the latents of data with this raw mean and standard deviation zero-mean and of unit variance."""
    vae.register_to_config(shift_factor=mean, scaling_factor=1.0 / std)


class Encoder(nn.Module):
    """Image ⇒ latent: [B, 3, H, W] in [-1, 1] ⇒ [B, 4, H/8, W/8], the posterior's mean, scaled."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae
        self.scale = float(vae.config.scaling_factor)
        self.shift = float(vae.config.shift_factor or 0.0)

    def forward(self, image: Tensor) -> Tensor:
        mean = self.vae.encode(image).latent_dist.mean
        return (mean - self.shift) * self.scale


class Decoder(nn.Module):
    """Latent ⇒ image: [B, 4, h, w] ⇒ [B, 3, 8h, 8w], clamped to [-1, 1]."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae
        self.scale = float(vae.config.scaling_factor)
        self.shift = float(vae.config.shift_factor or 0.0)

    def forward(self, latent: Tensor) -> Tensor:
        image: Tensor = self.vae.decode(latent / self.scale + self.shift).sample
        return torch.clamp(image, -1.0, 1.0)
