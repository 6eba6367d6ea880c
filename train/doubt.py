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

from client.pictures import uncertainty_map
from pipeline.method.images import from_network
from train.config import option, run_command
from train.loop import Task, device_of, to_device, train
from train.losses import DoubtLoss
from train.scans import Batch, draw_samples, mean_loss, read_scans
from train.setup import Training, announce, begin, detail_networks, save_networks, step_generator, weights_of

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
    preset, accelerator, files, description = begin(config)
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

    def judge(doubt: nn.Module) -> DoubtLoss:
        return DoubtLoss(unet, vae, preset, doubt).to(device_of(doubt))

    def picture(doubt: nn.Module) -> Picture:
        _, lr, _, _, noise = arguments(held_out.part(0, 1), torch.Generator().manual_seed(0))
        with torch.no_grad():
            y, width = judge(doubt).draw(*to_device((lr, noise), device_of(doubt)))
        return uncertainty_map(from_network(y[0].cpu().numpy()), width[0, 0].cpu().numpy())

    task = Task(
        name="doubt",
        loss=loss,
        network="doubt",
        batch=batch,
        validate=lambda doubt: mean_loss(judge(doubt), held_out, config.batch, arguments),
        picture=picture,
        inputs=inputs,
    )
    result = train(task, config, accelerator)
    if accelerator.is_main_process:
        vae.doubt.load_state_dict(result.network.state_dict())
        save_networks(config, vae, unet, weights_of(config, config.out), description, **result.metadata)


def main(argv: list[str] | None = None) -> int:
    return run_command(DoubtTraining, train_doubt, __doc__ or "", argv)


if __name__ == "__main__":
    sys.exit(main())
