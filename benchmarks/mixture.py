"""A mixture of requests for an endurance test: sizes, options, file formats, and calls whose caller gives up."""

from __future__ import annotations

import itertools
import random
import threading
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian, generate_uid

from client import Client, ClientClosed, ServerError, Upscaled
from client.files import read_image
from pipeline.method.images import to_integers

SHAPES = ((16, 16), (24, 40), (33, 17), (48, 48), (64, 64), (64, 64), (80, 56), (96, 96))
FORMATS = ("png", "png16", "jpeg", "tiff", "npy", "dicom")
OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"steps": 2},
    {"samples": 2},
    {"samples": 3, "output": "mean"},
    {"faithful": False},
    {"degradation": "area"},
    {"pixel_mm": 0.7},
)
GIVEN_UP = 20
"""One request of so many is given up by its caller."""
LONG: dict[str, Any] = {"sampler": "ddpm", "samples": 4}
"""Options with which an image of 96² takes a minute."""
PATIENCE = 0.3
"""Maximum seconds until a caller gives up."""


@dataclass
class Mixture:
    """Requests by number, and what became of them."""

    client: Client
    files: list[Path]
    tolerance: float = 0.0
    """Maximum difference of an answer, in gray levels, from the first answer to the same request."""
    first: dict[int, Upscaled] = field(default_factory=dict)
    """Kind of request ⇒ its first answer."""
    largest: float = 0.0
    """Largest such difference so far."""
    outcomes: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def kinds(self) -> int:
        """Number of different requests: every file with every option."""
        return len(self.files) * len(OPTIONS)

    def call(self, number: int) -> None:
        """Send request ``number``; raise UpscaleError if it fails or differs too much."""
        chance = random.Random(number)
        outcome = self._give_up(chance) if number % GIVEN_UP == 0 else self._upscale(chance.randrange(self.kinds))
        with self.lock:
            self.outcomes[outcome] += 1

    def _upscale(self, kind: int) -> str:
        file, options = self.files[kind // len(OPTIONS)], OPTIONS[kind % len(OPTIONS)]
        found = self.client.upscale(read_image(file).image, seed=kind, **options)
        levels = difference(found, self.first.setdefault(kind, found))
        with self.lock:
            self.largest = max(self.largest, levels)
        if levels > self.tolerance:
            raise ServerError(f"the answer to {file.name} with {options} differs by {levels:.2g} gray levels")
        return "differently rounded" if levels else "equal"

    def _give_up(self, chance: random.Random) -> str:
        """Close the connection, or stop waiting, while the server works."""
        patience, closes = chance.uniform(0.05, PATIENCE), chance.random() < 0.5
        with Client(self.client.url, timeout=self.client.timeout if closes else patience) as client:
            closing = threading.Timer(patience, client.close)
            if closes:
                closing.start()
            try:
                client.upscale(np.zeros((96, 96), np.float32), **LONG)
            except ClientClosed:
                return "cancelled"
            except ServerError as error:
                if closes or "no answer" not in str(error):
                    raise
                return "timed out"
            finally:
                closing.cancel()
        return "answered before its caller gave up"


def difference(one: Upscaled, other: Upscaled) -> float:
    """Return the maximum difference of two answers' images and spreads, in gray levels."""
    pairs = [(one.image, other.image)]
    if one.spread is not None and other.spread is not None:
        pairs.append((one.spread, other.spread))
    return 255 * max(float(np.abs(a - b).max()) for a, b in pairs)


def make_mixture(client: Client, folder: Path, tolerance: float = 0.0) -> Mixture:
    """Write the images, one of every shape and format, into ``folder``."""
    rng = np.random.default_rng(0)
    files: list[Path] = []
    for (height, width), form in itertools.product(SHAPES, FORMATS):
        coarse = PILImage.fromarray(rng.random((height // 8, width // 8), dtype=np.float32))
        image = np.asarray(coarse.resize((width, height), PILImage.Resampling.BICUBIC)).clip(0, 1)
        files.append(folder / f"{form}-{len(files)}")
        write(files[-1], image, form)
    return Mixture(client, files, tolerance)


def write(path: Path, image: NDArray[np.float32], form: str) -> None:
    """Write an image, float32 [H, W] in [0, 1], in one of ``FORMATS``."""
    if form == "npy":
        with open(path, "wb") as file:
            np.save(file, image)
    elif form == "dicom":
        dicom(to_integers(image, 16)).save_as(path, enforce_file_format=True)
    else:
        bits = 8 if form in ("png", "jpeg") else 16
        PILImage.fromarray(to_integers(image, bits)).save(path, format=form.removesuffix("16").upper())


def dicom(pixels: NDArray[Any], bits: int = 16) -> Dataset:
    """Return a radiograph of one frame, uint16 [H, W] with values of so many bits."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = ComputedRadiographyImageStorage, generate_uid()
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = *pixels.shape, 1
    dataset.PhotometricInterpretation, dataset.PixelRepresentation = "MONOCHROME2", 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, bits, bits - 1
    dataset.PixelData = pixels.tobytes()
    return dataset
