"""Measure fidelity beyond PSNR and LPIPS: text and markers, edges, dark areas, and invented detail.

python -m train.fidelity --data data/nih --presets best paper
python -m train.fidelity --data data/mhh --split all --index index.csv --limit 32
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from pipeline.command_line import make_parser, one_line_errors
from pipeline.method.images import Image
from pipeline.networks import eager
from pipeline.presets import DEFAULT, PRESETS
from train.config import DEVICES, choose_device
from train.data import PairDataset, read_index
from train.evaluate import BATCH, add_choice, choose
from train.methods import CEILING, Method, default_run, make_methods
from train.report import markdown

MEASURES = {
    "text": "text and markers: mean error ↓",
    "edges": "edges: error of the gradient ↓",
    "dark": "dark areas: mean shift",
    "invented": "pixels off by more than the autoencoder (%) ↓",
    "invented_common": "… than the first preset's autoencoder (%) ↓",
}
CONTRAST_WINDOW = 9
TEXT_CONTRAST = 0.5
"""Minimum contrast within the window at which pixels count as text, markers or the border of the exposed field."""
EDGE_QUANTILE = 0.8
DARK = 0.15


def text_mask(hr: Image) -> NDArray[np.bool_]:
    """Return the mask of pixels with the contrast of burnt-in text, markers, metal and borders."""
    window = np.ones((CONTRAST_WINDOW, CONTRAST_WINDOW), np.uint8)
    mask: NDArray[np.bool_] = cv2.dilate(hr, window) - cv2.erode(hr, window) > TEXT_CONTRAST
    return mask


def gradient(image: Image) -> NDArray[np.float32]:
    """Return the central differences per pixel, [2, H, W]."""
    return np.stack(np.gradient(image)).astype(np.float32)


def fidelity(image: Image, hr: Image, thresholds: Mapping[str, float]) -> dict[str, float]:
    """Measure one image, in gray levels (0–255) or percent; NaN if it has no such pixels.

    Args:
        image: the image to measure, [H, W] in [0, 1].
        hr: the reference.
        thresholds: errors above which a pixel counts as invented, by name of the measure.
    """
    error = np.abs(image - hr)
    text = text_mask(hr)
    slope = np.linalg.norm(gradient(hr), axis=0)
    body = ~text
    edges = body & (slope >= np.quantile(slope[body], EDGE_QUANTILE)) if body.any() else body
    off = np.linalg.norm(gradient(image) - gradient(hr), axis=0)
    dark = hr < DARK

    def mean(values: NDArray[np.float32], mask: NDArray[np.bool_]) -> float:
        return 255 * float(values[mask].mean()) if mask.any() else float("nan")

    return {
        "text": mean(error, text),
        "edges": mean(off, edges),
        "dark": mean(image - hr, dark),
        **{name: 100 * float((error > threshold).mean()) for name, threshold in thresholds.items()},
    }


def own_error(pairs: PairDataset, reconstruct: Method) -> float:
    """Return mean + 2σ of the autoencoder's error over all pixels, in [0, 1]."""
    errors = []
    for first in range(0, len(pairs), BATCH):
        items = range(first, min(first + BATCH, len(pairs)))
        lr, hr = (list(side) for side in zip(*map(pairs.unit_images, items), strict=True))
        errors += [np.abs(a - b).ravel() for a, b in zip(reconstruct(lr, hr, list(items)), hr, strict=True)]
    found = np.concatenate(errors)
    return float(found.mean() + 2 * found.std())


def measure(pairs: PairDataset, methods: Mapping[str, tuple[Method, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Return each method's mean of each measure; methods come with their thresholds, image i has seed i."""
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in methods}
    for i in tqdm(range(len(pairs)), desc="fidelity", unit="image", leave=False):
        lr, hr = pairs.unit_images(i)
        for name, (method, thresholds) in methods.items():
            rows[name].append(fidelity(method([lr], [hr], [i])[0], hr, thresholds))
    return {name: {key: mean_of([row[key] for row in found]) for key in found[0]} for name, found in rows.items()}


def mean_of(values: list[float]) -> float:
    """Return the mean ignoring NaN, or NaN if there are no other values."""
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")


def table(results: Mapping[str, Mapping[str, float]]) -> str:
    rows = [[name, *(f"{row[key]:.2f}" for key in MEASURES)] for name, row in results.items()]
    return markdown(["", *MEASURES.values()], rows)


def compare(pairs: PairDataset, presets: Sequence[str], device: str) -> dict[str, dict[str, float]]:
    """Measure bicubic and each preset with its shipped weights and default settings."""
    methods: dict[str, tuple[Method, dict[str, float]]] = {}
    common = None
    for name in presets:
        preset = PRESETS[name]
        system = eager.load(Path("weights") / name, preset, device=device)
        made = make_methods(("torch",), [default_run(preset)], system, Path(), "")
        own = own_error(pairs, made.pop(CEILING))
        common = own if common is None else common
        thresholds = {"invented": own, "invented_common": common}
        bicubic, upscaled = made.values()
        methods.setdefault("bicubic", (bicubic, thresholds))
        methods[f"preset {name} (its autoencoder: {255 * own:.1f} levels)"] = upscaled, thresholds
    return measure(pairs, methods)


@one_line_errors(ValueError, OSError)
def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__doc__, "python -m train.fidelity")
    add_choice(parser)
    parser.add_argument("--presets", nargs="+", choices=PRESETS, default=[DEFAULT.name], help="default: %(default)s")
    parser.add_argument("--device", choices=DEVICES, default="auto", help="auto uses a GPU if there is one")
    args = parser.parse_args(argv)
    pairs, patients = choose(args.data, args.split, args.limit, read_index(args.index), args.shares)
    results = compare(pairs, args.presets, choose_device(args.device))
    print(f"{len(pairs)} images of {len(set(patients))} patients, split {args.split}; gray levels (0–255) or percent\n")
    print(table(results))


if __name__ == "__main__":
    sys.exit(main())
