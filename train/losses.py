"""What the networks are trained on, as modules: the whole loss is one ``forward``, which several processes can share.

Every ``forward`` returns its terms by name; "loss" is the one to minimise.
"""

from __future__ import annotations

from typing import Literal

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.unet import UNet
from pipeline.vae import Decoder
from train.lpips import LPIPS

EpsLoss = Literal["eps-mse", "eps-lpips", "eps-image"]


class Discriminator(nn.Sequential):
    """Judges patches (Isola et al. 2017, 34×34 receptive field): [B, C, H, W] ⇒ one logit a patch, positive is real."""

    def __init__(self, channels: int, width: int = 32) -> None:
        super().__init__(
            nn.Conv2d(channels, width, 4, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 4, 2, 1),
            nn.GroupNorm(8, 2 * width),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * width, 4 * width, 4, 1, 1),
            nn.GroupNorm(8, 4 * width),
            nn.LeakyReLU(0.2),
            nn.Conv2d(4 * width, 1, 4, 1, 1),
        )


class AutoencoderLoss(nn.Module):
    """L1 + LPIPS + KL of a reconstruction through a sampled latent, and, if there is an adversary, its opinion."""

    def __init__(
        self, vae: AutoencoderKL, lpips: LPIPS, lpips_weight: float, kl_weight: float, adversarial_weight: float = 0.0
    ) -> None:
        super().__init__()
        self.vae, self.lpips = vae, lpips
        self.weights = {"l1": 1.0, "lpips": lpips_weight, "kl": kl_weight, "adversarial": adversarial_weight}

    def forward(self, x: Tensor, noise: Tensor, adversary: nn.Module | None = None) -> dict[str, Tensor]:
        """Images [B, 3, H, W] in [-1, 1] and standard normal noise [B, 4, H/8, W/8].

        Terms: "l1", "lpips", "kl" (the mean over latent elements), "loss", and the image, "reconstruction".
        """
        posterior = self.vae.encode(x).latent_dist
        y = self.vae.decode(posterior.mean + posterior.std * noise).sample.float()
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        terms = {
            "l1": (y - x).abs().mean(),
            "lpips": self.lpips(y, x).mean(),
            "kl": 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean(),
        }
        if adversary is not None:
            terms["adversarial"] = -adversary(y).float().mean()
        loss = torch.stack([self.weights[name] * term for name, term in terms.items()]).sum()
        return {**terms, "loss": loss, "reconstruction": y.detach()}


class AdversaryLoss(nn.Module):
    """The hinge loss of the discriminator (Lim & Ye 2017)."""

    def __init__(self, discriminator: Discriminator) -> None:
        super().__init__()
        self.discriminator = discriminator

    def forward(self, real: Tensor, reconstruction: Tensor) -> dict[str, Tensor]:
        real_logits, fake_logits = self.discriminator(torch.cat([real, reconstruction])).float().chunk(2)
        return {"loss": F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean()}


def eps_lpips(lpips: LPIPS, eps: Tensor, noise: Tensor) -> Tensor:
    """LPIPS of the predicted and the true ε, each latent channel a gray image: the paper's words, literally."""
    as_images = (e.flatten(0, 1)[:, None].expand(-1, 3, -1, -1) for e in (eps, noise))
    return lpips(*as_images).mean()


class DiffusionLoss(nn.Module):
    """The loss of a predicted ε.

    "eps-mse" is ‖ε - ε_θ(z_t, z_lr, t)‖² (Ho et al. 2020, eq. 14), "eps-lpips" the paper's wording. "eps-image" adds to
    the first what the prediction means in pixels: √ᾱ_t·(L1 + LPIPS) between the decoded
    ẑ_0 = (z_t - √(1-ᾱ_t)·ε_θ)/√ᾱ_t and the HR image, through the frozen decoder.
    """

    alpha_bar: Tensor

    def __init__(
        self,
        unet: UNet,
        alpha_bar: Tensor,
        kind: EpsLoss = "eps-mse",
        lpips: LPIPS | None = None,
        decoder: Decoder | None = None,
        image_weight: float = 0.0,
    ) -> None:
        super().__init__()
        self.unet, self.kind, self.lpips, self.decoder, self.image_weight = unet, kind, lpips, decoder, image_weight
        self.register_buffer("alpha_bar", alpha_bar)

    def forward(
        self, pairs: Tensor, t: Tensor, noise: Tensor, crops: tuple[Tensor, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """``pairs`` is [B, 2, 4, h, w]: z_0 and z_lr; ``t`` int [B]; ``noise`` [B, 4, h, w].

        ``crops``, for "eps-image": HR squares [b, 3, S, S] in [-1, 1] of b samples, evenly spread and the first among
        them, and where they lie in their latents, int [b, 2] (top, left).
        """
        z_0, z_lr = pairs[:, 0], pairs[:, 1]
        a = self.alpha_bar[t][:, None, None, None]
        z_t = a.sqrt() * z_0 + (1 - a).sqrt() * noise
        eps = self.unet(torch.cat([z_t, z_lr], dim=1), t).float()
        if self.kind == "eps-lpips":
            assert self.lpips is not None
            return {"loss": eps_lpips(self.lpips, eps, noise)}
        mse = F.mse_loss(eps, noise)
        if crops is None:
            return {"loss": mse}
        assert self.lpips is not None and self.decoder is not None
        hr, where = crops
        every, side = len(eps) // len(hr), hr.shape[-1] // (2 ** (len(self.decoder.vae.config.block_out_channels) - 1))
        a = a[::every]
        z_hat = (z_t[::every] - (1 - a).sqrt() * eps[::every]) / a.sqrt()
        z_crop = torch.stack(
            [z[:, i : i + side, j : j + side] for z, (i, j) in zip(z_hat, where.tolist(), strict=True)]
        )
        y = self.decoder(z_crop).float()
        distance = (y - hr).abs().mean(dim=(1, 2, 3)) + self.lpips(y, hr)
        image = (a.sqrt().flatten() * distance).mean()
        return {"mse": mse, "image": image, "loss": mse + self.image_weight * image}
