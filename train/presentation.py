"""Train the classifier of an image's presentation: rotated by 90°, 180° or 270°, inverted, or both.

python -m train.presentation --data data/nih
python -m train.presentation --data data/nih --weights weights/mine --steps 4000
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image as PILImage
from PIL.Image import Image as Picture
from torch import Tensor, nn
from tqdm import tqdm

from pipeline.networks.presentation import Presentation
from pipeline.networks.weights import digest, save_vae, write_metadata
from pipeline.spec import PRESENTATIONS
from train.config import option, run_command
from train.degrade import Degradation, Gray, degrade, draw
from train.loop import Task, device_of, to_device, train
from train.losses import PresentationLoss
from train.scans import PAGES, Scans, as_tensor, mark, page, read_scans
from train.setup import Training, announce, begin, detail_networks, metadata, weights_of

HELD_OUT = 1024
"""Number of images from validation patients."""
SIDE = 256
"""Side of a random part of a radiograph after resizing, in HR pixels."""
MIN_PART = 0.5
"""Minimum share of each side of a radiograph in an image."""
TILT = 12.0
"""Maximum tilt of a radiograph in degrees."""
MARKED = 0.2


@dataclass(frozen=True)
class PresentationTraining(Training):
    run_dir: Path = option(Path("runs/presentation"), "folder for the checkpoint, logs and samples")
    weights: Path | None = option(None, "folder with both networks, which is updated (default: weights/PRESET)")
    steps: int = option(3000, "optimiser steps")
    batch: int = option(64, "images per step")
    rate: float = option(2e-3, "peak learning rate of AdamW; cosine to 0")


def part_of(image: Gray, rng: np.random.Generator) -> Gray:
    """Return a random part of a radiograph, randomly tilted, mirrored and marked: uint8 [SIDE, SIDE]."""
    side = len(image)
    height, width = (int(side * rng.uniform(MIN_PART, 1)) if rng.random() < 0.6 else side for _ in range(2))
    top, left = int(rng.integers(0, side - height + 1)), int(rng.integers(0, side - width + 1))
    if rng.random() < 0.5:
        tilt = cv2.getRotationMatrix2D((side / 2, side / 2), float(rng.uniform(-TILT, TILT)), 1.0)
        image = np.asarray(cv2.warpAffine(image, tilt, (side, side)))
    part = np.asarray(cv2.resize(image[top : top + height, left : left + width], (SIDE, SIDE)))
    if rng.random() < 0.5:
        part = np.ascontiguousarray(part[:, ::-1])
    return mark(part, rng) if rng.random() < MARKED else part


def draw_image(scans: Scans, rng: np.random.Generator) -> tuple[Gray, int]:
    """Draw an LR image with a random history and its index in ``PRESENTATIONS``, random for non-radiographs."""
    label = int(rng.integers(len(PRESENTATIONS)))
    if rng.random() < PAGES:
        return degrade(page(SIDE, rng), draw(rng), rng)[0], label
    images = scans.images[min(scans.images)]
    turns, inverted = PRESENTATIONS[label]
    d: Degradation = replace(draw(rng), turns=turns, invert=inverted)
    return degrade(part_of(images[int(rng.integers(len(images)))], rng), d, rng)[0], label


def draw_images(scans: Scans, seeds: list[tuple[int, ...]]) -> tuple[Tensor, Tensor]:
    """Draw (LR images [B, 1, SIDE/4, SIDE/4] in [-1, 1], their presentations [B]), one per seed."""
    images, labels = zip(*(draw_image(scans, np.random.default_rng(seed)) for seed in seeds), strict=True)
    return as_tensor(images), torch.tensor(labels)


def picture(presentation: nn.Module, lr: Tensor) -> Picture:
    """Draw the input images above the images corrected by the prediction."""
    with torch.no_grad():
        found = presentation(lr.to(device_of(presentation))).argmax(dim=1).tolist()
    rows = []
    for image, number in zip(lr[:, 0], found, strict=True):
        turns, inverted = PRESENTATIONS[number]
        rows.append(torch.cat([image, torch.rot90(-image if inverted else image, -turns)]))
    return PILImage.fromarray(((torch.cat(rows, dim=1).clamp(-1, 1) + 1) * 127.5).round().byte().numpy())


def train_presentation(config: PresentationTraining) -> None:
    """Train, and add the averaged weights with the lowest validation loss to the autoencoder's file.

    Raises:
        ValueError, OSError, FloatingPointError: see ``train.loop.train``.
    """
    preset, accelerator, files, description = begin(config)
    folder = weights_of(config, config.weights)
    vae, _, inputs = detail_networks(preset, folder, files)
    torch.manual_seed(config.seed)
    loss = PresentationLoss(Presentation())
    announce(config, accelerator, description, loss.presentation)
    scans = read_scans(config, files)
    lr, labels = draw_images(scans["val"], [(config.seed, 1, i) for i in range(HELD_OUT)])

    def batch(step: int, share: slice) -> tuple[Tensor, ...]:
        return draw_images(scans["train"], [(config.seed, 0, step, i) for i in range(config.batch)[share]])

    def validate(presentation: nn.Module) -> float:
        with torch.no_grad():
            given = to_device((lr, labels), device_of(presentation))
            return float(PresentationLoss(presentation)(*given)["loss"])

    task = Task(
        name="presentation",
        loss=loss,
        network="presentation",
        batch=batch,
        validate=validate,
        picture=lambda presentation: picture(presentation, lr[:16]),
        # independent of the other networks, and trained from scratch
        inputs={"files": inputs["files"]},
    )
    result = train(task, config, accelerator)
    if accelerator.is_main_process:
        vae.presentation.load_state_dict(result.network.state_dict())
        found = metadata(config, description, loss.presentation, **result.metadata)
        before, unet = (json.loads((folder / name).read_text()) for name in ("vae.json", "unet.json"))
        save_vae(vae, folder, before | {"presentation": found})
        write_metadata(folder / "unet.json", unet | {"vae": digest(vae)})
        tqdm.write(f"wrote the autoencoder into '{folder}'")


def main(argv: list[str] | None = None) -> int:
    return run_command(PresentationTraining, train_presentation, __doc__ or "", argv)


if __name__ == "__main__":
    sys.exit(main())
