"""Fit a preset's 90 % band on validation patients, or measure its coverage on other patients.

python -m train.calibrate --data data/nih
python -m train.calibrate --data data/nih --split test --degradation cubic area jpeg50 noise5
python -m train.calibrate --data data/nih --limit 24 --hr-size 256 512
python -m train.calibrate --data data/iu --split all --limit 64 --preset paper
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from pipeline.command_line import make_parser, one_line_errors
from pipeline.method.images import Image
from pipeline.method.options import Options
from pipeline.method.upscale import Samples, draw_samples
from pipeline.networks import eager
from pipeline.presets import DEFAULT, PRESETS, Band
from pipeline.spec import MAX_SAMPLES, NOISY, PROTOCOL
from train.config import DEVICES, choose_device
from train.data import PairDataset, read_index
from train.degrade import DEGRADATION_ROWS
from train.evaluate import add_choice, add_degradations, choose, degraded
from train.report import markdown

SHARE = 0.91
"""Share of pixels within the band: one point above 90 %, as coverage is lower at strong gradients."""
COUNTS = (1, 2, 3, 4, 8, MAX_SAMPLES)
"""Numbers of samples with a scale of their own."""
STRONG_SHARE = 0.1
"""Share of an image's pixels whose gradients count as strong."""
USUAL_SHARE = 0.99
"""Share of the images whose expected error counts as usual."""

HEADS = (
    *("LR by", "samples", "pixels within the band", "range over images", "strongest tenth of gradients"),
    *("mean half-width (gray levels)", "expected and true error (rank correlation)"),
)

Pixels = NDArray[np.float32]


class Observation(NamedTuple):
    """Measurements of an image for one number of samples."""

    error: Pixels
    """│HR - mean of the samples│, float32 [4H, 4W]"""
    doubt: Pixels
    """doubt of the samples, float32 [4H, 4W]"""
    strong: NDArray[np.bool_]
    """mask of HR's strong gradients"""
    noisy: bool = False
    """whether noise or compression changed much of the LR image"""


Observations = Mapping[int, Sequence[Observation]]
"""Images by number of samples."""


def strong(image: Image) -> NDArray[np.bool_]:
    """Return the mask of the strongest gradients (Sobel)."""
    gradient = np.hypot(cv2.Sobel(image, cv2.CV_32F, 1, 0), cv2.Sobel(image, cv2.CV_32F, 0, 1))
    return gradient >= np.quantile(gradient, 1 - STRONG_SHARE)


def observe(pairs: PairDataset, system: eager.Eager, counts: Sequence[int]) -> Observations:
    """Measure samples of these images, drawn with the preset's settings; image i has seed i."""
    preset, generate = system.preset, system.generator()
    found: dict[int, list[Observation]] = {count: [] for count in counts}
    for i in tqdm(range(len(pairs)), desc="samples", unit="image", leave=False):
        lr, hr = pairs.unit_images(i)
        drawn = next(draw_samples([lr], [i], generate, preset, Options.of(preset, samples=max(counts))))
        where = strong(hr)
        for count in counts:
            some = Samples(drawn.images[:count], drawn.history, drawn.network_doubt)
            if (doubt := some.doubt()) is not None:
                error, noisy = np.abs(hr - np.mean(some.images, axis=0)), drawn.history.noise > NOISY
                found[count].append(Observation(error, doubt, where, noisy))
    return {count: observed for count, observed in found.items() if observed}


def quantile(observed: Sequence[Observation]) -> float:
    """Return the scale at which ``SHARE`` of the pixels lie within scale·doubt (split conformal prediction)."""
    return float(np.quantile(np.concatenate([(o.error / o.doubt).ravel() for o in observed]), SHARE))


