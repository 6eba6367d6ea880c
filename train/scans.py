"""Training samples with random histories, from radiographs of several sizes in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.method.images import downscale
from pipeline.method.reduction import reduce
from pipeline.spec import REDUCTIONS, SCALE
from train.data import Index, patient_of, read_gray, read_index
from train.degrade import Degradation, Gray, degrade, draw
from train.loop import device_of, to_device
from train.setup import Training

SIZES = (256, 512, 1024)
"""Sides of the radiographs in pixels, each used if available."""
OTHER = len(REDUCTIONS)
"""Label of reductions not in ``REDUCTIONS``."""
GRID = 8
"""JPEG block size, in LR pixels."""
LETTERS = ("L", "R", "AP", "PA", "PORTABLE", "STANDING", "12:47", "R 3")
MIN_NOISE = 0.29
"""Standard deviation of rounding errors, in gray levels."""
PAGES = 0.03
"""Share of samples that are not radiographs."""
MARKED = 0.1
"""Share of samples with letters, wires or borders drawn in."""


@dataclass(frozen=True)
class Scans:
    """Radiographs as uint8 squares, by size."""

    images: dict[int, list[Gray]]
    shares: dict[int, float]
    """Sampling probability of each size."""

    @classmethod
    def read(cls, root: Path, sizes: Sequence[int], patients: set[str], index: Index) -> Scans:
        """Read the ``HR_N`` files of these patients, in all available sizes, from a folder written by ``train.pairs``.

        Raises:
            ValueError: there are no files, or one is unreadable.
        """
        images = {}
        for size in sizes:
            paths = sorted((root / f"HR_{size}").glob("*.png"))
            if found := [read_gray(path, size) for path in paths if patient_of(path, index) in patients]:
                images[size] = found
        if not images:
            raise ValueError(f"'{root}' has no images of these patients")
        weights = {size: {256: 0.5, 512: 0.3, 1024: 0.2}.get(size, 0.2) for size in images}
        return cls(images, {size: weight / sum(weights.values()) for size, weight in weights.items()})


def read_scans(config: Training, files: Mapping[str, Sequence[Path]]) -> dict[str, Scans]:
    """Read the radiographs of training and validation patients in all sizes; ``files`` determines the patients.

    Raises:
        ValueError: a file is unreadable.
    """
    index = read_index(config.index)
    patients = {side: {patient_of(path, index) for path in files[side]} for side in ("train", "val")}
    return {side: Scans.read(config.data, SIZES, patients[side], index) for side in patients}


class Sample(NamedTuple):
    """Square of a radiograph with its history."""

    lr: Gray
    hr: Gray
    reduction: int
    """Index into ``REDUCTIONS``, or ``OTHER``."""
    noise: float
    """Standard deviation of noise, compression and rounding in LR, in gray levels."""


def page(side: int, rng: np.random.Generator) -> Gray:
    """Draw a non-radiograph: a chessboard, a page of text, flat gray, a ramp, or circles."""
    paper, ink = (int(v) for v in rng.integers(0, 256, 2))
    image = np.full((side, side), paper, np.uint8)
    kind = rng.integers(5)
    if kind == 0:
        square = int(rng.integers(3, 40))
        y, x = np.mgrid[:side, :side] // square
        image[(x + y) % 2 == 1] = ink
    elif kind == 1:
        size, line = float(rng.uniform(0.3, 1.2)), 0
        while (line := line + int(28 * size)) < side:
            words = "".join(chr(c) for c in rng.integers(33, 127, 60))
            font = int(
                rng.choice([cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_COMPLEX, cv2.FONT_HERSHEY_SCRIPT_SIMPLEX])
            )
            cv2.putText(image, words, (-int(rng.integers(20)), line), font, size, ink, 1, cv2.LINE_AA)
    elif kind == 2:
        ramp = np.linspace(paper, ink, side)
        image = np.rint(np.tile(ramp, (side, 1))).astype(np.uint8)
    elif kind == 3:
        for _ in range(int(rng.integers(3, 30))):
            centre, radius = rng.integers(0, side, 2).tolist(), int(rng.integers(2, side // 3))
            cv2.circle(image, centre, radius, int(rng.integers(256)), int(rng.choice([-1, 1, 2])), cv2.LINE_AA)
    return np.ascontiguousarray(np.rot90(image, int(rng.integers(4))))


def mark(image: Gray, rng: np.random.Generator) -> Gray:
    """Draw a letter, a wire or a border into a copy of the image."""
    image, side = image.copy(), len(image)
    level = int(rng.choice([0, 255, int(rng.integers(256))]))
    kind = rng.integers(3)
    if kind == 0:
        text = str(rng.choice(LETTERS))
        at = (int(rng.integers(-10, side - 20)), int(rng.integers(15, side)))
        font, size, width = int(rng.integers(0, 6)), float(rng.uniform(0.4, 2)), int(rng.integers(1, 4))
        cv2.putText(image, text, at, font, size, level, width, cv2.LINE_AA)
    elif kind == 1:
        points = np.cumsum(rng.normal(0, side / 6, (6, 2)), axis=0) + rng.uniform(0, side, 2)
        cv2.polylines(image, [points.astype(np.int32)], False, level, int(rng.integers(1, 4)), cv2.LINE_AA)
    else:
        width = int(rng.integers(1, side // 3))
        image[:, :width] = level
        image = np.ascontiguousarray(np.rot90(image, int(rng.integers(4))))
    return image


def draw_sample(scans: Scans, side: int, rng: np.random.Generator, d: Degradation | None = None) -> Sample:
    """Draw a random square of a random radiograph, ``side`` HR pixels, with history ``d`` or a random one."""
    d = draw(rng) if d is None else d
    # images may be cropped after compression, so the block grid gets a random offset
    margin = SCALE * GRID if d.jpeg is not None else 0
    wide = side + margin
    if rng.random() < PAGES:
        hr = page(wide, rng)
    else:
        size = int(rng.choice(list(scans.shares), p=list(scans.shares.values())))
        images = scans.images[size]
        image = images[int(rng.integers(len(images)))]
        top, left = rng.integers(0, size - wide + 1, 2)
        hr = image[top : top + wide, left : left + wide]
        hr = np.ascontiguousarray(hr[:, :: -1 if rng.random() < 0.5 else 1])
        if rng.random() < MARKED:
            hr = mark(hr, rng)
    lr, hr = degrade(hr, d, rng)
    if margin:
        top, left = rng.integers(0, GRID, 2)
        lr = lr[top : top + side // SCALE, left : left + side // SCALE]
        hr = hr[SCALE * top : SCALE * top + side, SCALE * left : SCALE * left + side]
    if d.blur:
        known, clean = OTHER, degrade(hr, Degradation(kernel=d.kernel, blur=d.blur), rng)[0].astype(np.float32)
    else:
        known, clean = REDUCTIONS.index(d.kernel), reduce(hr.astype(np.float32), d.kernel)
    return Sample(lr, hr, known, max(MIN_NOISE, float(np.std(lr - clean))))


class Batch(NamedTuple):
    """Batch of samples as tensors."""

    lr: Tensor
    """[B, 1, h, w] in [-1, 1]"""
    hr: Tensor
    """[B, 1, 4h, 4w] in [-1, 1]"""
    reduction: Tensor
    """int64 [B]"""
    noise: Tensor
    """[B], in gray levels"""

    def part(self, first: int, count: int) -> Batch:
        """Return up to ``count`` samples from ``first`` on."""
        return Batch(*(tensor[first : first + count] for tensor in self))

    @property
    def protocol(self) -> Tensor:
        """LR images made from HR by the paper's protocol: [B, 1, h, w] in [-1, 1]."""
        made = [downscale(image) for image in self.hr[:, 0].numpy()]
        return torch.from_numpy(np.stack(made)[:, None].clip(-1, 1))


