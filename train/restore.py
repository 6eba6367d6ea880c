"""Train an autoencoder's restorer, which predicts the protocol's LR image and the history of any LR image.

python -m train.restore --data data/nih
python -m train.restore --data data/nih --resume
python -m train.restore --data data/nih --only-history --weights weights/best-tuned --out weights/best-history
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image as PILImage
from PIL.Image import Image as Picture
from torch import Tensor

from pipeline.networks.restorer import Restorer
from train.config import option, run_command
from train.loop import Task, device_of, to_device, train
from train.losses import HistoryLoss
from train.scans import Batch, draw_samples, read_scans
from train.setup import Training, announce, begin, detail_networks, save_networks

HELD_OUT = 192
"""Number of squares from validation patients."""


@dataclass(frozen=True)
class RestorerTraining(Training):
    run_dir: Path = option(Path("runs/restore"), "folder for the checkpoint, logs and samples")
    weights: Path | None = option(None, "folder with both networks (default: weights/PRESET-untuned)")
    out: Path | None = option(None, "output folder for the weights (default: weights/PRESET-restoring)")
    steps: int = option(6000, "optimiser steps")
    batch: int = option(32, "squares per step")
    rate: float = option(2e-3, "peak learning rate of AdamW; cosine to 0")
    crop: int = option(192, "side of the squares, in HR pixels")
    only_history: bool = option(False, "train only the history prediction, without changing restored images")


def arguments(batch: Batch) -> tuple[Tensor, ...]:
    """Return the arguments of ``HistoryLoss``."""
    return batch.lr, batch.protocol, batch.reduction, batch.noise


def picture(restorer: Restorer, batch: Batch) -> Picture:
    """Draw rows of LR images, restored images and the protocol's images."""
    with torch.no_grad():
        restored = restorer(batch.lr[:8].to(device_of(restorer)))[0].cpu()
    rows = torch.cat([torch.cat(list(images[:8, 0]), dim=1) for images in (batch.lr, restored, batch.protocol)])
    return PILImage.fromarray(((rows.clamp(-1, 1) + 1) * 127.5).round().byte().numpy())


def train_restorer(config: RestorerTraining) -> None:
    """Train, and save both networks with the averaged restorer weights that had the lowest validation loss.

    Raises:
        ValueError, OSError, FloatingPointError: see ``train.loop.train``.
    """
    preset, accelerator, files, description = begin(config)
    vae, unet, inputs = detail_networks(preset, config.weights or Path(f"weights/{preset.name}-untuned"), files)
    if config.only_history:
        vae.restorer.requires_grad_(False)
        vae.restorer.head.requires_grad_(True)
    loss = HistoryLoss(vae.restorer, config.only_history)
    announce(config, accelerator, description, vae.restorer)
    scans = read_scans(config, files)
    held_out = draw_samples(scans["val"], config.crop, [(config.seed, 1, i) for i in range(HELD_OUT)])

    def batch(step: int, share: slice) -> tuple[Tensor, ...]:
        seeds = [(config.seed, 0, step, i) for i in range(config.batch)[share]]
        return arguments(draw_samples(scans["train"], config.crop, seeds))

    def validate(restorer: Restorer) -> float:
        judge = HistoryLoss(restorer, config.only_history)
        with torch.no_grad():
            return float(judge(*to_device(arguments(held_out), device_of(restorer)))["loss"])

    task = Task(
        name="restore",
        loss=loss,
        network="restorer",
        batch=batch,
        validate=validate,
        picture=lambda restorer: picture(restorer, held_out),
        inputs=inputs,
    )
    result = train(task, config, accelerator)
    if accelerator.is_main_process:
        vae.restorer.load_state_dict(result.network.state_dict())
        out = config.out or Path(f"weights/{preset.name}-restoring")
        save_networks(config, vae, unet, out, description, **result.metadata)


def main(argv: list[str] | None = None) -> int:
    return run_command(RestorerTraining, train_restorer, __doc__ or "", argv)


if __name__ == "__main__":
    sys.exit(main())
