"""Measure PSNR, SSIM and LPIPS of bicubic, the autoencoder alone and the system on held-out patients.

python -m train.evaluate --data data/nih --report results/nih --reported nih
python -m train.evaluate --data data/iu --split all --limit 64 --runtimes bicubic,torch,onnx
python -m train.evaluate --data data/nih --run ddim:4:noise ddim:1:noise ddim:4:noise:mean16 ddim:4:noise:free
python -m train.evaluate --data data/nih --runtimes torch --lpips alex --degradation cubic area noise5
python -m train.evaluate --data data/nih --runtimes torch --lpips alex --hr-size 512 --degradation cubic area
python -m train.evaluate --data data/nih --preset paper --runtimes torch --run ddpm:300:lr ddpm:300:noise ddim:10:lr
python -m train.evaluate --data data/nih --runtimes server,trt --url gpu-server:8001
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from client import UpscaleError
from pipeline.command_line import make_parser, one_line_errors
from pipeline.method.images import Image, from_integers, psnr, ssim, to_integers, to_network
from pipeline.method.reduction import reduce
from pipeline.networks import eager
from pipeline.networks.weights import write_metadata
from pipeline.presets import DEFAULT, PRESETS, DataSpec
from pipeline.spec import PROTOCOL, SCALE, ReductionName
from train.config import DEVICES, choose_device
from train.data import (
    SHARES,
    SPLITS,
    Index,
    PairDataset,
    list_pairs,
    parse_split,
    patient_of,
    read_index,
    split_by_patient,
    spread_evenly,
)
from train.degrade import DEGRADATION_ROWS
from train.figures import runtimes_figure, upscaled_figure
from train.lpips import LPIPS
from train.lpips_weights import LPIPSNet
from train.methods import RUNTIMES, Method, Sampling, default_run, make_methods, name_of, parse_run, parse_runtimes
from train.pairs import HR_SIZE
from train.paper import REPORTED
from train.report import Measured, overview, table, write_csv

BATCH = 16
TIMED = 5
NETS: tuple[LPIPSNet, ...] = ("alex", "vgg")


def lr_error(image: Image, lr: Image, reduction: ReductionName) -> float:
    """Return max │LR - reduced(image)│ in gray levels (0–255); the 8-bit image is reduced as LR was and clipped."""
    reduced = reduce(from_integers(to_integers(image, 8)), reduction).clip(0, 1)
    return 255.0 * float(np.abs(reduced - lr).max())


def inner(image: Image) -> Image:
    """Return the inner 80 % in each direction: borders and collimators would flatter the mean."""
    rows, columns = (slice(side // 10, side - side // 10) for side in image.shape)
    return np.ascontiguousarray(image[rows, columns])


def measure(pairs: PairDataset, methods: dict[str, Method], nets: Sequence[LPIPSNet] = NETS) -> dict[str, Measured]:
    """Measure all metrics of ``train.report`` for each method and image, and seconds per image; image i has seed i."""
    distances = {f"lpips_{net}": LPIPS(net) for net in nets}
    reduction = PROTOCOL if pairs.degradation is None else pairs.degradation.kernel
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in methods}
    for start in tqdm(range(0, len(pairs), BATCH), desc="evaluate", unit="batch", leave=False):
        seeds = list(range(start, min(start + BATCH, len(pairs))))
        lr, hr = (list(side) for side in zip(*map(pairs.unit_images, seeds), strict=True))
        for name, method in methods.items():
            for image, small, reference in zip(method(lr, hr, seeds), lr, hr, strict=True):
                with torch.inference_mode():
                    x, y = (torch.from_numpy(to_network(a, 3))[None] for a in (image, reference))
                    row = {metric: lpips(x, y).item() for metric, lpips in distances.items()}
                fidelity = {
                    "psnr": psnr(image, reference),
                    "psnr_inner": psnr(inner(image), inner(reference)),
                    "ssim": ssim(image, reference),
                }
                rows[name].append({**row, **fidelity, "lr_error": lr_error(image, small, reduction)})
    return {
        name: Measured(
            {metric: np.array([row[metric] for row in rows[name]]) for metric in rows[name][0]},
            seconds_per_image(pairs, methods[name]),
        )
        for name in methods
    }


def seconds_per_image(pairs: PairDataset, method: Method) -> float:
    """Return the median seconds of a single image, after one warm-up."""
    times = []
    for i in range(min(TIMED + 1, len(pairs))):
        lr, hr = pairs.unit_images(i)
        began = time.perf_counter()
        method([lr], [hr], [i])
        times.append(time.perf_counter() - began)
    return float(np.median(times[1:] or times))


def choose(
    data: Path, side: str, limit: int | None, index: Index, shares: str = SHARES, hr_size: int = HR_SIZE
) -> tuple[PairDataset, list[str]]:
    """Return the pairs of one side of the split, or ``limit`` evenly spaced ones, and their patients.

    Raises:
        ValueError: there are no pairs, or the patients are unknown.
    """
    paths = list_pairs(data, hr_size)
    if side != "all":
        paths = split_by_patient(paths, parse_split(shares), index)[side]
        if not paths:
            raise ValueError(f"the split {shares} gives {side} no patients")
    if limit is not None:
        if limit < 1:
            raise ValueError(f"--limit must be at least 1, got {limit}")
        paths = [paths[i] for i in spread_evenly(len(paths), limit)]
    spec = DataSpec(hr_size=hr_size, lr_size=hr_size // SCALE)
    return PairDataset(paths, spec), [patient_of(path, index) for path in paths]


def add_choice(parser: argparse.ArgumentParser, split: str = "test") -> None:
    """Add the options for ``choose``; ``split`` is the default side."""
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder written by train.pairs")
    add("--split", choices=(*SPLITS, "all"), default=split, help="part of the split by patient (default: %(default)s)")
    add("--shares", default=SHARES, help="shares of the split in percent, as in training (default: %(default)s)")
    add("--index", type=Path, help="CSV file with the columns file and patient, for file names without a patient ID")
    add("--limit", type=int, help="maximum number of images, evenly spaced")


def add_degradations(parser: argparse.ArgumentParser, default: list[str], several: bool = False) -> None:
    """Add the options for the degradation and size (or, with ``several``, sizes) of images."""
    parser.add_argument(
        "--degradation",
        nargs="+",
        choices=DEGRADATION_ROWS,
        default=default,
        metavar="NAME",
        help=f"how LR images are made from HR: {', '.join(DEGRADATION_ROWS)} (default: {', '.join(default)})",
    )
    number: dict[str, Any] = {"nargs": "+", "default": [HR_SIZE]} if several else {"default": HR_SIZE}
    parser.add_argument(
        "--hr-size", type=int, metavar="N", help=f"side of the HR images (default: {HR_SIZE})", **number
    )


def degraded(pairs: PairDataset, name: str) -> PairDataset:
    """Return the pairs with LR images of a named degradation; those of the protocol are files."""
    return pairs if name == PROTOCOL else PairDataset(pairs.paths, pairs.data, degradation=DEGRADATION_ROWS[name])


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = make_parser(__doc__, "python -m train.evaluate")
    add = parser.add_argument
    add_choice(parser)
    add("--preset", choices=PRESETS, default=DEFAULT.name, help="default: %(default)s")
    add_degradations(parser, default=[PROTOCOL])
    add(
        "--runtimes",
        type=parse_runtimes,
        default=("bicubic", "onnx"),
        metavar="NAME,…",
        help=f"runtimes among {', '.join(RUNTIMES)}; server and trt run at --url (default: bicubic,onnx)",
    )
    add(
        "--run",
        type=parse_run,
        nargs="+",
        metavar="SAMPLER:STEPS:START",
        help="such as ddim:4:noise, optionally with :mean16, :free, :faithful, or a declared reduction, such as :area "
        "(default: the preset's)",
    )
    add("--lpips", nargs="+", choices=NETS, default=NETS, help="backbones (default: both; VGG is slow)")
    add("--device", choices=DEVICES, default="auto", help="device for PyTorch; auto uses a GPU if there is one")
    add("--weights", type=Path, help="default: weights/PRESET")
    add("--model-repository", type=Path, default=Path("model_repository"), help="default: %(default)s")
    add("--url", default="localhost:8001", help="gRPC address of a running server (default: %(default)s)")
    add("--report", type=Path, help="folder for results.md, images.csv and images of the first run")
    add("--reported", choices=sorted({row.dataset for row in REPORTED}), help="add the paper's results on this dataset")
    add("--record", metavar="NAME", help="store the results under this name in the weights' metadata")
    return parser.parse_args(argv)


def evaluate(args: argparse.Namespace) -> None:
    """Run the command with parsed options.

    Raises:
        ValueError, OSError, UpscaleError: the message says what is wrong.
    """
    if "alex" not in args.lpips:
        raise ValueError("--lpips must include alex, the paper's backbone; vgg is optional")
    pairs, patients = choose(args.data, args.split, args.limit, read_index(args.index), args.shares, args.hr_size)
    device = choose_device(args.device)
    preset = PRESETS[args.preset]
    weights = args.weights or Path("weights") / preset.name
    runs = args.run or [default_run(preset)]
    system = eager.load(weights, preset, device=device)
    methods = make_methods(args.runtimes, runs, system, args.model_repository, args.url)
    found = {}
    for name in args.degradation:
        rows = degraded(pairs, name)
        found[name] = measure(rows, methods, args.lpips)
        reported = [row for row in REPORTED if row.dataset == args.reported and name == PROTOCOL]
        text = (
            f"{len(pairs)} images of {len(set(patients))} patients, split {args.split}, LR by {name}, "
            f"{pairs.data.lr_size} to {args.hr_size} pixels; PyTorch on {device}, ONNX on cpu\n\n"
            f"{table(found[name], patients, reported)}\n"
        )
        print(text)
        if args.report:
            folder = args.report if len(args.degradation) == 1 else args.report / name
            write_report(folder, text, rows, patients, found[name], methods, runs[0])
    if len(found) > 1:
        print(overview(found))
    if args.record:
        record(weights, args.record, found[args.degradation[0]])


def write_report(
    folder: Path,
    text: str,
    pairs: PairDataset,
    patients: Sequence[str],
    results: dict[str, Measured],
    methods: dict[str, Method],
    run: Sampling,
) -> None:
    """Write the table, the results of each image, and sample images of the run."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.md").write_text(text, encoding="utf-8")
    write_csv(folder / "images.csv", results, [path.name for path in pairs.paths], patients)
    systems = {RUNTIMES[r]: methods[name] for r in RUNTIMES if (name := name_of(r, run)) in methods}
    if systems:
        upscaled_figure(pairs, next(iter(systems.values()))).save(folder / "upscaled.png")
    if len(systems) > 1:
        runtimes_figure(pairs, systems).save(folder / "runtimes.png")
    print(f"wrote '{folder}'")


def record(weights: Path, name: str, results: dict[str, Measured]) -> None:
    """Store the mean of every metric in the metadata of both networks."""
    means = {
        method: {metric: round(float(values.mean()), 4) for metric, values in measured.values.items()}
        for method, measured in results.items()
    }
    for network in ("vae", "unet"):
        path = weights / f"{network}.json"
        metadata = json.loads(path.read_text())
        metadata.setdefault("metrics", {})[name] = means
        write_metadata(path, metadata)


@one_line_errors(ValueError, OSError, ImportError, UpscaleError, interrupted="interrupted; nothing was written")
def main(argv: list[str] | None = None) -> None:
    evaluate(parse_arguments(argv))


if __name__ == "__main__":
    sys.exit(main())