def mean_loss(
    loss: nn.Module, held_out: Batch, size: int, arguments: Callable[[Batch, torch.Generator], tuple[object, ...]]
) -> float:
    """Return the mean loss of the samples, in parts of ``size``; ``arguments`` draws a part's with a generator."""
    total = 0.0
    for first in range(0, len(held_out.lr), size):
        part = held_out.part(first, size)
        given = to_device(arguments(part, torch.Generator().manual_seed(first)), device_of(loss))
        with torch.no_grad():
            total += len(part.lr) * float(loss(*given)["loss"])
    return total / len(held_out.lr)


def as_tensor(images: Sequence[NDArray[np.uint8]]) -> Tensor:
    """Convert B images uint8 [h, w] to float32 [B, 1, h, w] in [-1, 1]."""
    return torch.from_numpy(np.stack(images)[:, None].astype(np.float32) / 127.5 - 1)


def draw_samples(scans: Scans, side: int, seeds: Sequence[tuple[int, ...]]) -> Batch:
    """Draw one sample per seed."""
    samples = [draw_sample(scans, side, np.random.default_rng(seed)) for seed in seeds]
    lr, hr, reductions, noise = zip(*samples, strict=True)
    return Batch(as_tensor(lr), as_tensor(hr), torch.tensor(reductions), torch.tensor(noise, dtype=torch.float32))
