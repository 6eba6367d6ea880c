"""Train the autoencoder with L1 + LPIPS + KL on random crops, or use a pretrained one.

python -m train.vae --data data/nih --vgg 0.1 --latent-noise 0.5 --latent-drop 0.15
python -m train.vae --data data/nih --resume
python -m train.vae --data data/nih --preset paper --vae stabilityai/sd-vae-ft-mse --steps 0
accelerate launch --num_processes 4 -m train.vae --data data/nih --batch 64
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL.Image import Image as Picture
from torch import Tensor
from tqdm import tqdm

from client.pictures import labelled_row
from pipeline.method.images import Image, from_network
from pipeline.networks.detail_vae import DetailVAE
from pipeline.networks.vae import VAE, decode, load_vae, make_vae, posterior, set_latent_scale
from pipeline.networks.weights import digest, save_vae
from train import checkpoint
from train.config import option, run_command
from train.data import PairDataset, draw_squares, validation_images
from train.loop import Task, device_of, train
from train.losses import AutoencoderLoss, Perceptual, project_cubic
from train.lpips import LPIPS
from train.setup import (
    Training,
    announce,
    begin,
    check_shares,
    metadata,
    preset_of,
    step_generator,
    weights_of,
)

MIN_CROP = 32
"""Minimum crop for LPIPS."""
SCALE_IMAGES = 200


@dataclass(frozen=True)
class VAETraining(Training):
    run_dir: Path = option(Path("runs/vae"), "folder for the checkpoint, logs and samples")
    vae: str = option("", "start from this autoencoder: a save_pretrained folder or hub name (paper), a file (best)")
    out: Path | None = option(None, "output folder for the weights (default: weights/PRESET)")
    steps: int = option(9000, "optimiser steps; 0: use the autoencoder of --vae without training")
    batch: int = option(4, "samples per step, over all processes")
    crop: int = option(128, "side of the training crops")
    whole_every: int = option(16, "steps between batches of whole images, for normalisation; 0: never")
    rate: float = option(4e-4, "peak learning rate of AdamW; cosine to 0")
    warmup: int = option(200, "steps of linear warm-up")
    lpips: float = option(0.3, "weight of LPIPS (AlexNet) relative to L1")
    vgg: float = option(0.0, "weight of LPIPS (VGG16), computed on a subset of samples")
    kl: float = option(1e-4, "weight of the KL divergence, averaged over latent elements")
    latent_noise: float = option(0.0, "maximum standard deviation of noise on the decoder's latents")
    latent_drop: float = option(0.0, "share of latents replaced by zeros for the decoder; best only")


def draw_crops(images: PairDataset, config: VAETraining, step: int, share: slice) -> tuple[Tensor, ...]:
    """Draw the arguments of ``AutoencoderLoss`` for the samples in ``share`` of a step's batch."""
    preset = preset_of(config)
    whole = config.whole_every and step % config.whole_every == config.whole_every - 1
    size = preset.data.hr_size if whole else config.crop
    lr, hr = draw_squares(images, size, [(config.seed, step, sample) for sample in range(config.batch)[share]])
    z, generator = size // preset.vae.factor, step_generator(config, step)
    noise = torch.randn((2, config.batch, preset.vae.latent_channels, z, z), generator=generator)[:, share]
    chance = torch.rand((config.batch, 2), generator=generator)[share]
    return hr, lr, noise, chance, torch.rand(2, generator=generator)


@torch.no_grad()
def reconstruct(vae: VAE, pair: tuple[Tensor, Tensor], faithful: bool) -> Tensor:
    """Decode the posterior mean of one (LR, HR) pair: [1, C, H, W] in [-1, 1]."""
    lr, hr = (image[None].to(device_of(vae)) for image in pair)
    y = decode(vae, posterior(vae, hr, lr)[0], lr)
    return (project_cubic(y, lr) if faithful else y).clamp(-1, 1)


def validation_loss(vae: VAE, images: PairDataset, lpips: LPIPS, weight: float, faithful: bool) -> float:
    """Return the mean of L1 + weight·LPIPS over reconstructions of whole images."""
    total = 0.0
    for i in range(len(images)):
        y = reconstruct(vae, images[i], faithful)
        x = images[i][1][None].to(y.device)
        total += float((y - x).abs().mean()) + weight * float(lpips(y, x))
    return total / len(images)


