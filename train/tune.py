"""Train the few-step sampler end to end: U-Net and decoder together, with a loss in pixels.

python -m train.tune --data data/nih
python -m train.tune --data data/nih --resume
python -m train.tune --data data/nih --diversity 0.5 --run-dir runs/tune-diverse --out weights/diverse
python -m train.tune --data data/nih --weights weights/best --out weights/better --run-dir runs/tune-more
python -m train.tune --data data/nih --weights weights/best --only-restorer --diversity 0 --averaged 0.4 --changed 3
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL.Image import Image as Picture
from torch import Tensor, nn

from client.pictures import comparison
from pipeline.method.images import from_network
from pipeline.networks.detail_vae import DetailVAE
from pipeline.networks.unet import UNet
from pipeline.presets import Preset
from pipeline.spec import SCALE
from train.config import option, run_command
from train.loop import Task, device_of, train
from train.losses import FewStepLoss, Networks, Perceptual
from train.scans import GRID, Batch, Scans, draw_samples, mean_loss, read_scans
from train.setup import (
    Training,
    announce,
    begin,
    check_shares,
    detail_networks,
    preset_of,
    save_networks,
    step_generator,
)

VALIDATION_SQUARES = 64


@dataclass(frozen=True)
class Tuning(Training):
    run_dir: Path = option(Path("runs/tune"), "folder for the checkpoint, logs and samples")
    weights: Path | None = option(None, "folder with both networks to start from (default: weights/PRESET-restoring)")
    out: Path | None = option(None, "output folder for the weights (default: weights/PRESET-tuned)")
    steps: int = option(6000, "optimiser steps")
    batch: int = option(
        8, "squares per step, over all processes; two samples are drawn of each, or one without diversity"
    )
    rate: float = option(2e-4, "peak learning rate of AdamW; cosine to 0")
    crop: int = option(192, "side of the squares, in HR pixels")
    sampler_steps: str = option("1,2,4", "numbers of denoising steps to train, in turn")
    lpips: float = option(0.065, "weight of LPIPS (AlexNet) relative to L1")
    averaged: float = option(
        1.0, "factor on the AlexNet LPIPS loss of noise-free LR images that another filter than the protocol's made"
    )
    changed: float = option(1.0, "factor on LPIPS (AlexNet) where noise or compression changed the LR image")
    vgg: float = option(0.01, "weight of LPIPS (VGG16), computed on a subset of samples")
    diversity: float = option(0.12, "weight of the difference between two samples of an image, which is maximised")
    freeze_decoder: bool = option(False, "train the U-Net alone")
    only_restorer: bool = option(False, "train only the restoring layers, not the history or other networks")
    faithful_share: float = option(0.75, "share of steps that project samples onto their LR images")


def parse_sampler_steps(text: str, T: int) -> list[int]:
    """Parse ``1,2,4`` into [1, 2, 4].

    Raises:
        ValueError: a number is not within 1–T.
    """
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or not all(1 <= number <= T for number in numbers):
        raise ValueError(f"--sampler-steps must be numbers 1–{T}, such as 1,2,4, got '{text}'")
    return numbers


def arguments(batch: Batch, noise: Tensor, steps: int, chance: float, where: Tensor) -> tuple[object, ...]:
    """Return the arguments of ``FewStepLoss``."""
    return batch.hr, batch.lr, batch.protocol, batch.reduction, batch.noise, noise, steps, chance, where


def draw_batch(
    scans: Scans, numbers: list[int], config: Tuning, preset: Preset, step: int, share: slice
) -> tuple[object, ...]:
    """Draw the arguments of ``FewStepLoss`` for the squares in ``share`` of a step's batch."""
    batch = draw_samples(scans, config.crop, [(config.seed, 2, step, i) for i in range(config.batch)[share]])
    z, generator = config.crop // preset.vae.factor, step_generator(config, step)
    noise = torch.randn((2, config.batch, preset.vae.latent_channels, z, z), generator=generator)[:, share]
    chance, where = float(torch.rand((), generator=generator)), torch.rand(2, generator=generator)
    return arguments(batch, noise, numbers[step % len(numbers)], chance, where)


