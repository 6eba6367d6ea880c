"""Train the per-pixel error estimate (doubt) on samples from the finished networks.

python -m train.doubt --data data/nih
python -m train.doubt --data data/nih --weights weights/mine-tuned --out weights/mine
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL.Image import Image as Picture
from torch import nn
from tqdm import tqdm

from client.pictures import uncertainty_map
from pipeline.method.images import from_network
from train.config import option, run_command
from train.loop import Task, device_of, to_device, train
from train.losses import DoubtLoss
from train.scans import Batch, draw_samples, read_scans
from train.setup import (
    Training,
    announce,
    detail_networks,
    make_accelerator,
    preset_of,
    save_networks,
    split_files,
    step_generator,
    weights_of,
)

HELD_OUT = 64
"""Number of squares from validation patients."""


@dataclass(frozen=True)
class DoubtTraining(Training):
    run_dir: Path = option(Path("runs/doubt"), "folder for the checkpoint, logs and samples")
    weights: Path | None = option(None, "folder with both networks (default: weights/PRESET-tuned)")
    out: Path | None = option(None, "output folder for the weights (default: weights/PRESET)")
    steps: int = option(2000, "optimiser steps")
    batch: int = option(8, "squares per step")
    rate: float = option(2e-3, "peak learning rate of AdamW; cosine to 0")
    crop: int = option(192, "side of the squares, in HR pixels")


def train_doubt(config: DoubtTraining) -> None:
    """Train, and save both networks with the averaged weights of ``doubt`` that had the lowest validation loss.

    Raises:
        ValueError, OSError, FloatingPointError: see ``train.loop.train``.
    """
    preset = preset_of(config)
    accelerator = make_accelerator(config)
    files, description = split_files(config)
    vae, unet, inputs = detail_networks(preset, config.weights or Path(f"weights/{preset.name}-tuned"), files)
    loss = DoubtLoss(unet, vae, preset)
    announce(config, accelerator, description, vae.doubt)
    scans = read_scans(config, files)
    held_out = draw_samples(scans["val"], config.crop, [(config.seed, 1, i) for i in range(HELD_OUT)])
    z = config.crop // preset.vae.factor

    def arguments(batch: Batch, generator: torch.Generator) -> tuple[object, ...]:
        noise = torch.randn((len(batch.lr), preset.vae.latent_channels, z, z), generator=generator)
        return batch.hr, batch.lr, batch.reduction, batch.noise, noise

    def batch(step: int, share: slice) -> tuple[object, ...]:
        seeds = [(config.seed, 3, step, i) for i in range(config.batch)[share]]
        return arguments(draw_samples(scans["train"], config.crop, seeds), step_generator(config, step))

    def validate(doubt: nn.Module) -> float:
        judge = DoubtLoss(unet, vae, preset, doubt)
        total = 0.0
        for first in range(0, HELD_OUT, config.batch):
            part = held_out.part(first, config.batch)
            given = arguments(part, torch.Generator().manual_seed(first))
            with torch.no_grad():
                total += len(part.lr) * float(judge(*to_device(given, device_of(doubt)))["loss"])
        return total / HELD_OUT

    def picture(doubt: nn.Module) -> Picture:
        judge = DoubtLoss(unet, vae, preset, doubt)
        part = held_out.part(0, 1)
        given = arguments(part, torch.Generator().manual_seed(0))
        with torch.no_grad():
            y, width = judge.draw(*to_device((given[1], given[4]), device_of(doubt)))
        return uncertainty_map(from_network(y[0].cpu().numpy()), width[0, 0].cpu().numpy())

    task = Task(
        name="doubt", loss=loss, network="doubt", batch=batch, validate=validate, picture=picture, inputs=inputs
    )
    result = train(task, config, accelerator)
    if accelerator.is_main_process:
        vae.doubt.load_state_dict(result.network.state_dict())
        out = weights_of(config, config.out)
        save_networks(config, vae, unet, out, description, **result.metadata)
        tqdm.write(f"wrote both networks into '{out}'")


def main(argv: list[str] | None = None) -> int:
    return run_command(DoubtTraining, train_doubt, __doc__ or "", argv)


if __name__ == "__main__":
    sys.exit(main())
