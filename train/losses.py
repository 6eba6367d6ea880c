"""Training losses as modules: each loss is a single ``forward``, as distributed training requires.

Each ``forward`` returns its terms by name; "loss" is the one to minimise.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import lru_cache
from itertools import product

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.method.reduction import Matrix, gram_inverse, matrix
from pipeline.method.upscale import draw_latents
from pipeline.networks.detail_vae import DetailVAE
from pipeline.networks.restorer import Restorer, detail_of
from pipeline.networks.unet import UNet
from pipeline.networks.vae import VAE, decode, posterior
from pipeline.presets import Preset
from pipeline.spec import REDUCTIONS, SCALE, Prediction, ReductionName
from train.lpips import LPIPS

CLEAN = 0.8
"""Standard deviation of noise and compression, in gray levels, below which an LR image counts as clean."""
HISTORY_WEIGHT = 0.3
"""Weight of the restorer's own loss when it trains with the other networks."""


class Perceptual(nn.Module):
    """LPIPS of images [B, C, H, W] in [-1, 1] by AlexNet on all images and VGG16, which is slow, on some.

    In training, VGG16 sees a random 128² square of one image in four.
    """

    SHARE, SIDE = 4, 128

    def __init__(self, alex_weight: float, vgg_weight: float = 0.0) -> None:
        super().__init__()
        self.alex = LPIPS("alex")
        self.vgg = LPIPS("vgg", fast=True) if vgg_weight else None
        self.weights = {"lpips": alex_weight, "vgg": vgg_weight}

    def square(self, u: Tensor, n: int) -> Tensor:
        """Return the indices of the square's rows or columns, out of n, computed on the device without waiting."""
        first = (u.double() * max(1, n - self.SIDE + 1)).long()
        return first + torch.arange(min(self.SIDE, n), device=u.device)

    def forward(
        self, y: Tensor, x: Tensor, where: Tensor | None = None, emphasis: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return the terms "lpips" and, if it has a weight, "vgg".

        Args:
            y: images.
            x: reference images.
            where: uniform in [0, 1), [2]: vertical and horizontal position of VGG16's square; None: all of all images.
            emphasis: [B], factor on each image's AlexNet LPIPS; None: 1.
        """
        distances = self.alex(y, x).flatten()
        terms = {"lpips": (distances if emphasis is None else emphasis * distances).mean()}
        if self.vgg is not None:
            if where is not None:
                rows, columns = (self.square(u, n) for u, n in zip(where, y.shape[2:], strict=True))
                y, x = (a[:: self.SHARE].index_select(2, rows).index_select(3, columns) for a in (y, x))
            terms["vgg"] = self.vgg(y, x).mean()
        return terms


def inverse(name: ReductionName, n: int) -> Matrix:
    """Return the pseudoinverse of ``matrix``, float32 [4n, n]."""
    return matrix(name, n).T @ gram_inverse(name, n)


@torch.compiler.disable  # type: ignore[untyped-decorator]  # they use OpenCV and Pillow
@lru_cache(maxsize=32)
def all_matrices(make: Callable[[ReductionName, int], Matrix], n: int, device: torch.device) -> Tensor:
    """Return the matrices of all ``REDUCTIONS`` on a device, cached."""
    return torch.from_numpy(np.stack([make(name, n) for name in REDUCTIONS])).to(device)


def project(y: Tensor, lr: Tensor, reduction: Tensor, chosen: Tensor) -> Tensor:
    """Project y [B, C, 4h, 4w] onto the nearest images that reduce to lr, in [-1, 1], where ``chosen`` [B].

    Results are not clipped, so every pixel has a gradient. ``reduction``, int64 [B], is the reduction of each image.
    """
    matrices = (all_matrices(make, n, y.device) for make, n in product((matrix, inverse), lr.shape[2:]))
    down_rows, down_columns, up_rows, up_columns = (m[reduction.clamp(max=len(REDUCTIONS) - 1), None] for m in matrices)
    # in bfloat16 the products would be off by half a gray level
    with torch.autocast(y.device.type, enabled=False):
        missing = lr - (down_rows @ y @ down_columns.mT).clamp(-1.0, 1.0)
        return y + chosen[:, None, None, None] * (up_rows @ missing @ up_columns.mT)


def project_cubic(y: Tensor, lr: Tensor) -> Tensor:
    """Project all images by the paper's reduction."""
    number = torch.full((len(y),), REDUCTIONS.index("cubic"), device=y.device)
    return project(y, lr, number, torch.ones(len(y), device=y.device))


def total(weights: Mapping[str, float], terms: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add the weighted sum of the terms, "loss", to them."""
    return {**terms, "loss": torch.stack([weights[name] * term for name, term in terms.items()]).sum()}


class AutoencoderLoss(nn.Module):
    """L1 + LPIPS + KL of a reconstruction through a sampled latent.

    Latents may be corrupted, so that a decoder that sees the LR image does not rely on details that a denoiser will get
    wrong: by noise with a deviation up to ``latent_noise``, or by zeroing with probability ``latent_drop``.
    """

    def __init__(
        self,
        vae: VAE,
        perceptual: Perceptual,
        kl_weight: float,
        *,
        faithful: bool = False,
        latent_noise: float = 0.0,
        latent_drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.vae, self.perceptual, self.faithful = vae, perceptual, faithful
        self.latent_noise, self.latent_drop = latent_noise, latent_drop
        self.weights = {"l1": 1.0, **perceptual.weights, "kl": kl_weight}

    def corrupt(self, latent: Tensor, noise: Tensor, chance: Tensor) -> Tensor:
        strength, kept = self.latent_noise * chance[:, 0], (chance[:, 1] >= self.latent_drop).float()
        return (latent + strength[:, None, None, None] * noise) * kept[:, None, None, None]

    def forward(self, x: Tensor, lr: Tensor, noise: Tensor, chance: Tensor, where: Tensor) -> dict[str, Tensor]:
        """Return the loss of a batch.

        Args:
            x: images [B, C, H, W] in [-1, 1].
            lr: their LR images.
            noise: standard normal, [2, B, 4, H/8, W/8]: for the posterior, and for corrupting latents.
            chance: uniform in [0, 1), [B, 2]: strength of the noise, and whether the latent is dropped.
            where: see ``Perceptual``.

        Returns:
            "l1", "lpips", "vgg" if it has a weight, "kl" (mean over latent elements), "loss", and the image,
            "reconstruction".
        """
        mean, logvar = posterior(self.vae, x, lr)
        latent = mean + torch.exp(0.5 * logvar) * noise[0]
        y = decode(self.vae, self.corrupt(latent, noise[1], chance), lr)
        if self.faithful:
            y = project_cubic(y, lr)
        terms = {
            "l1": (y - x).abs().mean(),
            **self.perceptual(y, x, where),
            "kl": 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean(),
        }
        return {**total(self.weights, terms), "reconstruction": y.detach()}


class DiffusionLoss(nn.Module):
    """Squared error of the prediction at random timesteps: ε (Ho et al. 2020, eq. 14) or v (Salimans & Ho 2022)."""

    alpha_bar: Tensor

    def __init__(self, unet: UNet, alpha_bar: Tensor, prediction: Prediction) -> None:
        super().__init__()
        self.unet, self.prediction = unet, prediction
        self.register_buffer("alpha_bar", alpha_bar)

    def forward(self, pairs: Tensor, t: Tensor, noise: Tensor) -> dict[str, Tensor]:
        """Return the loss of a batch.

        Args:
            pairs: z_0 and the condition, [B, C + c, h, w].
            t: timesteps, int [B].
            noise: standard normal, [B, C, h, w].
        """
        channels = noise.shape[1]
        z_0, condition = pairs[:, :channels], pairs[:, channels:]
        a = self.alpha_bar[t][:, None, None, None]
        z_t = a.sqrt() * z_0 + (1 - a).sqrt() * noise
        v = a.sqrt() * noise - (1 - a).sqrt() * z_0
        target = {"eps": noise, "v": v}[self.prediction]
        predicted = self.unet(torch.cat([z_t, condition], dim=1), t).float()
        return {"loss": F.mse_loss(predicted, target)}


class Networks(nn.Module):
    """Both networks of the upscaler."""

    def __init__(self, unet: UNet, vae: DetailVAE) -> None:
        super().__init__()
        self.unet, self.vae = unet, vae

    def draw(self, restored: Tensor, noise: Tensor, steps: int, preset: Preset) -> Tensor:
        """Draw one sample of each restored LR image; return features for ``DetailVAE.image``."""
        condition = F.pixel_unshuffle(restored, preset.vae.factor // SCALE)

        def denoise(z_t: Tensor, t: int) -> Tensor:
            predicted: Tensor = self.unet(torch.cat([z_t, condition], dim=1), z_t.new_full((len(z_t), 1), t)).float()
            return predicted

        z_0 = draw_latents(denoise, lambda: noise, condition, preset.diffusion, steps, "ddim", "noise")
        return self.vae.features(z_0 * self.vae.latent_std + self.vae.latent_mean, restored)


class FewStepLoss(nn.Module):
    """End-to-end loss of the few-step sampler, in pixels.

    L1 + LPIPS of two samples of each image, minus ``diversity`` times the mean absolute difference of the two. Without
    LPIPS and with ``diversity`` ½, this is the fair CRPS, which is smallest for samples from the posterior; with 0, the
    two would coincide, so only one is drawn. LPIPS is multiplied by ``changed`` where noise or compression changed the
    LR image, which L1 alone would leave blurred, and by ``averaged`` for reductions other than the protocol's. The
    restorer trains with them, and continues to learn the history.
    """

    def __init__(
        self,
        unet: UNet,
        vae: DetailVAE,
        perceptual: Perceptual,
        preset: Preset,
        diversity: float,
        faithful_share: float,
        averaged: float = 1.0,
        changed: float = 1.0,
    ) -> None:
        super().__init__()
        self.samples = 2 if diversity else 1
        self.averaged, self.changed = averaged, changed
        self.networks = Networks(unet, vae)
        self.history = HistoryLoss(vae.restorer)
        self.perceptual, self.preset, self.faithful_share = perceptual, preset, faithful_share
        history_weights = {name: HISTORY_WEIGHT * weight for name, weight in self.history.weights.items()}
        self.weights = {"l1": 1.0, **perceptual.weights, "apart": -diversity, **history_weights}

    def forward(
        self,
        x: Tensor,
        lr: Tensor,
        protocol: Tensor,
        reduction: Tensor,
        level: Tensor,
        noise: Tensor,
        steps: int,
        chance: float,
        where: Tensor,
    ) -> dict[str, Tensor]:
        """Return the loss of a batch.

        Args:
            x: HR images [B, C, 4h, 4w] in [-1, 1].
            lr: LR images [B, C, h, w] with any history.
            protocol: LR images made by the paper's protocol.
            reduction: int64 [B], reduction of ``lr``, see ``HistoryLoss``.
            level: [B], standard deviation of noise and compression in ``lr``, in gray levels.
            noise: standard normal, [2, B, 4, h/2, w/2], for both samples.
            steps: number of sampler steps.
            chance: uniform in [0, 1): below ``faithful_share``, samples of clean LR images are projected onto them.
            where: see ``Perceptual``.
        """
        vae = self.networks.vae
        restored, predicted = vae.restorer(lr)
        history = self.history.terms(restored, predicted, protocol, reduction, level)
        again = [self.samples, 1, 1, 1]
        seen = restored.repeat(again)
        y = vae.image(self.networks.draw(seen, noise[: self.samples].flatten(0, 1), steps, self.preset), seen)
        clean = level < CLEAN
        if chance < self.faithful_share:
            known = clean & (reduction < len(REDUCTIONS))
            y = project(y, lr.repeat(again), reduction.repeat(self.samples), known.repeat(self.samples))
        is_protocol = reduction == REDUCTIONS.index("cubic")
        factor = torch.where(clean, torch.where(is_protocol, 1.0, self.averaged), self.changed)
        target = x.repeat(again)
        terms = {
            "l1": (y - target).abs().mean(),
            **self.perceptual(y, target, where, factor.repeat(self.samples)),
            "apart": (y[: len(x)] - y[-len(x) :]).abs().mean(),
            **history,
        }
        return total(self.weights, terms)


class DoubtLoss(nn.Module):
    """Pinball loss of the doubt: minimal if 90 % of errors are within it.

    The networks that made the image are frozen.
    """

    SHARE = 0.9

    def __init__(self, unet: UNet, vae: DetailVAE, preset: Preset, doubt: nn.Module | None = None) -> None:
        super().__init__()
        self.doubt = vae.doubt if doubt is None else doubt
        self.frozen = copy.deepcopy(Networks(unet, vae)).requires_grad_(False).eval()
        self.preset = preset

    def draw(self, lr: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return one sample of each image, [B, 1, 4h, 4w] in about [-1, 1], and its doubt in the gray scale [0, 1]."""
        vae = self.frozen.vae
        with torch.no_grad():
            restored, history = vae.restorer(lr)
            features = self.frozen.draw(restored, noise, self.preset.diffusion.ddim_steps, self.preset)
            y = vae.image(features, restored)
        doubt: Tensor = self.doubt(features, lr, restored, history)
        return y, doubt

    def forward(self, x: Tensor, lr: Tensor, reduction: Tensor, level: Tensor, noise: Tensor) -> dict[str, Tensor]:
        """Return the loss of a batch; arguments as in ``FewStepLoss``, but ``noise`` is [B, 4, h/2, w/2]."""
        y, width = self.draw(lr, noise)
        clean = (reduction < len(REDUCTIONS)) & (level < CLEAN)
        beyond = 255 * ((project(y, lr, reduction, clean).clamp(-1, 1) - x).abs() / 2 - width)
        return {"loss": torch.maximum(self.SHARE * beyond, (self.SHARE - 1) * beyond).mean()}


class HistoryLoss(nn.Module):
    """Loss of the restorer: error of the restored LR image and the history's terms, or the latter alone."""

    GAIN = 20.0

    def __init__(self, restorer: Restorer, only_history: bool = False) -> None:
        super().__init__()
        self.restorer, self.only_history = restorer, only_history
        self.weights = {"restored": 1.0, "reduction": 0.005, "noise": 0.005}

    def forward(self, lr: Tensor, protocol: Tensor, reduction: Tensor, noise: Tensor) -> dict[str, Tensor]:
        """Return the loss of a batch.

        Args:
            lr: LR images [B, 1, h, w] in [-1, 1].
            protocol: the restorer's targets.
            reduction: int64 [B], indices of the reductions.
            noise: [B], standard deviation of noise and compression, in gray levels.
        """
        if self.only_history:
            return total(self.weights, self.history_terms(self.restorer.history(detail_of(lr)), reduction, noise))
        restored, history = self.restorer(lr)
        return total(self.weights, self.terms(restored, history, protocol, reduction, noise))

    def terms(
        self, restored: Tensor, history: Tensor, protocol: Tensor, reduction: Tensor, noise: Tensor
    ) -> dict[str, Tensor]:
        """Return the terms of a restorer's outputs."""
        error = F.smooth_l1_loss(self.GAIN * restored, self.GAIN * protocol) / self.GAIN
        return {"restored": error, **self.history_terms(history, reduction, noise)}

    def history_terms(self, history: Tensor, reduction: Tensor, noise: Tensor) -> dict[str, Tensor]:
        """Return the terms of a history."""
        return {
            "reduction": F.cross_entropy(history[:, :-1], reduction),
            "noise": (history[:, -1] - noise.log()).abs().mean(),
        }


class PresentationLoss(nn.Module):
    """Cross-entropy of the predicted presentation."""

    def __init__(self, presentation: nn.Module) -> None:
        super().__init__()
        self.presentation = presentation

    def forward(self, lr: Tensor, number: Tensor) -> dict[str, Tensor]:
        """Return the loss: ``lr`` is [B, 1, h, w] in [-1, 1], ``number`` int64 [B], an index in ``PRESENTATIONS``."""
        return {"loss": F.cross_entropy(self.presentation(lr), number)}