def reconstructions(vae: VAE, images: PairDataset, faithful: bool) -> Picture:
    """Draw two images, each next to its reconstruction."""
    panels: list[tuple[str, str, Image]] = []
    for i in range(min(2, len(images))):
        y = reconstruct(vae, images[i], faithful).cpu()
        panels += [("HR", "", images.unit_images(i)[1]), ("decoded", "", from_network(y[0].numpy()))]
    return labelled_row(panels)


@torch.no_grad()
def raw_latents(vae: VAE, images: PairDataset) -> Tensor:
    """Encode whole images: [N, C, h, w]."""
    device = device_of(vae)
    pairs = (images[i] for i in range(len(images)))
    return torch.cat([posterior(vae, hr[None].to(device), lr[None].to(device))[0].cpu() for lr, hr in pairs])


def check(config: VAETraining) -> None:
    """Raise ValueError for invalid or incompatible options."""
    preset = preset_of(config)
    factor, size = preset.vae.factor, preset.data.hr_size
    if config.crop % factor or not MIN_CROP <= config.crop <= size:
        raise ValueError(f"--crop must be a multiple of {factor}, {MIN_CROP}–{size}, got {config.crop}")
    if config.steps == 0 and not config.vae:
        raise ValueError("--steps 0 needs a pretrained --vae")
    check_shares(latent_drop=config.latent_drop)
    if config.latent_noise < 0:
        raise ValueError(f"--latent-noise must be at least 0, got {config.latent_noise:g}")
    if config.latent_drop and not preset.vae.sees_lr:
        raise ValueError(f"--latent-drop must be 0 for preset '{preset.name}', whose decoder sees only the latent")


def train_vae(config: VAETraining) -> None:
    """Train, and save the averaged weights with the lowest validation loss; with 0 steps, save ``config.vae``.

    Raises:
        ValueError, OSError, FloatingPointError: see ``train.loop.train``.
    """
    check(config)
    preset, accelerator, files, description = begin(config)
    torch.manual_seed(config.seed)
    vae = load_vae(config.vae, preset.vae).train() if config.vae else make_vae(preset.vae)
    if isinstance(vae, DetailVAE):  # trained separately, later
        vae.restorer.requires_grad_(False)
        vae.doubt.requires_grad_(False)
        vae.presentation.requires_grad_(False)
    validation = validation_images(files["val"], preset.data)
    images = PairDataset(files["train"], preset.data)
    found: dict[str, object] = {}
    if config.steps:
        announce(config, accelerator, description, vae)
        inputs = {"files": checkpoint.files_digest(files["train"])} | ({"vae": digest(vae)} if config.vae else {})
        perceptual = Perceptual(config.lpips, config.vgg)
        loss = AutoencoderLoss(
            vae,
            perceptual,
            config.kl,
            faithful=preset.faithful,
            latent_noise=config.latent_noise,
            latent_drop=config.latent_drop,
        )
        task = Task(
            name="vae",
            loss=loss,
            network="vae",
            batch=lambda step, share: draw_crops(images, config, step, share),
            validate=lambda vae: validation_loss(vae, validation, perceptual.alex, config.lpips, preset.faithful),
            picture=lambda vae: reconstructions(vae, validation, preset.faithful),
            inputs=inputs,
        )
        result = train(task, config, accelerator)
        vae, found = result.network, result.metadata
    if not accelerator.is_main_process:
        return
    mean, std = set_latent_scale(vae, raw_latents(vae, PairDataset(files["train"][:SCALE_IMAGES], preset.data)))
    out = weights_of(config, config.out)
    save_vae(vae, out, metadata(config, description, vae, latent_mean=mean, latent_std=std, **found))
    tqdm.write(f"wrote the autoencoder and vae.json into '{out}'")


def main(argv: list[str] | None = None) -> int:
    return run_command(VAETraining, train_vae, __doc__ or "", argv)


if __name__ == "__main__":
    sys.exit(main())
