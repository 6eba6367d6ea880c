"""Train the denoising U-Net on cached latents, to predict ε or v, depending on the preset.

python -m train.unet --data data/nih --augment
python -m train.unet --data data/nih --resume
accelerate launch --num_processes 4 -m train.unet --data data/nih --batch 256
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL.Image import Image as Picture
from torch import Tensor
from tqdm import tqdm

from client.pictures import comparison
from pipeline.method.options import Options
from pipeline.method.schedule import make_schedule
from pipeline.method.upscale import upscale
from pipeline.networks.eager import Eager
from pipeline.networks.unet import UNet
from pipeline.networks.vae import VAE, Decoder, Encoder, load_vae, vae_path
from pipeline.networks.weights import digest, load_unet, save_unet
from pipeline.presets import Preset
from train import checkpoint
from train.config import option, run_command
from train.data import PairDataset
from train.latents import cached_latents
from train.loop import Task, device_of, train
from train.losses import DiffusionLoss
from train.paper import AUGMENTATION
from train.setup import Training, announce, begin, metadata, step_generator, weights_of

SAMPLE_STEPS = 20
VALIDATION_BATCH = 64


@dataclass(frozen=True)
class UNetTraining(Training):
    run_dir: Path = option(Path("runs/unet"), "folder for the latents, checkpoint, logs and samples")
    weights: Path | None = option(None, "folder with the autoencoder (default: weights/PRESET)")
    unet: Path | None = option(None, "weights folder with a U-Net to start from")
    out: Path | None = option(None, "output folder for the weights (default: --weights)")
    steps: int = option(6000, "optimiser steps")
    batch: int = option(64, "samples per step, over all processes")
    rate: float = option(1e-3, "peak learning rate of AdamW; cosine to 0")
    augment: bool = option(False, "augment images with the preset's augmentation before encoding")
    passes: int = option(4, "with --augment: augmented versions of each training image")


def draw_samples(config: UNetTraining, preset: Preset, latents: Tensor, step: int, share: slice) -> tuple[Tensor, ...]:
    """Draw the arguments of ``DiffusionLoss`` for the samples in ``share`` of a step's batch."""
    generator = step_generator(config, step)
    chosen = torch.randint(len(latents), (config.batch,), generator=generator)[share]
    t = torch.randint(preset.diffusion.T, (config.batch,), generator=generator)[share]
    size = (config.batch, preset.vae.latent_channels, *latents.shape[2:])
    noise = torch.randn(size, generator=generator)[share]
    return latents[chosen].float(), t, noise


@torch.no_grad()
def validation_loss(unet: UNet, latents: Tensor, alpha_bar: Tensor, preset: Preset) -> float:
    """Return the mean squared error on all pairs with fixed noise and timesteps."""
    generator = torch.Generator().manual_seed(0)
    device, total = device_of(unet), 0.0
    loss = DiffusionLoss(unet, alpha_bar, preset.diffusion.prediction).to(device)
    for pairs in torch.split(latents.float(), VALIDATION_BATCH):
        t = torch.randint(len(alpha_bar), (len(pairs),), generator=generator)
        noise = torch.randn(pairs[:, : preset.vae.latent_channels].shape, generator=generator)
        total += float(loss(pairs.to(device), t.to(device), noise.to(device))["loss"]) * len(pairs)
    return total / len(latents)


def check_folders(weights: Path, out: Path, vae: VAE, preset: Preset) -> None:
    """Raise ValueError if ``out`` has another autoencoder than the one used for training."""
    there = vae_path(out, preset.vae)
    if there.exists() and digest(load_vae(there, preset.vae)) != digest(vae):
        raise ValueError(f"'{out}' has another autoencoder than '{weights}': use another --out")


def copy_vae(weights: Path, out: Path, preset: Preset) -> None:
    """Copy the autoencoder from one weights folder to another."""
    source = vae_path(weights, preset.vae)
    if source.is_dir():
        shutil.copytree(source, out / source.name, dirs_exist_ok=True)
    else:
        shutil.copy(source, out)
    shutil.copy(weights / "vae.json", out)


def train_unet(config: UNetTraining) -> None:
    """Train, and save the averaged weights with the lowest validation loss.

    Raises:
        ValueError, OSError, FloatingPointError: see ``train.loop.train``.
    """
    if config.passes < 1:
        raise ValueError(f"--passes must be at least 1, got {config.passes}")
    preset, accelerator, files, description = begin(config)
    weights = weights_of(config, config.weights)
    vae = load_vae(vae_path(weights, preset.vae), preset.vae).requires_grad_(False)
    out = config.out or weights
    check_folders(weights, out, vae, preset)
    torch.manual_seed(config.seed)
    unet = load_unet(config.unet, preset).train() if config.unet else UNet(preset.unet)
    announce(config, accelerator, description, unet)
    pairs = PairDataset(
        files["train"],
        preset.data,
        AUGMENTATION[preset.name] if config.augment else None,
        config.passes if config.augment else 1,
        config.seed,
    )
    validation = PairDataset(files["val"], preset.data)
    inputs = {"vae": digest(vae), "files": checkpoint.files_digest(files["train"])}
    with accelerator.main_process_first():
        latents = cached_latents(
            config.run_dir / "latents.pt",
            {"passes": pairs.passes, "augment": config.augment, "seed": config.seed, "split": config.split, **inputs},
            Encoder(vae),
            {"train": pairs, "val": validation},
            preset,
            accelerator.device,
        )
    alpha_bar = torch.from_numpy(make_schedule(preset.diffusion).alpha_bar).float()
    lr, hr = validation.unit_images(0)

    def picture(network: UNet) -> Picture:
        device = device_of(network)
        system = Eager(Encoder(vae), network, Decoder(vae.to(device)), preset, device)
        generate = system.generator(Options.of(preset, steps=SAMPLE_STEPS, sampler="ddim"))
        return comparison(lr, upscale([lr], [0], generate, preset)[0].upscaled, hr)

    task = Task(
        name="unet",
        loss=DiffusionLoss(unet, alpha_bar, preset.diffusion.prediction),
        network="unet",
        batch=lambda step, share: draw_samples(config, preset, latents["train"], step, share),
        validate=lambda network: validation_loss(network, latents["val"], alpha_bar, preset),
        picture=picture,
        inputs=inputs | ({"unet": digest(unet)} if config.unet else {}),
    )
    result = train(task, config, accelerator)
    if not accelerator.is_main_process:
        return
    found = {"vae": inputs["vae"], "latents": len(latents["train"]), **result.metadata}
    save_unet(result.network, out, metadata(config, description, result.network, **found))
    if out.resolve() != weights.resolve():
        copy_vae(weights, out, preset)
    tqdm.write(f"wrote '{out}/unet.safetensors'")


def main(argv: list[str] | None = None) -> int:
    return run_command(UNetTraining, train_unet, __doc__ or "", argv)


if __name__ == "__main__":
    sys.exit(main())
