"""Train the denoising U-Net on cached latents, by predicting ε.

python -m train.unet --data data/nih --weights weights/paper
python -m train.unet --data data/nih --resume
python -m train.unet --data data/nih --loss eps-lpips --run-dir runs/eps-lpips --out weights/eps-lpips
accelerate launch --num_processes 4 -m train.unet --data data/nih --batch 256
"""

from __future__ import annotations

import datetime
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL.Image import Image as Picture
from torch import Tensor
from tqdm import tqdm

from pipeline.eager import Eager
from pipeline.pictures import comparison
from pipeline.schedule import make_schedule
from pipeline.spec import Preset
from pipeline.unet import UNet
from pipeline.vae import Decoder, Encoder, load_vae
from pipeline.weights import load_unet, save_unet
from train import checkpoint
from train.config import option, run_command, settings
from train.data import PairDataset, as_network
from train.latents import cached_latents
from train.loop import Task, Training, describe_split, make_accelerator, preset_of, split_files, step_generator, train
from train.losses import DiffusionLoss, EpsLoss
from train.lpips import LPIPS

CROP = 16
"""Side, in latent pixels, of what "eps-image" decodes: whole images would cost four times as much."""

SAMPLE_STEPS = 20


@dataclass(frozen=True)
class UNetTraining(Training):
    run_dir: Path = option(Path("runs/unet"), "folder of the latents, checkpoint, logs and pictures")
    weights: Path = option(Path("weights/paper"), "folder with the autoencoder, vae/")
    unet: Path | None = option(None, "weights folder with a U-Net to start from, such as a finished --out")
    loss: EpsLoss = option("eps-mse", "eps-lpips is the paper's wording", choices=("eps-mse", "eps-lpips", "eps-image"))
    image_weight: float = option(0.05, "eps-image: weight of L1 + LPIPS of the decoded image beside the error of ε")
    image_share: int = option(8, "eps-image: one of so many samples is decoded")
    steps: int = option(6000, "optimiser steps")
    batch: int = option(64, "samples a step, over all processes")
    rate: float = option(1e-3, "peak learning rate of AdamW; cosine to 0")
    augment: bool = option(True, "encode images augmented as in the paper; if not, as they are")
    passes: int = option(4, "how often each training image is augmented and encoded")


def draw_samples(
    config: UNetTraining, preset: Preset, latents: Tensor, images: PairDataset, step: int, share: slice
) -> tuple[object, ...]:
    """The arguments of ``DiffusionLoss`` for a step's samples that are in ``share``."""
    generator = step_generator(config, step)
    chosen = torch.randint(len(latents), (config.batch,), generator=generator)[share]
    t = torch.randint(preset.diffusion.T, (config.batch,), generator=generator)[share]
    noise = torch.randn((config.batch, *latents.shape[2:]), generator=generator)[share]
    pairs = latents[chosen].float()
    if config.loss != "eps-image":
        return pairs, t, noise
    where = torch.randint(latents.shape[-1] - CROP + 1, (config.batch, 2), generator=generator)[share]
    where = where[: max(1, len(chosen) // config.image_share)]
    f, crops = preset.vae.factor, []
    for i, (top, left) in zip(chosen[: len(where)].tolist(), where.tolist(), strict=True):
        hr = images.images(i)[1][f * top : f * (top + CROP), f * left : f * (left + CROP)]
        crops.append(as_network(np.ascontiguousarray(hr), preset.data.channels))
    return pairs, t, noise, (torch.stack(crops), where)


@torch.no_grad()
def validation_loss(unet: UNet, latents: Tensor, alpha_bar: Tensor, batch: int) -> float:
    """Mean squared error of ε on all pairs with fixed noise and timesteps, whatever the training minimises."""
    generator = torch.Generator().manual_seed(0)
    loss, device, total = DiffusionLoss(unet, alpha_bar), next(unet.parameters()).device, 0.0
    loss = loss.to(device)
    for pairs in torch.split(latents.float(), batch):
        t = torch.randint(len(alpha_bar), (len(pairs),), generator=generator)
        noise = torch.randn(pairs[:, 0].shape, generator=generator)
        total += float(loss(pairs.to(device), t.to(device), noise.to(device))["loss"]) * len(pairs)
    return total / len(latents)


def train_unet(config: UNetTraining) -> None:
    """Train, and save the averaged weights that validated best.

    Raises:
        ValueError, OSError, FloatingPointError: see ``train.loop.train``.
    """
    if config.passes < 1 or config.image_share < 1:
        raise ValueError("--passes and --image-share must be at least 1")
    preset = preset_of(config)
    accelerator = make_accelerator(config)
    files = split_files(config)
    description = describe_split(config, files)
    vae = load_vae(config.weights / "vae", preset.vae).requires_grad_(False)
    augmentation = preset.augmentation if config.augment else None
    pairs = PairDataset(files["train"], preset.data, augmentation, config.passes if config.augment else 1, config.seed)
    validation = PairDataset(files["val"], preset.data)
    inputs = {"vae": checkpoint.state_digest(vae), "files": checkpoint.names_digest(files["train"])}
    with accelerator.main_process_first():
        latents = cached_latents(
            config.run_dir / "latents.pt",
            {"passes": pairs.passes, "augment": config.augment, "seed": config.seed, "split": config.split, **inputs},
            Encoder(vae),
            {"train": pairs, "val": validation},
            accelerator.device,
        )
    torch.manual_seed(config.seed)
    unet = load_unet(config.unet, preset).train() if config.unet else UNet(preset.unet)
    if config.unet:
        inputs["unet"] = checkpoint.state_digest(unet)
    alpha_bar = torch.from_numpy(make_schedule(preset.diffusion).alpha_bar).float()
    lpips = None if config.loss == "eps-mse" else LPIPS("alex")
    decoder = Decoder(vae) if config.loss == "eps-image" else None
    lr, hr = validation.unit_images(0)

    def picture(network: UNet) -> Picture:
        device = next(network.parameters()).device
        system = Eager(Encoder(vae), network, Decoder(vae.to(device)), preset, device)
        return comparison(lr, system.upscale([lr], [0], steps=SAMPLE_STEPS, sampler="ddim")[0], hr)

    task = Task(
        name="unet",
        loss=DiffusionLoss(unet, alpha_bar, config.loss, lpips, decoder, config.image_weight),
        network="unet",
        batch=lambda step, share: draw_samples(config, preset, latents["train"], pairs, step, share),
        validate=lambda network: validation_loss(network, latents["val"], alpha_bar, config.batch),
        picture=picture,
        inputs=inputs,
        plan=f"{description}\n{len(latents['train'])} pairs of latents for training",
    )
    result = train(task, config, accelerator)
    if not accelerator.is_main_process:
        return
    metadata = {
        "preset": preset.name,
        "data": description,
        "latents": len(latents["train"]),
        "vae": inputs["vae"],
        "parameters": preset.unet.parameters,
        "config": settings(config),
        **result.metadata,
        "date": datetime.date.today().isoformat(),
    }
    save_unet(result.network, config.out, metadata)
    if config.out.resolve() != config.weights.resolve():
        shutil.copytree(config.weights / "vae", config.out / "vae", dirs_exist_ok=True)
    tqdm.write(f"wrote '{config.out}/unet.safetensors'")


def main(argv: list[str] | None = None) -> int:
    return run_command(UNetTraining, train_unet, __doc__ or "", argv)


if __name__ == "__main__":
    sys.exit(main())
