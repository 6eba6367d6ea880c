"""The reference pipeline in PyTorch: the same sampler code, on torch tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pipeline.images import Image
from pipeline.sampler import image_noise
from pipeline.spec import Preset, SamplerName, Start
from pipeline.superres import network_input, network_output, sample_with_defaults
from pipeline.unet import UNet
from pipeline.vae import Decoder, Encoder, load_vae
from pipeline.weights import check_pair, load_unet


@dataclass(frozen=True)
class Eager:
    """Encoder, denoiser and decoder on one device."""

    encoder: Encoder
    unet: UNet
    decoder: Decoder
    preset: Preset
    device: torch.device

    @torch.inference_mode()
    def upscale(
        self,
        images: Sequence[Image],
        seeds: Sequence[int],
        *,
        steps: int | None = None,
        sampler: SamplerName | None = None,
        start: Start | None = None,
    ) -> list[Image]:
        """As ``pipeline.superres.upscale``; the same seeds give the same noise."""
        z_lr = self.encoder(torch.from_numpy(network_input(images, self.preset)).to(self.device))
        draw = image_noise(seeds, tuple(z_lr.shape[1:]))

        def denoise(z_t: Tensor, z_lr: Tensor, t: int) -> Tensor:
            eps: Tensor = self.unet(torch.cat([z_t, z_lr], dim=1), z_t.new_full((len(z_t), 1), t))
            return eps

        def noise() -> Tensor:
            return torch.from_numpy(draw()).to(self.device)

        z_0 = sample_with_defaults(denoise, z_lr, noise, self.preset.diffusion, steps, sampler, start)
        return network_output(self.decoder(z_0).cpu().numpy(), images)


def load(weights: Path, preset: Preset, *, vae: str | Path | None = None, device: str = "cpu") -> Eager:
    """The pipeline of a weights folder; ``vae`` names another autoencoder (see ``pipeline.vae.load_vae``).

    Raises:
        ValueError: weights are missing, damaged or of another network, or the folder's two networks are no pair.
    """
    autoencoder = load_vae(vae or weights / "vae", preset.vae).to(device)
    if vae is None:
        check_pair(weights, autoencoder)
    unet = load_unet(weights, preset).to(device)
    return Eager(Encoder(autoencoder), unet, Decoder(autoencoder), preset, torch.device(device))
