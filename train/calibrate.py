"""Fit the 90 % band of a preset on validation patients, and count how many pixels of other patients it holds.

python -m train.calibrate --data data/nih
python -m train.calibrate --data data/nih --split test
python -m train.calibrate --data data/iu --split all --limit 64 --preset paper
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from pipeline import eager
from pipeline.command_line import make_parser
from pipeline.spec import DEFAULT, MAX_SAMPLES, PRESETS, Band
from pipeline.superres import doubt, draw_samples
from train.config import DEVICES, choose_device
from train.data import PairDataset, read_index
from train.evaluate import add_choice, choose

SHARE = 0.90
COUNTS = (2, 3, 4, 8, MAX_SAMPLES)
"""Numbers of samples that get a scale of their own."""


class Pixels(NamedTuple):
    """What is known of every pixel of every image, float32 [pixels]."""

    error: NDArray[np.float32]
    """│HR - mean of the samples│"""
    doubt: NDArray[np.float32]
    """of the samples"""


Scatter = Mapping[int, Pixels]
"""By number of samples."""


def scatter(pairs: PairDataset, system: eager.Eager) -> Scatter:
    """What samples of a system at the preset's own settings tell of these images; image i has seed i."""
    preset, generate = system.preset, system.generator()
    found: dict[int, list[Pixels]] = {count: [] for count in COUNTS}
    for i in tqdm(range(len(pairs)), desc="samples", unit="image", leave=False):
        lr, hr = pairs.unit_images(i)
        drawn = next(draw_samples([lr], [i], generate, preset, MAX_SAMPLES, preset.faithful))
        for count in COUNTS:
            some = drawn[:count]
            found[count].append(Pixels(np.abs(hr - np.mean(some, axis=0)).ravel(), doubt(some).ravel()))
    return {count: Pixels(*map(np.concatenate, zip(*rows, strict=True))) for count, rows in found.items()}


def fit(found: Scatter) -> Band:
    """The scales with which ``SHARE`` of the pixels lie within scale·doubt: split conformal prediction."""
    return Band(
        tuple(
            (count, round(float(np.quantile(pixels.error / pixels.doubt, SHARE)), 3)) for count, pixels in found.items()
        )
    )


def coverage(found: Scatter, band: Band) -> dict[int, tuple[float, float]]:
    """By number of samples: (share of the pixels within the band, its mean half-width in gray levels of 255)."""
    result = {}
    for count, pixels in found.items():
        spread = band.scale(count) * pixels.doubt
        result[count] = float((pixels.error <= spread).mean()), 255 * float(spread.mean())
    return result


def report(found: Scatter, band: Band) -> str:
    """The table of the preset's band on these images, and the band that would fit them."""
    lines = ["| samples | pixels within the band | mean half-width (gray levels) |", "|---|---|---|"]
    for count, (share, width) in coverage(found, band).items():
        lines.append(f"| {count} | {100 * share:.1f} % | {width:.1f} |")
    return "\n".join([*lines, "", f"fitted to these images: {fit(found)}"])


def main(argv: list[str] | None = None) -> int:
    parser = make_parser(__doc__, "python -m train.calibrate")
    add_choice(parser, split="val")
    parser.add_argument("--preset", choices=PRESETS, default=DEFAULT.name, help="default: %(default)s")
    parser.add_argument("--weights", type=Path, help="default: weights/PRESET")
    parser.add_argument("--device", choices=DEVICES, default="auto", help="auto takes a GPU where there is one")
    args: argparse.Namespace = parser.parse_args(argv)
    try:
        preset = PRESETS[args.preset]
        pairs, patients = choose(args.data, args.split, args.limit, read_index(args.index), args.shares)
        weights = args.weights or Path("weights") / preset.name
        found = scatter(pairs, eager.load(weights, preset, device=choose_device(args.device)))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    print(f"{len(pairs)} images of {len(set(patients))} patients, split {args.split}; preset {preset.name}\n")
    print(report(found, preset.band))
    return 0


if __name__ == "__main__":
    sys.exit(main())