def make_loss(unet: UNet, vae: DetailVAE, config: Tuning, preset: Preset) -> FewStepLoss:
    """Return the loss of networks that learn, except what is trained separately and what the options freeze."""
    unet.train().requires_grad_(not config.only_restorer)
    vae.train().requires_grad_(not (config.only_restorer or config.freeze_decoder))
    if config.only_restorer:
        for part in (vae.restorer.stem, vae.restorer.blocks, vae.restorer.out):
            part.requires_grad_(True)
    for frozen in (vae.encoder, vae.doubt, vae.presentation):
        frozen.requires_grad_(False)
    perceptual = Perceptual(config.lpips, config.vgg)
    return FewStepLoss(
        unet, vae, perceptual, preset, config.diversity, config.faithful_share, config.averaged, config.changed
    )


def regions(loss: FewStepLoss) -> tuple[tuple[nn.Module, str], ...]:
    """Return the methods to compile; the U-Net is called once per sampler step."""
    unet, vae = loss.networks.unet, loss.networks.vae
    whole = (unet, vae.restorer, loss.perceptual)
    return *((module, "forward") for module in whole), (vae, "features"), (vae, "image")


def validation_loss(
    networks: Networks, perceptual: Perceptual, config: Tuning, preset: Preset, held_out: Batch
) -> float:
    """Return the training loss without diversity, for one sample per square at the preset's number of steps."""
    loss = FewStepLoss(networks.unet, networks.vae, perceptual, preset, 0.0, 1.0, config.averaged, config.changed)
    z = config.crop // preset.vae.factor

    def one_sample(part: Batch, generator: torch.Generator) -> tuple[object, ...]:
        noise = torch.randn((1, len(part.lr), preset.vae.latent_channels, z, z), generator=generator)
        return arguments(part, noise, preset.diffusion.ddim_steps, 0.0, torch.zeros(2))

    return mean_loss(loss.to(device_of(networks)), held_out, config.batch, one_sample)


def tune(config: Tuning) -> None:
    """Train, and save the averaged weights with the lowest validation loss.

    Raises:
        ValueError, OSError, FloatingPointError: see ``train.loop.train``.
    """
    preset = preset_of(config)
    if preset.condition != "lr":
        raise ValueError(f"--preset must be one whose U-Net sees the LR image itself, got {preset.name}")
    multiple, limit = SCALE * preset.lr_multiple, preset.data.hr_size - SCALE * GRID
    if config.crop % multiple or not multiple <= config.crop <= limit:
        raise ValueError(f"--crop must be a multiple of {multiple} up to {limit}, got {config.crop}")
    numbers = parse_sampler_steps(config.sampler_steps, preset.diffusion.T)
    if config.freeze_decoder and config.only_restorer:
        raise ValueError("--freeze-decoder and --only-restorer leave nothing to train")
    check_shares(faithful_share=config.faithful_share, diversity=config.diversity)
    weights = config.weights or Path(f"weights/{preset.name}-restoring")
    out = config.out or Path(f"weights/{preset.name}-tuned")
    if out.resolve() == weights.resolve():
        raise ValueError(f"--out must differ from --weights, which are needed to resume, got '{out}'")
    _, accelerator, files, description = begin(config)
    vae, unet, inputs = detail_networks(preset, weights, files)
    announce(config, accelerator, description, unet)
    loss = make_loss(unet, vae, config, preset)
    scans = read_scans(config, files)
    held_out = draw_samples(scans["val"], config.crop, [(config.seed, 1, i) for i in range(VALIDATION_SQUARES)])

    def picture(networks: Networks) -> Picture:
        lr = held_out.lr[:1].to(device_of(networks))
        z = config.crop // preset.vae.factor
        noise = torch.zeros((1, preset.vae.latent_channels, z, z), device=lr.device)
        with torch.no_grad():
            restored = networks.vae.restorer(lr)[0]
            drawn = networks.vae.image(networks.draw(restored, noise, preset.diffusion.ddim_steps, preset), restored)
        low, found, high = (from_network(image[0].cpu().numpy()) for image in (held_out.lr, drawn, held_out.hr))
        return comparison(low, found, high)

    task = Task(
        name="tune",
        loss=loss,
        network="networks",
        batch=lambda step, share: draw_batch(scans["train"], numbers, config, preset, step, share),
        validate=lambda networks: validation_loss(networks, loss.perceptual, config, preset, held_out),
        picture=picture,
        inputs=inputs,
        regions=regions(loss),
    )
    result = train(task, config, accelerator)
    if not accelerator.is_main_process:
        return
    found = {"tuned_from": inputs, **result.metadata}
    save_networks(config, result.network.vae, result.network.unet, out, description, **found)


def main(argv: list[str] | None = None) -> int:
    return run_command(Tuning, tune, __doc__ or "", argv)


if __name__ == "__main__":
    sys.exit(main())
