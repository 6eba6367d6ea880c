"""The reference pipeline in PyTorch: the same sampler code on torch tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pipeline.method.images import to_network
from pipeline.method.options import Options
from pipeline.method.sampled import Generate, Sampled, as_sampled
from pipeline.method.sampler import Seed, image_noise
from pipeline.method.upscale import Array, condition, draw_latents
from pipeline.networks.detail_vae import DetailVAE
from pipeline.networks.unet import UNet
from pipeline.networks.vae import Decoder, Encoder, Restore, load_vae, vae_path
from pipeline.networks.weights import check_pair, load_unet
from pipeline.presets import Preset


@dataclass(frozen=True)
class Eager:
    """Encoder, denoiser and decoder on one device."""

    encoder: Encoder
    unet: UNet
    decoder: Decoder
    preset: Preset
    device: torch.device

    def tensor(self, array: Array) -> Tensor:
        return torch.from_numpy(array).to(self.device)

    @torch.inference_mode()
    def encode(self, image: Array, lr: Array) -> Array:
        """See ``pipeline.method.upscale.Networks.encode``."""
        latent: Array = self.encoder(self.tensor(image), self.tensor(lr)).cpu().numpy()
        return latent

    @torch.inference_mode()
    def decode(self, latent: Tensor, lr: Array) -> tuple[Array, ...]:
        """See ``pipeline.method.upscale.Networks.decode``."""
        return tuple(output.cpu().numpy() for output in self.decoder(latent, self.tensor(lr)))

    @torch.inference_mode()
    def restore(self, lr: Array) -> tuple[Array, Array | None]:
        """See ``pipeline.method.upscale.Networks.restore``; without a restorer, images are returned unchanged."""
        if not isinstance(self.decoder.vae, DetailVAE):
            return lr, None
        restored, history = Restore(self.decoder.vae)(self.tensor(lr))
        return restored.cpu().numpy(), history.cpu().numpy()

    def generator(
        self,
        options: Options | None = None,
        *,
        source: Callable[[Sequence[Seed], tuple[int, ...]], Callable[[], Array]] = image_noise,
    ) -> Generate:
        """See ``pipeline.method.upscale.generator``; with the default ``source``, equal seeds give equal noise."""
        chosen = options or Options.of(self.preset)

        @torch.inference_mode()
        def generate(images: Array, seeds: Sequence[Seed]) -> Sampled:
            lr = to_network(images, self.preset.data.channels)
            restored, history = self.restore(lr)
            c = self.tensor(condition(restored, self.preset, self.encode))
            draw = source(seeds, (self.preset.vae.latent_channels, *c.shape[2:]))

            def denoise(z_t: Tensor, t: int) -> Tensor:
                predicted: Tensor = self.unet(torch.cat([z_t, c], dim=1), z_t.new_full((len(z_t), 1), t))
                return predicted

            def noise() -> Tensor:
                return self.tensor(draw())

            z_0 = draw_latents(denoise, noise, c, self.preset.diffusion, chosen.steps, chosen.sampler, chosen.start)
            return as_sampled(self.decode(z_0, lr), history)

        return generate


def load(weights: Path, preset: Preset, *, vae: str | Path | None = None, device: str = "cpu") -> Eager:
    """Load the pipeline from a weights folder; ``vae`` overrides the autoencoder, see ``load_vae``.

    Raises:
        ValueError: weights are missing, damaged or of another network, or the folder's two networks do not match.
    """
    autoencoder = load_vae(vae or vae_path(weights, preset.vae), preset.vae).to(device)
    if vae is None:
        check_pair(weights, autoencoder)
    unet = load_unet(weights, preset).to(device)
    return Eager(Encoder(autoencoder), unet, Decoder(autoencoder), preset, torch.device(device))
