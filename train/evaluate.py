"""Measure bicubic, the autoencoder alone and the whole system on held-out patients: PSNR, SSIM, LPIPS.

python -m train.evaluate --data data/nih --report results/nih
python -m train.evaluate --data data/iu --split all --limit 64 --runtimes bicubic,torch,onnx
python -m train.evaluate --data data/nih --run ddpm:300:lr ddpm:300:noise ddim:10:lr --lpips alex
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from pipeline import eager
from pipeline.files import write_png
from pipeline.images import Image, from_network, psnr, ssim, to_network, upsample
from pipeline.onnx_networks import onnx_networks
from pipeline.pictures import comparison
from pipeline.spec import PAPER, SamplerName, Start
from pipeline.superres import upscale
from pipeline.weights import write_metadata
from train.data import SPLITS, Index, PairDataset, list_pairs, patient_of, read_index, split_by_patient
from train.lpips import LPIPS, LPIPSNet
from train.report import Measured, table, write_csv

BATCH = 16
TIMED = 3
NETS: tuple[LPIPSNet, ...] = ("alex", "vgg")
RUNTIMES = ("bicubic", "torch", "onnx")
Method = Callable[[list[Image], list[Image], list[int]], list[Image]]
"""(LR images, HR images, seeds) ⇒ images to compare with HR."""


def reconstruct(pipeline: eager.Eager, hr: list[Image]) -> list[Image]:
    """Encode and decode HR: the best that any denoiser could reach."""
    with torch.inference_mode():
        x = torch.from_numpy(np.stack([to_network(image, PAPER.data.channels) for image in hr]))
        return [from_network(y) for y in pipeline.decoder(pipeline.encoder(x)).numpy()]


def measure(pairs: PairDataset, methods: dict[str, Method], nets: Sequence[LPIPSNet] = NETS) -> dict[str, Measured]:
    """PSNR (dB, 8 bit), SSIM and LPIPS of each method on each image, and its time for one; image i has seed i."""
    distances = {f"lpips_{net}": LPIPS(net) for net in nets}
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in methods}
    for start in tqdm(range(0, len(pairs), BATCH), desc="evaluate", unit="batch"):
        seeds = list(range(start, min(start + BATCH, len(pairs))))
        lr, hr = ([to_unit(image) for image in side] for side in zip(*map(pairs.images, seeds), strict=True))
        for name, method in methods.items():
            for image, reference in zip(method(lr, hr, seeds), hr, strict=True):
                with torch.inference_mode():
                    x, y = (torch.from_numpy(to_network(a, 3))[None] for a in (image, reference))
                    row = {metric: lpips(x, y).item() for metric, lpips in distances.items()}
                rows[name].append({**row, "psnr": psnr(image, reference), "ssim": ssim(image, reference)})
    return {
        name: Measured(
            {metric: np.array([row[metric] for row in rows[name]]) for metric in rows[name][0]},
            seconds_an_image(pairs, methods[name]),
        )
        for name in methods
    }


def to_unit(image: NDArray[np.uint8]) -> Image:
    """8 bit ⇒ [0, 1]."""
    return (image / 255).astype(np.float32)


def seconds_an_image(pairs: PairDataset, method: Method) -> float:
    """The median time of one image, after one that warms up."""
    times = []
    for i in range(min(TIMED + 1, len(pairs))):
        lr, hr = (to_unit(image) for image in pairs.images(i))
        began = time.perf_counter()
        method([lr], [hr], [i])
        times.append(time.perf_counter() - began)
    return float(np.median(times[1:] or times))


def choose(data: Path, side: str, limit: int | None, index: Index) -> tuple[PairDataset, list[str]]:
    """The pairs of one side of the patients' split, or ``limit`` of them, evenly spread; and whose each is.

    Raises:
        ValueError: there are none, or the file names do not tell the patients.
    """
    paths = list_pairs(data)
    if side != "all":
        paths = split_by_patient(paths, PAPER.data.split, index)[side]
    if limit is not None:
        if limit < 1:
            raise ValueError(f"--limit is {limit}, it must be at least 1")
        paths = [paths[i] for i in np.linspace(0, len(paths) - 1, min(limit, len(paths))).astype(int)]
    return PairDataset(paths, PAPER.data), [patient_of(path, index) for path in paths]


@dataclass(frozen=True)
class Run:
    """A way to run the system."""

    sampler: SamplerName
    steps: int
    start: Start

    def __str__(self) -> str:
        start = "pure noise" if self.start == "noise" else "the LR latent"
        return f"{self.sampler.upper()}, {self.steps} steps, from {start}"


def parse_run(text: str) -> Run:
    """``SAMPLER:STEPS:START``, such as ``ddim:50:lr``."""
    match text.split(":"):
        case ["ddpm" | "ddim" as sampler, steps, "noise" | "lr" as start] if steps.isdecimal():
            if 1 <= int(steps) <= PAPER.diffusion.T:
                return Run(sampler, int(steps), start)
    raise argparse.ArgumentTypeError(f"'{text}', allowed are ddpm|ddim:1…{PAPER.diffusion.T}:noise|lr")


def methods_of(pipeline: eager.Eager, repository: Path, runtimes: Sequence[str], runs: list[Run]) -> dict[str, Method]:
    """Bicubic, the autoencoder alone, and every run on every runtime."""

    def bicubic(lr: list[Image], _hr: list[Image], _seeds: list[int]) -> list[Image]:
        return [np.clip(upsample(image), 0, 1) for image in lr]

    def autoencoder(_lr: list[Image], hr: list[Image], _seeds: list[int]) -> list[Image]:
        return reconstruct(pipeline, hr)

    def torch_run(run: Run) -> Method:
        return lambda lr, _hr, seeds: pipeline.upscale(lr, seeds, steps=run.steps, sampler=run.sampler, start=run.start)

    def onnx_run(run: Run) -> Method:
        networks = onnx_networks(repository)
        return lambda lr, _hr, seeds: upscale(
            lr, seeds, networks, PAPER, steps=run.steps, sampler=run.sampler, start=run.start
        )

    methods: dict[str, Method] = {"bicubic": bicubic, "autoencoder alone (ceiling)": autoencoder}
    for run in runs:
        if "torch" in runtimes:
            methods[f"PyTorch: {run}"] = torch_run(run)
        if "onnx" in runtimes:
            methods[f"ONNX: {run}"] = onnx_run(run)
    return methods


def parse_runtimes(text: str) -> tuple[str, ...]:
    """``bicubic,torch,onnx``, in any order; bicubic is always measured."""
    names = tuple(text.split(","))
    if unknown := set(names) - set(RUNTIMES):
        raise argparse.ArgumentTypeError(f"'{', '.join(sorted(unknown))}', allowed are {', '.join(RUNTIMES)}")
    return names


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m train.evaluate",
        description="Measure bicubic, the autoencoder alone and the whole system against HR images.",
        epilog="examples:\n" + "\n".join(f"  {line}" for line in (__doc__ or "").splitlines()[2:]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    d = PAPER.diffusion
    parser.add_argument("--data", type=Path, required=True, help="folder that train.pairs wrote")
    parser.add_argument(
        "--split", choices=(*SPLITS, "all"), default="test", help="side of the patients' split (default: %(default)s)"
    )
    parser.add_argument("--index", type=Path, help="CSV file with file and patient, for names that hold no patient id")
    parser.add_argument("--limit", type=int, help="only so many images, evenly spread")
    parser.add_argument(
        "--runtimes",
        type=parse_runtimes,
        default=("bicubic", "onnx"),
        metavar="NAME,…",
        help=f"of {', '.join(RUNTIMES)} (default: bicubic,onnx)",
    )
    parser.add_argument(
        "--run",
        type=parse_run,
        nargs="+",
        default=[Run(d.sampler, d.steps, d.start)],
        metavar="SAMPLER:STEPS:START",
        help="such as ddim:50:lr (default: the preset's)",
    )
    parser.add_argument("--lpips", nargs="+", choices=NETS, default=NETS, help="backbones (default: both; VGG is slow)")
    parser.add_argument("--weights", type=Path, default=Path("weights") / PAPER.name, help="default: %(default)s")
    parser.add_argument("--model-repository", type=Path, default=Path("model_repository"), help="default: %(default)s")
    parser.add_argument("--report", type=Path, help="folder for results.md and images.csv")
    parser.add_argument("--picture", type=Path, help="write a comparison of the first image here")
    parser.add_argument("--record", metavar="NAME", help="store the figures under this name in the weights' metadata")
    args = parser.parse_args(argv)
    try:
        if "alex" not in args.lpips:
            raise ValueError("--lpips needs alex, the backbone of the paper's figures; vgg may come beside it")
        pairs, patients = choose(args.data, args.split, args.limit, read_index(args.index))
        pipeline = eager.load(args.weights, PAPER)
        methods = methods_of(pipeline, args.model_repository, args.runtimes, args.run)
        results = measure(pairs, methods, args.lpips)
        text = (
            f"{len(pairs)} images of {len(set(patients))} patients, split {args.split}\n\n{table(results, patients)}\n"
        )
        print(f"\n{text}")
        if args.report:
            args.report.mkdir(parents=True, exist_ok=True)
            (args.report / "results.md").write_text(text, encoding="utf-8")
            write_csv(args.report / "images.csv", results, [path.name for path in pairs.paths], patients)
        if args.picture:
            lr, hr = (to_unit(image) for image in pairs.images(0))
            write_png(args.picture, comparison(lr, list(methods.values())[-1]([lr], [hr], [0])[0], hr))
        if args.record:
            record(args.weights, args.record, results)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


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


if __name__ == "__main__":
    sys.exit(main())
