"""Train the autoencoder, or take a pretrained one: L1 + LPIPS + KL on random crops, optionally adversarial.

python -m train.vae --data data/nih --out weights/paper
python -m train.vae --data data/nih --resume
python -m train.vae --data data/nih --adversarial 0.05 --run-dir runs/vae-gan
python -m train.vae --data data/nih --vae stabilityai/sd-vae-ft-mse --steps 0
accelerate launch --num_processes 4 -m train.vae --data data/nih --batch 64
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL.Image import Image as Picture
from torch import Tensor
from tqdm import tqdm

from pipeline.images import Image, from_network
from pipeline.pictures import labelled_row
from pipeline.vae import load_vae, make_vae, set_latent_scale
from pipeline.weights import digest, save_vae
from train import checkpoint
from train.augment import random_crop
from train.config import option, run_command
from train.data import PairDataset, as_network, read_gray
from train.loop import Task, device_of, train
from train.losses import AdversaryLoss, AutoencoderLoss, Discriminator
from train.lpips import LPIPS
from train.plan import (
    Training,
    announce,
    make_accelerator,
    metadata,
    preset_of,
    split_files,
    step_generator,
)

WHOLE_STEPS = 16
LEAST_CROP = 32
"""LPIPS takes no smaller images."""
VALIDATION_IMAGES = 32
SCALE_IMAGES = 200


@dataclass(frozen=True)
class VAETraining(Training):
    run_dir: Path = option(Path("runs/vae"), "folder of the checkpoint, logs and pictures")
    vae: str = option("", "start from this autoencoder: a save_pretrained folder or a hub name")
    out: Path = option(Path("weights/paper"), "where the weights go")
    steps: int = option(9000, "optimiser steps; 0 takes the autoencoder of --vae as it is")
    batch: int = option(4, "samples a step, over all processes")
    crop: int = option(128, "side of the crops that the network sees but for every 16th step, which takes whole images")
    rate: float = option(4e-4, "peak learning rate of AdamW; cosine to 0")
    warmup: int = option(200, "steps in which the rate rises linearly")
    lpips: float = option(0.3, "weight of LPIPS (AlexNet) beside L1")
    kl: float = option(1e-4, "weight of the KL divergence, mean over latent elements")
    adversarial: float = option(0.0, "weight of a patch discriminator's opinion; 0: none")


def draw_crops(paths: list[Path], config: VAETraining, step: int, share: slice) -> tuple[Tensor, Tensor]:
    """(images [b, 3, S, S] in [-1, 1], latent noise [b, 4, S/8, S/8]) of a step's samples that are in ``share``.

    S is ``config.crop``, but every 16th step the whole image's side: the networks normalise over all they see.
    """
    preset = preset_of(config)
    size = preset.data.hr_size if step % WHOLE_STEPS == WHOLE_STEPS - 1 else config.crop
    images = []
    for sample in range(config.batch)[share]:
        rng = np.random.default_rng([config.seed, step, sample])
        image = read_gray(paths[rng.integers(len(paths))], preset.data.hr_size)
        images.append(as_network(random_crop(image, size, rng), preset.data.channels))
    z = size // preset.vae.factor
    shape = (config.batch, preset.vae.latent_channels, z, z)
    noise = torch.randn(shape, generator=step_generator(config, step))[share]
    return torch.stack(images), noise


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, x: Tensor) -> Tensor:
    """The decoded mean of the posterior."""
    y: Tensor = vae.decode(vae.encode(x).latent_dist.mean).sample
    return y.clamp(-1, 1)


def validation_loss(vae: AutoencoderKL, images: PairDataset, lpips: LPIPS, weight: float) -> float:
    """Mean of L1 + weight·LPIPS of the reconstructions of whole images."""
    total = 0.0
    for i in range(len(images)):
        x = images[i][1][None].to(device_of(vae))
        y = reconstruct(vae, x)
        total += float((y - x).abs().mean()) + weight * float(lpips(y, x))
    return total / len(images)


def reconstructions(vae: AutoencoderKL, images: PairDataset) -> Picture:
    """Two images, each beside its reconstruction."""
    panels: list[tuple[str, str, Image]] = []
    for i in range(min(2, len(images))):
        x = images[i][1][None]
        y = reconstruct(vae, x.to(device_of(vae))).cpu()
        panels += [("HR", "", from_network(x[0].numpy())), ("decoded", "", from_network(y[0].numpy()))]
    return labelled_row(panels)


@torch.no_grad()
def latent_statistics(vae: AutoencoderKL, images: PairDataset) -> tuple[float, float]:
    """Mean and standard deviation of the raw latents of training images."""
    latents = [vae.encode(images[i][1][None].to(device_of(vae))).latent_dist.mean.cpu() for i in range(len(images))]
    z = torch.cat(latents)
    return float(z.mean()), float(z.std())


def check(config: VAETraining) -> None:
    """Raises ValueError for options that do not go together."""
    preset = preset_of(config)
    factor, size = preset.vae.factor, preset.data.hr_size
    if config.crop % factor or not LEAST_CROP <= config.crop <= size:
        raise ValueError(f"--crop {config.crop}: it must be a multiple of {factor} from {LEAST_CROP} to {size}")
    if config.steps == 0 and not config.vae:
        raise ValueError("--steps 0 trains nothing: it needs a pretrained --vae")
    if config.adversarial and config.precision == "fp16":
        raise ValueError("--adversarial does not go with --precision fp16; allowed are bf16 and fp32")


def train_vae(config: VAETraining) -> None:
    """Train, and save the averaged weights that validated best; with 0 steps save ``config.vae`` itself.

    Raises:
        ValueError, OSError, FloatingPointError: see ``train.loop.train``.
    """
    check(config)
    preset = preset_of(config)
    accelerator = make_accelerator(config)
    torch.manual_seed(config.seed)
    files, description = split_files(config)
    vae = load_vae(config.vae, preset.vae).train() if config.vae else make_vae(preset.vae)
    lpips = LPIPS("alex")
    every = max(1, len(files["val"]) // VALIDATION_IMAGES)
    validation = PairDataset(files["val"][::every][:VALIDATION_IMAGES], preset.data)
    found: dict[str, object] = {}
    if config.steps:
        announce(config, accelerator, description, vae)
        inputs = {"files": checkpoint.files_digest(files["train"])} | ({"vae": digest(vae)} if config.vae else {})
        task = Task(
            name="vae",
            loss=AutoencoderLoss(vae, lpips, config.lpips, config.kl, config.adversarial),
            network="vae",
            batch=lambda step, share: draw_crops(files["train"], config, step, share),
            validate=lambda network: validation_loss(network, validation, lpips, config.lpips),
            picture=lambda network: reconstructions(network, validation),
            inputs=inputs,
            adversary=AdversaryLoss(Discriminator(preset.data.channels)) if config.adversarial else None,
        )
        result = train(task, config, accelerator)
        vae, found = result.network, result.metadata
    if not accelerator.is_main_process:
        return
    mean, std = latent_statistics(vae, PairDataset(files["train"][:SCALE_IMAGES], preset.data))
    set_latent_scale(vae, mean, std)
    save_vae(vae, config.out, metadata(config, description, vae, latent_mean=mean, latent_std=std, **found))
    tqdm.write(f"wrote '{config.out}/vae'; latent mean {mean:.4f}, standard deviation {std:.4f}")


def main(argv: list[str] | None = None) -> int:
    return run_command(VAETraining, train_vae, __doc__ or "", argv)


if __name__ == "__main__":
    sys.exit(main())
