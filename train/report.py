"""Tables and per-image CSV files of measurements."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from train.paper import Reported

METRICS = {
    "lpips_alex": "LPIPS ↓",
    "lpips_vgg": "LPIPS (VGG) ↓",
    "psnr": "PSNR (dB) ↑",
    "psnr_inner": "PSNR, inner 80 % (dB; images won) ↑",
    "ssim": "SSIM ↑",
    "lr_error": "LR error (levels) ↓",
}
DIGITS = {"lpips_alex": 4, "lpips_vgg": 4, "psnr": 2, "psnr_inner": 2, "ssim": 4, "lr_error": 2}

RESAMPLES = 2000


@dataclass(frozen=True)
class Measured:
    """Measurements of one method on N images."""

    values: Mapping[str, NDArray[np.float64]]
    """[N] by metric"""
    seconds: float | None = None
    """median time of a single image"""


def markdown(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Format a table in Markdown."""
    head, *lines = (f"| {' | '.join(cells)} |" for cells in (heads, *rows))
    return "\n".join([head, f"|{'---|' * len(heads)}", *lines])


def interval(values: NDArray[np.float64], groups: Sequence[str]) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the mean of N values, resampling groups, such as a patient's images."""
    _, group = np.unique(np.asarray(groups), return_inverse=True)
    counts = np.bincount(group)
    sums = np.bincount(group, weights=values)
    drawn = np.random.default_rng(0).integers(len(counts), size=(RESAMPLES, len(counts)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def wins(measured: Measured, bicubic: Measured) -> int:
    """Count the images closer to HR than bicubic, by PSNR of the inner 80 %."""
    return int((measured.values["psnr_inner"] > bicubic.values["psnr_inner"]).sum())


def overview(found: Mapping[str, Mapping[str, Measured]]) -> str:
    """Format a Markdown table with a row per degradation: every method relative to bicubic."""
    methods = [name for name in next(iter(found.values())) if name != "bicubic"]
    rows = []
    for name, results in found.items():
        cells = [name]
        base = {metric: values.mean() for metric, values in results["bicubic"].values.items()}
        for method in methods:
            mean = {metric: values.mean() for metric, values in results[method].values.items()}
            ratio, won = mean["lpips_alex"] / base["lpips_alex"], wins(results[method], results["bicubic"])
            cells.append(
                f"×{ratio:.3f} / {mean['psnr_inner'] - base['psnr_inner']:+.2f} dB ({won}) / "
                f"{mean['ssim'] - base['ssim']:+.3f}"
            )
        rows.append(cells)
    return markdown(["LR by", *methods], rows) + "\n\nLPIPS to bicubic's / PSNR of the inner 80 % (images won) / SSIM"


def table(results: Mapping[str, Measured], groups: Sequence[str], reported: Sequence[Reported] = ()) -> str:
    """Format a Markdown table like the paper's Tables 1 and 2, means with 95 % intervals, above the paper's rows."""
    metrics = [name for name in METRICS if name in next(iter(results.values())).values]
    heads = ["method", *(METRICS[name] for name in metrics), "LPIPS / bicubic", "s / image"]
    rows = []
    base = results["bicubic"].values["lpips_alex"].mean()
    for method, measured in results.items():
        cells = [method]
        for name in metrics:
            low, high = interval(measured.values[name], groups)
            d = DIGITS[name]
            cells.append(f"{measured.values[name].mean():.{d}f} [{low:.{d}f}, {high:.{d}f}]")
            if name == "psnr_inner" and method != "bicubic":
                cells[-1] += f" ({wins(measured, results['bicubic'])})"
        cells.append(f"{measured.values['lpips_alex'].mean() / base:.3f}")
        cells.append("" if measured.seconds is None else f"{measured.seconds:.2g}")
        rows.append(cells)
    bicubic = next((row.lpips for row in reported if row.method == "bicubic"), None)
    for row in reported:
        figures = {"lpips_alex": f"{row.lpips:.4f}", "psnr": f"{row.psnr:.2f}", "ssim": f"{row.ssim:.4f}"}
        ratio = f"{row.lpips / bicubic:.3f}" if bicubic else ""
        seconds = "" if row.seconds is None else f"{row.seconds:.2f}"
        rows.append([f"*paper: {row.method}*", *(figures.get(name, "") for name in metrics), ratio, seconds])
    return markdown(heads, rows)


def write_csv(path: Path, results: Mapping[str, Measured], files: Sequence[str], groups: Sequence[str]) -> None:
    """Write one line per image and method."""
    metrics = list(next(iter(results.values())).values)
    with open(path, "w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["file", "patient", "method", *metrics])
        for method, measured in results.items():
            for i, (file, patient) in enumerate(zip(files, groups, strict=True)):
                writer.writerow([file, patient, method, *(f"{measured.values[name][i]:.6g}" for name in metrics)])
