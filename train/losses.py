"""What the networks are trained on, as modules: the whole loss is one ``forward``, which several processes can share.

Every ``forward`` returns its terms by name; "loss" is the one to minimise.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.images import KERNEL
from pipeline.spec import PAPER, SCALE, Prediction, Preset
from pipeline.superres import draw_latents
from pipeline.unet import UNet
from pipeline.vae import VAE, Decoder, decode, latent_scale, posterior
from train.lpips import LPIPS

DiffusionLossKind = Literal["mse", "eps-lpips", "eps-image"]


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


class Perceptual(nn.Module):
    """Weighted LPIPS of images [B, C, H, W] in [-1, 1]: AlexNet's of all; VGG16's, which is slow, of some.

    In training VGG16 judges a random 128² square of one image in four.
    """

    SHARE, SIDE = 4, 128

    def __init__(self, alex_weight: float, vgg_weight: float = 0.0) -> None:
        super().__init__()
        self.alex = LPIPS("alex")
        self.vgg = LPIPS("vgg", fast=True) if vgg_weight else None
        self.weights = {"lpips": alex_weight, "vgg": vgg_weight}

    def forward(self, y: Tensor, x: Tensor, where: Tensor | None = None) -> dict[str, Tensor]:
        """Terms: "lpips", and "vgg" where it has a weight.

        Args:
            y: images.
            x: what they should be.
            where: uniform in [0, 1), [2]: where VGG16's square lies, vertically and horizontally; None: it judges all.
        """
        terms = {"lpips": self.alex(y, x).mean()}
        if self.vgg is not None:
            if where is not None:
                top, left = (
                    int(u * max(1, n - self.SIDE + 1)) for u, n in zip(where.tolist(), y.shape[2:], strict=True)
                )
                squares = slice(None, None, self.SHARE), slice(None), slice(top, top + self.SIDE)
                y, x = (a[squares][..., left : left + self.SIDE] for a in (y, x))
            terms["vgg"] = self.vgg(y, x).mean()
        return terms


def project(y: Tensor, lr: Tensor) -> Tensor:
    """The images nearest to y [B, C, 4H, 4W] that downscale to lr, in [-1, 1]: one turn of ``pipeline.images.project``.

    The images are not clipped, so that every pixel has a gradient.
    """
    kernel = torch.from_numpy(KERNEL).to(y)
    b, c, h, w = lr.shape
    blocks = y.reshape(b, c, h, SCALE, w, SCALE)
    weights = kernel[:, None, :]
    missing = lr - (blocks * weights).sum(dim=(3, 5)).clamp(-1.0, 1.0)
    return (blocks + missing[:, :, :, None, :, None] * (weights / kernel.square().sum())).reshape(y.shape)


def total(weights: Mapping[str, float], terms: dict[str, Tensor]) -> dict[str, Tensor]:
    """The terms and their weighted sum, "loss"."""
    return {**terms, "loss": torch.stack([weights[name] * term for name, term in terms.items()]).sum()}


class AutoencoderLoss(nn.Module):
    """L1 + LPIPS + KL of a reconstruction through a sampled latent, and, if there is an adversary, its opinion.

    A latent may be spoilt further, so that a decoder that sees the LR image learns not to lean on what a denoiser will
    not get right: by noise of a deviation up to ``latent_noise``, or it is all zeros with probability ``latent_drop``.
    """

    def __init__(
        self,
        vae: VAE,
        perceptual: Perceptual,
        kl_weight: float,
        adversarial_weight: float = 0.0,
        *,
        faithful: bool = False,
        latent_noise: float = 0.0,
        latent_drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.vae, self.perceptual, self.faithful = vae, perceptual, faithful
        self.latent_noise, self.latent_drop = latent_noise, latent_drop
        self.weights = {"l1": 1.0, **perceptual.weights, "kl": kl_weight, "adversarial": adversarial_weight}

    def spoil(self, latent: Tensor, noise: Tensor, chance: Tensor) -> Tensor:
        strength, kept = self.latent_noise * chance[:, 0], (chance[:, 1] >= self.latent_drop).float()
        return (latent + strength[:, None, None, None] * noise) * kept[:, None, None, None]

    def forward(
        self, x: Tensor, lr: Tensor, noise: Tensor, chance: Tensor, where: Tensor, adversary: nn.Module | None = None
    ) -> dict[str, Tensor]:
        """The loss of a batch.

        Args:
            x: images [B, C, H, W] in [-1, 1].
            lr: their LR images.
            noise: standard normal, [2, B, 4, H/8, W/8]: of the posterior, and what spoils latents.
            chance: uniform in [0, 1), [B, 2]: how much noise, and whether the latent is dropped.
            where: see ``Perceptual``.
            adversary: judges the reconstruction.

        Returns:
            "l1", "lpips", "vgg" where it has a weight, "kl" (the mean over latent elements), "adversarial" if there
            is one, "loss", and the image, "reconstruction".
        """
        mean, logvar = posterior(self.vae, x, lr)
        latent = mean + torch.exp(0.5 * logvar) * noise[0]
        y = decode(self.vae, self.spoil(latent, noise[1], chance), lr)
        if self.faithful:
            y = project(y, lr)
        terms = {
            "l1": (y - x).abs().mean(),
            **self.perceptual(y, x, where),
            "kl": 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean(),
        }
        if adversary is not None:
            terms["adversarial"] = -adversary(y).float().mean()
        return {**total(self.weights, terms), "reconstruction": y.detach()}


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
    as_images = (e.flatten(0, 1)[:, None] for e in (eps, noise))
    return lpips(*as_images).mean()


class DiffusionLoss(nn.Module):
    """The loss of a prediction at random timesteps.

    "mse" is the squared error of ε (Ho et al. 2020, eq. 14), v (Salimans & Ho 2022) or z_0, as the preset predicts;
    "eps-lpips" the paper's wording. "eps-image" adds to the first what the prediction means in pixels:
    √ᾱ_t·(L1 + LPIPS) between the decoded ẑ_0 = (z_t - √(1-ᾱ_t)·ε_θ)/√ᾱ_t and the HR image, through the frozen decoder.
    """

    alpha_bar: Tensor

    def __init__(
        self,
        unet: UNet,
        alpha_bar: Tensor,
        kind: DiffusionLossKind = "mse",
        lpips: LPIPS | None = None,
        decoder: Decoder | None = None,
        image_weight: float = 0.0,
        prediction: Prediction = "eps",
    ) -> None:
        super().__init__()
        self.prediction = prediction
        self.unet, self.kind, self.lpips, self.decoder, self.image_weight = unet, kind, lpips, decoder, image_weight
        self.register_buffer("alpha_bar", alpha_bar)

    def forward(
        self, pairs: Tensor, t: Tensor, noise: Tensor, crops: tuple[Tensor, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """``pairs`` is [B, C + c, h, w]: z_0 and the condition; ``t`` int [B]; ``noise`` [B, C, h, w].

        ``crops``, for "eps-image": HR squares [b, 3, S, S] in [-1, 1] of b samples, evenly spread and the first among
        them, and where they lie in their latents, int [b, 2] (top, left).
        """
        channels = noise.shape[1]
        z_0, condition = pairs[:, :channels], pairs[:, channels:]
        a = self.alpha_bar[t][:, None, None, None]
        z_t = a.sqrt() * z_0 + (1 - a).sqrt() * noise
        v = a.sqrt() * noise - (1 - a).sqrt() * z_0
        target = {"eps": noise, "v": v, "x0": z_0}[self.prediction]
        predicted = self.unet(torch.cat([z_t, condition], dim=1), t).float()
        if self.kind == "eps-lpips":
            assert self.lpips is not None
            return {"loss": eps_lpips(self.lpips, predicted, target)}
        mse = F.mse_loss(predicted, target)
        if crops is None:
            return {"loss": mse}
        assert self.lpips is not None and self.decoder is not None
        hr, where = crops
        every, side = len(z_t) // len(hr), hr.shape[-1] // PAPER.vae.factor
        a = a[::every]
        z_hat = (z_t[::every] - (1 - a).sqrt() * predicted[::every]) / a.sqrt()
        z_crop = torch.stack(
            [z[:, i : i + side, j : j + side] for z, (i, j) in zip(z_hat, where.tolist(), strict=True)]
        )
        y = self.decoder(z_crop).float()
        distance = (y - hr).abs().mean(dim=(1, 2, 3)) + self.lpips(y, hr)
        image = (a.sqrt().flatten() * distance).mean()
        return {"mse": mse, "image": image, "loss": mse + self.image_weight * image}


class FewStepLoss(nn.Module):
    """What few denoising steps make of pure noise, in pixels: the sampler itself is trained, end to end.

    L1 + LPIPS of two samples of every image, less ``diversity`` times the mean absolute difference of the two. With
    LPIPS weighing nothing and ``diversity`` ½ that is the fair CRPS, which is smallest for samples of the posterior;
    with 0, the two would fall together. With ``teacher_steps`` the target is not HR but what the networks made of the
    same noise in so many steps before the training: distillation.
    """

    def __init__(
        self,
        unet: UNet,
        vae: VAE,
        perceptual: Perceptual,
        preset: Preset,
        diversity: float,
        faithful_share: float,
        teacher_steps: int = 0,
    ) -> None:
        super().__init__()
        self.networks = nn.ModuleDict({"unet": unet, "vae": vae})
        self.teacher = copy.deepcopy(self.networks).requires_grad_(False) if teacher_steps else None
        self.teacher_steps = teacher_steps
        self.perceptual, self.preset, self.faithful_share = perceptual, preset, faithful_share
        self.weights = {"l1": 1.0, **perceptual.weights, "apart": -diversity}

    def draw(self, networks: nn.ModuleDict, lr: Tensor, condition: Tensor, noise: Tensor, steps: int) -> Tensor:
        """One sample of each image: [B, C, 4h, 4w] in about [-1, 1], not yet projected."""
        unet, vae = networks["unet"], networks["vae"]

        def denoise(z_t: Tensor, t: int) -> Tensor:
            predicted: Tensor = unet(torch.cat([z_t, condition], dim=1), z_t.new_full((len(z_t), 1), t)).float()
            return predicted

        z_0 = draw_latents(denoise, lambda: noise, condition, self.preset.diffusion, steps, "ddim", "noise")
        mean, std = latent_scale(vae)
        return decode(vae, z_0 * std + mean, lr)

    def forward(
        self, x: Tensor, lr: Tensor, condition: Tensor, noise: Tensor, steps: int, chance: float, where: Tensor
    ) -> dict[str, Tensor]:
        """The loss of a batch.

        Args:
            x: HR images [B, C, 4h, 4w] in [-1, 1].
            lr: LR images [B, C, h, w].
            condition: what the U-Net sees of them.
            noise: standard normal, [2, B, 4, h/2, w/2].
            steps: of the sampler.
            chance: uniform in [0, 1): below ``faithful_share`` the samples are projected onto their LR images.
            where: see ``Perceptual``.
        """
        target, lr, condition = (torch.cat([a, a]) for a in (x, lr, condition))
        noise = noise.flatten(0, 1)
        y = self.draw(self.networks, lr, condition, noise, steps)
        if self.teacher is not None:
            with torch.no_grad():
                target = project(self.draw(self.teacher, lr, condition, noise, self.teacher_steps), lr)
        if chance < self.faithful_share:
            y = project(y, lr)
        one, other = y.chunk(2)
        terms = {
            "l1": (y - target).abs().mean(),
            **self.perceptual(y, target, where),
            "apart": (one - other).abs().mean(),
        }
        return total(self.weights, terms)