def fit(rows: Mapping[str, Observations], predicts_doubt: bool) -> Band:
    """Fit the band that covers about ``SHARE`` of the pixels of every row: the midpoint of the scales that rows need.

    Rows of noisy images have a factor of their own. The scales of several samples come from the row that has them,
    relative to one sample. ``predicts_doubt``: the networks predict their doubt, and with it the expected error.
    """
    if not predicts_doubt:
        first = next(iter(rows.values()))
        return Band(tuple((count, round(quantile(observed), 3)) for count, observed in first.items()))
    every = [observed for found in rows.values() for observed in found[1]]
    needed: dict[bool, list[float]] = {False: [], True: []}
    for found in rows.values():
        needed[bool(np.mean([o.noisy for o in found[1]]) > 0.5)].append(quantile(found[1]))
    clean, noisy_scale = ((min(scales) + max(scales)) / 2 if scales else None for scales in needed.values())
    one = clean or noisy_scale or 1.0
    noisy = 1.0 if noisy_scale is None else noisy_scale / one
    doubts = np.array([o.doubt.mean() * (noisy if o.noisy else 1.0) for o in every])
    error = float(np.mean([o.error.mean() for o in every]) / doubts.mean())
    several = next(found for found in rows.values() if len(found) == len(COUNTS))
    return Band(
        tuple((count, round(one * quantile(several[count]) / quantile(several[1]), 3)) for count in COUNTS),
        error=round(error, 3),
        noisy=round(noisy, 3),
        usual=round(float(np.quantile(error * doubts, USUAL_SHARE)), 4),
    )


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """Return Spearman's rank correlation."""
    first, second = (np.argsort(np.argsort(values)) for values in (x, y))
    return float(np.corrcoef(first, second)[0, 1])


def report(rows: Mapping[str, Observations], band: Band) -> str:
    """Format the band's coverage of these images, one row per degradation and number of samples."""
    lines = []
    for name, found in rows.items():
        for count, observed in found.items():
            if (scale := band.scale(count)) is None:
                continue
            doubts = [o.doubt * np.float32(band.noisy if o.noisy else 1.0) for o in observed]
            held = [o.error <= scale * doubt for o, doubt in zip(observed, doubts, strict=True)]
            coverages = [100 * float(within.mean()) for within in held]
            edges = 100 * float(np.mean([within[o.strong].mean() for within, o in zip(held, observed, strict=True)]))
            means = [float(doubt.mean()) for doubt in doubts]
            width = 255 * scale * float(np.mean(means))
            truth = [float(o.error.mean()) for o in observed]
            ranks = spearman(means, truth) if len(observed) > 1 else float("nan")
            error = 255 * (band.error or float("nan")) * float(np.mean(means))
            spread = f"{min(coverages):.0f}–{max(coverages):.0f} %"
            errors = f"{error:.1f}, {255 * np.mean(truth):.1f} ({ranks:.2f})"
            cells = [f"{np.mean(coverages):.1f} %", spread, f"{edges:.1f} %", f"{width:.1f}", errors]
            lines.append([name, str(count), *cells])
    return markdown(HEADS, lines)


@one_line_errors(ValueError, OSError)
def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__doc__, "python -m train.calibrate")
    add_choice(parser, split="val")
    add_degradations(parser, default=list(DEGRADATION_ROWS), several=True)
    parser.add_argument("--preset", choices=PRESETS, default=DEFAULT.name, help="default: %(default)s")
    parser.add_argument("--weights", type=Path, help="default: weights/PRESET")
    parser.add_argument("--device", choices=DEVICES, default="auto", help="auto uses a GPU if there is one")
    args = parser.parse_args(argv)
    preset = PRESETS[args.preset]
    index = read_index(args.index)
    chosen = [choose(args.data, args.split, args.limit, index, args.shares, size) for size in args.hr_size]
    weights = args.weights or Path("weights") / preset.name
    system = eager.load(weights, preset, device=choose_device(args.device))
    predicts_doubt = preset.vae.sees_lr
    rows: dict[str, Observations] = {}
    # other presets assume the protocol for every image
    for (pairs, _), name in product(chosen, args.degradation if predicts_doubt else [PROTOCOL]):
        counts = COUNTS if pairs is chosen[0][0] and name == PROTOCOL else (1,)
        rows[f"{pairs.data.hr_size}, {name}"] = observe(degraded(pairs, name), system, counts)
    for pairs, patients in chosen:
        summary = f"{len(pairs)} images of {len(set(patients))} patients"
        print(f"{summary}, {pairs.data.hr_size} pixels, split {args.split}; preset {preset.name}")
    print()
    print(report(rows, preset.band))
    if PROTOCOL in args.degradation:
        print(f"\nfitted to these images: {fit(rows, predicts_doubt)}")
    if predicts_doubt:
        every = [o for found in rows.values() for o in found[1]]
        factors = [preset.band.noisy if o.noisy else 1.0 for o in every]
        doubts = [float(factor * o.doubt.mean()) for factor, o in zip(factors, every, strict=True)]
        ranks = spearman(doubts, [float(o.error.mean()) for o in every])
        print(f"expected and true error of all images of all rows: rank correlation {ranks:.2f}")


if __name__ == "__main__":
    sys.exit(main())
