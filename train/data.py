"""Training data: pairs on disk, their patients, the split by patient, and the dataset of tensors."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from pipeline.method.images import Image, from_integers, to_network
from pipeline.presets import DataSpec
from pipeline.spec import SCALE
from train.augment import apply, draw, random_crop
from train.degrade import Degradation, degrade
from train.pairs import HR_SIZE, folders
from train.paper import SPLIT, AugmentationSpec

SPLITS = ("train", "val", "test")
SHARES = "/".join(f"{100 * share:g}" for share in SPLIT)
"""Default shares of the patients, in percent."""

PATIENT_IN_NAME = re.compile(r"(\d{8})_\d{3}\.|(?:CXR)?(\d+)_IM-")
"""File names of NIH ChestX-ray14, PATIENT_FOLLOWUP, and Open-i, CXRPATIENT_IM-… (often without CXR)."""

VALIDATION_IMAGES = 32

Index = dict[str, str]
"""Patient IDs by file name without suffix, as train.pairs always writes PNG."""


def read_index(path: Path | None) -> Index:
    """Read the columns ``file`` and ``patient`` of a CSV file; None gives an empty index.

    Raises:
        ValueError: the file is malformed, a column or value is missing, or a file has two patients.
        OSError: the file cannot be read.
    """
    if path is None:
        return {}
    try:
        return _read_rows(path)
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"'{path}' must be a CSV file in UTF-8: {error}") from error


def _read_rows(path: Path) -> Index:
    index: Index = {}
    with open(path, newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        if missing := {"file", "patient"} - set(rows.fieldnames or ()):
            raise ValueError(f"'{path}' must have the columns file and patient, missing: {', '.join(sorted(missing))}")
        for row in rows:
            name, patient = row["file"], row["patient"]
            if not name or not patient:
                raise ValueError(f"'{path}', line {rows.line_num}: file or patient is missing")
            if index.setdefault(Path(name).stem, patient) != patient:
                raise ValueError(f"'{path}', line {rows.line_num}: '{name}' already has another patient")
    return index


def patient_of(path: Path, index: Index) -> str:
    """Return the patient ID from the index, or else from an NIH or Open-i file name.

    Raises:
        ValueError: neither has it.
    """
    if path.stem in index:
        return index[path.stem]
    if match := PATIENT_IN_NAME.match(path.name):
        return match[1] or match[2]
    raise ValueError(
        f"no patient ID in the file name '{path.name}' (NIH: 00000061_012.png, Open-i: CXR1000_IM-0003-1001.png): "
        "use --index with a CSV file with the columns file and patient"
    )


def split_by_patient(
    paths: Sequence[Path], shares: tuple[float, float, float], index: Index | None = None, seed: int = 0
) -> dict[str, list[Path]]:
    """Split files into train, val and test so that each patient is in only one of them.

    Args:
        paths: image files.
        shares: shares of the patients in train, val and test; they sum to 1.
        index: patient IDs missing from the file names.
        seed: seed of the shuffle, which depends on it and the patient IDs only.

    Raises:
        ValueError: the shares are invalid, a side gets no patients, or a file's patient is unknown.
    """
    if min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
        raise ValueError(f"the split must be three shares of the patients that sum to 1, got {shares}")
    patient = {path: patient_of(path, index or {}) for path in paths}
    patients = sorted(set(patient.values()))
    np.random.default_rng(seed).shuffle(patients)
    ends = np.rint(np.cumsum(shares) * len(patients)).astype(int)
    sides = dict(zip(SPLITS, map(set, np.split(np.array(patients), ends[:-1])), strict=True))
    for side, share in zip(SPLITS, shares, strict=True):
        if share and not sides[side]:
            raise ValueError(f"{len(patients)} patients are too few to give {side} a share of {share:g}")
    return {side: sorted(path for path in paths if patient[path] in members) for side, members in sides.items()}


def parse_split(text: str) -> tuple[float, float, float]:
    """Parse ``70/20/10`` into (0.7, 0.2, 0.1).

    Raises:
        ValueError: the text is not three percentages.
    """
    try:
        train, val, test = (float(part) / 100 for part in text.split("/"))
    except ValueError:
        raise ValueError(f"the split must be three percentages such as 70/20/10, got '{text}'") from None
    return train, val, test


def spread_evenly(total: int, count: int) -> list[int]:
    """Return ``count`` evenly spaced indices from 0 to total-1, or all if there are fewer."""
    return np.linspace(0, total - 1, min(count, total)).astype(int).tolist()


def list_pairs(root: Path, hr_size: int = HR_SIZE) -> list[Path]:
    """List the HR files of a size in a folder written by ``train.pairs``, sorted; each has its LR file.

    Raises:
        ValueError: it is not such a folder, there are no files, or an LR file is missing.
    """
    high, low = (root / name for name in folders(hr_size))
    if not high.is_dir() or not low.is_dir():
        size = "" if hr_size == HR_SIZE else f" --hr-size {hr_size}"
        raise ValueError(
            f"'{root}' has no {high.name}/ and {low.name}/: run  python -m train.pairs IMAGES {root}{size}"
        )
    paths = sorted(high.glob("*.png"))
    if not paths:
        raise ValueError(f"no PNG files in '{high}'")
    found = {path.name for path in low.glob("*.png")}
    if missing := [path.name for path in paths if path.name not in found]:
        raise ValueError(f"{len(missing)} files of '{high}' are missing from {low.name}/, the first is {missing[0]}")
    return paths


def read_gray(path: Path, size: int) -> NDArray[np.uint8]:
    """Read an image as uint8 [size, size].

    Raises:
        ValueError: the file is not a readable 8-bit gray image of that size.
    """
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise ValueError(f"'{path}' is not a readable image")
    if image.shape != (size, size) or image.dtype != np.uint8:
        channels = 1 if image.ndim == 2 else image.shape[2]
        raise ValueError(
            f"'{path}' must be {size}x{size}, uint8, 1 channel, got {image.shape[1]}x{image.shape[0]}, {image.dtype}, "
            f"{channels} channel(s): use files made by train.pairs"
        )
    return image


class PairDataset(Dataset[tuple[Tensor, Tensor]]):
    """Dataset of (LR [C, 64, 64], HR [C, 256, 256]), or another size, float32 in [-1, 1].

    Item i depends on the seed and i alone: image i mod N, augmented anew in every pass i div N. With a
    ``degradation``, LR is made from HR instead of read.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        data: DataSpec,
        augmentation: AugmentationSpec | None = None,
        passes: int = 1,
        seed: int = 0,
        degradation: Degradation | None = None,
    ) -> None:
        self.paths, self.data, self.augmentation, self.passes, self.seed = paths, data, augmentation, passes, seed
        self.degradation = degradation

    def __len__(self) -> int:
        return len(self.paths) * self.passes

    def images(self, i: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Return (LR, HR) of item i as 8-bit gray images.

        Raises:
            ValueError: a file is unreadable or not in the preset's format.
        """
        path = self.paths[i % len(self.paths)]
        hr = read_gray(path, self.data.hr_size)
        if self.degradation is not None:
            lr, hr = degrade(hr, self.degradation, np.random.default_rng([self.seed, i]))
        else:
            lr = read_gray(path.parent.parent / folders(self.data.hr_size)[1] / path.name, self.data.lr_size)
        if self.augmentation is None:
            return lr, hr
        chosen = draw(self.augmentation, self.data.lr_size, np.random.default_rng([self.seed, i]))
        return apply(chosen, lr, 1), apply(chosen, hr, SCALE)

    def unit_images(self, i: int) -> tuple[Image, Image]:
        """Return (LR, HR) of item i in [0, 1]."""
        lr, hr = map(from_integers, self.images(i))
        return lr, hr

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        lr, hr = (as_network(image, self.data.channels) for image in self.images(i))
        return lr, hr


def as_network(image: NDArray[np.uint8], channels: int) -> Tensor:
    """Convert uint8 [H, W] to float32 [channels, H, W] in [-1, 1]."""
    return torch.from_numpy(to_network(from_integers(image), channels))


def draw_squares(images: PairDataset, side: int, seeds: Sequence[tuple[int, ...]]) -> tuple[Tensor, Tensor]:
    """Draw a square of a random pair for each seed: (LR [B, C, side/4, side/4], HR [B, C, side, side]) in [-1, 1]."""
    pairs = []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        crops = random_crop(*images.images(int(rng.integers(len(images)))), side // SCALE, rng)
        pairs.append([as_network(crop, images.data.channels) for crop in crops])
    lr, hr = (torch.stack(halves) for halves in zip(*pairs, strict=True))
    return lr, hr


def validation_images(paths: Sequence[Path], spec: DataSpec) -> PairDataset:
    """Return up to 32 evenly spaced validation pairs, to be evaluated as whole images."""
    every = max(1, len(paths) // VALIDATION_IMAGES)
    return PairDataset(paths[::every][:VALIDATION_IMAGES], spec)
