"""Measure bicubic, the autoencoder alone and the whole system on held-out patients: PSNR, SSIM, LPIPS.

python -m train.evaluate --data data/nih/hr256 --limit 64
python -m train.evaluate --data data/iu/hr256 --split all --limit 64
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from pipeline import eager
from pipeline.files import write_png
from pipeline.images import Image, downscale, from_network, psnr, ssim, to_network, upsample
from pipeline.onnx_networks import onnx_networks
from pipeline.pictures import comparison
from pipeline.spec import PAPER, SamplerName, Start
from pipeline.superres import upscale
from pipeline.weights import write_metadata
from train.data import SPLITS, list_images, read_gray, split_by_patient
from train.lpips import LPIPS

BATCH = 16
Method = Callable[[list[Image], list[Image], list[int]], list[Image]]
"""(LR images, HR images, seeds) ⇒ images to compare with HR."""


def reconstruct(pipeline: eager.Eager, hr: list[Image]) -> list[Image]:
    """Encode and decode HR: the best that any denoiser could reach."""
    with torch.inference_mode():
        x = torch.from_numpy(np.stack([to_network(image, PAPER.data.channels) for image in hr]))
        return [from_network(y) for y in pipeline.decoder(pipeline.encoder(x)).numpy()]


def measure(paths: list[Path], methods: dict[str, Method]) -> dict[str, dict[str, float]]:
    """Mean PSNR (dB, 8 bit), SSIM and LPIPS (AlexNet) of each method; image i has seed i."""
    lpips = LPIPS("alex")
    rows: dict[str, list[tuple[float, float, float]]] = {name: [] for name in methods}
    for start in tqdm(range(0, len(paths), BATCH), desc="evaluate", unit="batch"):
        hr8 = [read_gray(path) for path in paths[start : start + BATCH]]
        hr = [(image / 255).astype(np.float32) for image in hr8]
        lr = [(downscale(image) / 255).astype(np.float32) for image in hr8]
        seeds = list(range(start, start + len(hr)))
        for name, method in methods.items():
            for image, reference in zip(method(lr, hr, seeds), hr, strict=True):
                with torch.inference_mode():
                    x, y = (torch.from_numpy(to_network(a, 3))[None] for a in (image, reference))
                    distance = lpips(x, y).item()
                rows[name].append((psnr(image, reference), ssim(image, reference), distance))
    return {
        name: dict(zip(("psnr", "ssim", "lpips"), np.mean(r, axis=0).round(4).tolist(), strict=True))
        for name, r in rows.items()
    }


def table(results: dict[str, dict[str, float]]) -> str:
    """A Markdown table, LPIPS also relative to bicubic's."""
    base = results["bicubic"]["lpips"]
    lines = ["| method | PSNR (dB) | SSIM | LPIPS | LPIPS / bicubic |", "|---|---|---|---|---|"]
    for name, r in results.items():
        lines.append(f"| {name} | {r['psnr']:.2f} | {r['ssim']:.4f} | {r['lpips']:.4f} | {r['lpips'] / base:.3f} |")
    return "\n".join(lines)


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


def methods_of(pipeline: eager.Eager, repository: Path, runs: list[Run]) -> dict[str, Method]:
    """Bicubic, the autoencoder alone, and every run."""
    networks = onnx_networks(repository)

    def bicubic(lr: list[Image], _hr: list[Image], _seeds: list[int]) -> list[Image]:
        return [np.clip(upsample(image), 0, 1) for image in lr]

    def autoencoder(_lr: list[Image], hr: list[Image], _seeds: list[int]) -> list[Image]:
        return reconstruct(pipeline, hr)

    def system(run: Run) -> Method:
        return lambda lr, _hr, seeds: upscale(
            lr, seeds, networks, PAPER, steps=run.steps, sampler=run.sampler, start=run.start
        )

    return {
        "bicubic": bicubic,
        "autoencoder alone (ceiling)": autoencoder,
        **{str(run): system(run) for run in runs},
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m train.evaluate",
        description="Measure bicubic, the autoencoder alone and the whole system against HR images.",
        epilog="examples:\n" + "\n".join(f"  {line}" for line in (__doc__ or "").splitlines()[2:]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    d = PAPER.diffusion
    parser.add_argument("--data", type=Path, required=True, help="folder of 256² HR images")
    parser.add_argument(
        "--split", choices=(*SPLITS, "all"), default="test", help="side of the patients' split (default: %(default)s)"
    )
    parser.add_argument("--limit", type=int, help="only so many images, evenly spread")
    parser.add_argument(
        "--run",
        type=parse_run,
        nargs="+",
        default=[Run(d.sampler, d.steps, d.start)],
        metavar="SAMPLER:STEPS:START",
        help="such as ddim:50:lr (default: the preset's)",
    )
    parser.add_argument("--weights", type=Path, default=Path("weights") / PAPER.name, help="default: %(default)s")
    parser.add_argument("--model-repository", type=Path, default=Path("model_repository"), help="default: %(default)s")
    parser.add_argument("--picture", type=Path, help="write a comparison of the first image here")
    parser.add_argument("--record", metavar="NAME", help="store the figures under this name in the weights' metadata")
    args = parser.parse_args(argv)
    try:
        paths = list_images(args.data)
        if args.split != "all":
            paths = split_by_patient(paths, PAPER.data)[args.split]
        if args.limit and args.limit < len(paths):
            paths = [paths[i] for i in np.linspace(0, len(paths) - 1, args.limit).astype(int)]
        pipeline = eager.load(args.weights, PAPER)
        methods = methods_of(pipeline, args.model_repository, args.run)
        results = measure(paths, methods)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"\n{len(paths)} images of '{args.data}', split {args.split}\n\n{table(results)}")
    if args.picture:
        hr8 = read_gray(paths[0])
        hr, lr = ((a / 255).astype(np.float32) for a in (hr8, downscale(hr8)))
        write_png(args.picture, comparison(lr, list(methods.values())[2]([lr], [hr], [0])[0], hr))
    if args.record:
        for name in ("vae", "unet"):
            path = args.weights / f"{name}.json"
            metadata = json.loads(path.read_text())
            metadata.setdefault("metrics", {})[args.record] = results
            write_metadata(path, metadata)
    return 0


if __name__ == "__main__":
    sys.exit(main())
