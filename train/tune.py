"""Train the few-step sampler end to end: U-Net and decoder together, on what a few steps make of pure noise, in pixels.

python -m train.tune --data data/nih
python -m train.tune --data data/nih --resume
python -m train.tune --data data/nih --diversity 0.5 --run-dir runs/tune-diverse --out weights/diverse
python -m train.tune --data data/nih --weights weights/best --out weights/better --run-dir runs/tune-more
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL.Image import Image as Picture
from torch import nn
from tqdm import tqdm

from pipeline.eager import Eager
from pipeline.images import fold
from pipeline.pictures import comparison
from pipeline.spec import SCALE, Preset
from pipeline.superres import upscale
from pipeline.vae import Decoder, Encoder, load_vae, vae_path
from pipeline.weights import check_pair, digest, load_unet, save_unet, save_vae
from train import checkpoint
from train.config import option, run_command
from train.data import PairDataset, draw_squares, validation_images
from train.loop import Task, device_of, train
from train.losses import FewStepLoss, Perceptual
from train.plan import (
    Training,
    announce,
    check_shares,
    make_accelerator,
    metadata,
    preset_of,
    split_files,
    step_generator,
    weights_of,
)


@dataclass(frozen=True)
class Tuning(Training):
    run_dir: Path = option(Path("runs/tune"), "folder of the checkpoint, logs and pictures")
    weights: Path | None = option(None, "folder with both networks to start from (default: weights/PRESET-untuned)")
    out: Path | None = option(None, "where the weights go (default: weights/PRESET)")
    steps: int = option(6000, "optimiser steps")
    batch: int = option(8, "images a step, over all processes; two samples are drawn of each")
    rate: float = option(2e-4, "peak learning rate of AdamW; cosine to 0")
    crop: int = option(256, "side of the squares that are upscaled")
    grain: float = option(0.2, "share of the squares that noise is added to")
    sampler_steps: str = option("1,2,4", "numbers of denoising steps that are trained, in turn")
    lpips: float = option(0.065, "weight of LPIPS (AlexNet) beside L1")
    vgg: float = option(0.01, "weight of LPIPS (VGG16), computed on some of the samples")
    diversity: float = option(0.12, "weight of the difference of two samples of an image, which is to be large")
    teacher_steps: int = option(0, "learn what the networks at first make of the noise in so many steps; 0: learn HR")
    freeze_decoder: bool = option(False, "train the U-Net alone")
    faithful_share: float = option(0.75, "share of the steps that project samples onto their LR images")


def numbers_of_steps(text: str, T: int) -> list[int]:
    """``1,2,4`` ⇒ [1, 2, 4].

    Raises:
        ValueError: a number is not in 1 … T.
    """
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or not all(1 <= number <= T for number in numbers):
        raise ValueError(f"--sampler-steps '{text}': needed are numbers from 1 to {T}, such as 1,2,4")
    return numbers


def draw_batch(
    images: PairDataset, numbers: list[int], config: Tuning, preset: Preset, step: int, share: slice
) -> tuple[object, ...]:
    """The arguments of ``FewStepLoss`` for a step's images that are in ``share``."""
    samples = range(config.batch)[share]
    lr, hr = draw_squares(images, config.crop, [(config.seed, step, sample) for sample in samples], config.grain)
    z, generator = config.crop // preset.vae.factor, step_generator(config, step)
    noise = torch.randn((2, config.batch, preset.vae.latent_channels, z, z), generator=generator)[:, share]
    seen = torch.from_numpy(fold(lr.numpy(), preset.vae.factor // SCALE))
    chance, where = float(torch.rand((), generator=generator)), torch.rand(2, generator=generator)
    return hr, lr, seen, noise, numbers[step % len(numbers)], chance, where


def validation_loss(networks: nn.ModuleDict, loss: FewStepLoss, images: PairDataset, preset: Preset) -> float:
    """The training's loss, less diversity, of whole images at the preset's own number of steps, with fixed noise."""
    system = system_of(networks, preset)
    total = 0.0
    for i in range(len(images)):
        lr, hr = images.unit_images(i)
        found = upscale([lr], [i], system.generator(), preset)[0].upscaled
        x, y = (2 * torch.from_numpy(a)[None, None].to(system.device) - 1 for a in (hr, found))
        with torch.no_grad():
            terms = {"l1": (y - x).abs().mean(), **loss.perceptual(y, x)}
        total += sum(loss.weights[name] * float(term) for name, term in terms.items())
    return total / len(images)


def system_of(networks: nn.ModuleDict, preset: Preset) -> Eager:
    vae = networks["vae"]
    return Eager(Encoder(vae), networks["unet"], Decoder(vae), preset, device_of(vae))  # type: ignore[arg-type]


def tune(config: Tuning) -> None:
    """Train, and save the averaged weights that validated best.

    Raises:
        ValueError, OSError, FloatingPointError: see ``train.loop.train``.
    """
    preset = preset_of(config)
    if preset.condition != "lr":
        raise ValueError(f"--preset {preset.name}: only presets whose U-Net sees the LR image itself are tuned")
    multiple = SCALE * preset.lr_multiple
    if config.crop % multiple or not multiple <= config.crop <= preset.data.hr_size:
        raise ValueError(f"--crop {config.crop}: it must be a multiple of {multiple} up to {preset.data.hr_size}")
    numbers = numbers_of_steps(config.sampler_steps, preset.diffusion.T)
    if not 0 <= config.teacher_steps <= preset.diffusion.T:
        raise ValueError(f"--teacher-steps is {config.teacher_steps}, allowed are 0 to {preset.diffusion.T}")
    check_shares(faithful_share=config.faithful_share, diversity=config.diversity, grain=config.grain)
    weights = config.weights or Path(f"weights/{preset.name}-untuned")
    out = weights_of(config, config.out)
    if out.resolve() == weights.resolve():
        raise ValueError(f"--out '{out}' is --weights: the networks before the tuning must be kept, to resume it")
    accelerator = make_accelerator(config)
    files, description = split_files(config)
    vae = load_vae(vae_path(weights, preset.vae), preset.vae)
    check_pair(weights, vae)
    unet = load_unet(weights, preset)
    inputs = {"vae": digest(vae), "unet": digest(unet), "files": checkpoint.files_digest(files["train"])}
    announce(config, accelerator, description, unet)
    unet.train().requires_grad_(True)
    vae.train().requires_grad_(not config.freeze_decoder)
    vae.encoder.requires_grad_(False)
    loss = FewStepLoss(
        unet,
        vae,
        Perceptual(config.lpips, config.vgg),
        preset,
        config.diversity,
        config.faithful_share,
        config.teacher_steps,
    )
    images = PairDataset(files["train"], preset.data)
    validation = validation_images(files["val"], preset.data)
    first_lr, first_hr = validation.unit_images(0)

    def picture(networks: nn.ModuleDict) -> Picture:
        generate = system_of(networks, preset).generator()
        return comparison(first_lr, upscale([first_lr], [0], generate, preset)[0].upscaled, first_hr)

    task = Task(
        name="tune",
        loss=loss,
        network="networks",
        batch=lambda step, share: draw_batch(images, numbers, config, preset, step, share),
        validate=lambda networks: validation_loss(networks, loss, validation, preset),
        picture=picture,
        inputs=inputs,
    )
    result = train(task, config, accelerator)
    if not accelerator.is_main_process:
        return
    found = {"tuned_from": inputs, **result.metadata}
    unet, vae = result.network["unet"], result.network["vae"]
    save_vae(vae, out, metadata(config, description, vae, **found))
    save_unet(unet, out, metadata(config, description, unet, vae=digest(vae), **found))
    tqdm.write(f"wrote both networks into '{out}'")


def main(argv: list[str] | None = None) -> int:
    return run_command(Tuning, tune, __doc__ or "", argv)


if __name__ == "__main__":
    sys.exit(main())
