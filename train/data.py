"""The data: files, patient-wise split, images in memory."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.images import downscale, to_network, upsample
from pipeline.spec import DataSpec

SPLITS = ("train", "val", "test")


def patient_of(path: Path) -> str:
    """Patient id of an NIH file name, ``PATIENT_FOLLOWUP.png``."""
    return path.stem.split("_")[0]


def split_by_patient(paths: list[Path], data: DataSpec, seed: int = 0) -> dict[str, list[Path]]:
    """Divide files into train, val and test so that no patient is on two sides.

    The patients' order depends on the seed and the patient ids alone.
    """
    patients = sorted({patient_of(path) for path in paths})
    np.random.default_rng(seed).shuffle(patients)
    ends = np.rint(np.cumsum(data.split) * len(patients)).astype(int)
    sides = dict(zip(SPLITS, np.split(np.array(patients), ends[:-1]), strict=True))
    return {side: sorted(p for p in paths if patient_of(p) in set(members)) for side, members in sides.items()}


def list_images(folder: Path) -> list[Path]:
    """The PNG files of a folder, sorted.

    Raises:
        ValueError: there are none.
    """
    paths = sorted(folder.glob("*.png"))
    if not paths:
        raise ValueError(f"no PNG files in '{folder}'")
    return paths


def read_gray(path: Path) -> NDArray[np.uint8]:
    """uint8 [H, W].

    Raises:
        ValueError: the file is not a readable image.
    """
    image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    if image is None:
        raise ValueError(f"'{path}' is not a readable image")
    return image.astype(np.uint8)


def augment(
    image: NDArray[np.uint8], size: int, scale: tuple[float, float], rng: np.random.Generator
) -> NDArray[np.uint8]:
    """A random square crop, ``scale`` times the image's side, resized to ``size``² and flipped half of the time."""
    side = round(image.shape[0] * rng.uniform(*scale))
    top, left = rng.integers(0, np.array(image.shape) - side + 1)
    crop = image[top : top + side, left : left + side]
    if side != size:
        crop = cv2.resize(crop, (size, size), interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(crop[:, ::-1] if rng.random() < 0.5 else crop)


def network_pair(hr: NDArray[np.uint8], channels: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """An 8-bit HR image ⇒ (HR, bicubically upsampled LR) as the encoder takes them, [C, H, W] in [-1, 1]."""
    lr = downscale(hr).astype(np.float32) / 255
    return to_network(hr.astype(np.float32) / 255, channels), to_network(upsample(lr), channels)
