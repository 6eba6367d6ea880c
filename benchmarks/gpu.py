"""Time upscaling on a GPU with PyTorch, CUDA graphs, onnxruntime, TensorRT and Triton, end to end.

python -m benchmarks.gpu
python -m benchmarks.gpu --preset paper --batch 1 16 --rounds 50
python -m benchmarks.gpu --way graph tensorrt-fp16 --model-repository-paper models-paper
python -m benchmarks.gpu --device cpu --preset paper --steps 10 --batch 1 --rounds 3

Preset `paper` runs all DDPM steps, `best` its default of one. The variants take turns; eager PyTorch, in its default
precision, is always included, and PSNR relative to it shows whether a variant computes the same. Variants that are not
installed are skipped with a message. Noise is drawn beforehand, except by Triton, which draws it on the CPU; the time
for this is printed. Building plans takes minutes and is not timed. The last line is JSON.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from benchmarks.gpu_networks import Unavailable, load
from benchmarks.gpu_variants import PACKAGES, VARIANTS, Variant, make_job, make_variants
from benchmarks.interleave import interleave, median_ratio
from pipeline.command_line import count, make_parser, one_line_errors
from pipeline.method.images import Image, psnr
from pipeline.presets import PAPER, PRESETS
from pipeline.spec import MAX_BATCH, UNROLLED_STEPS
from train.report import markdown

EQUAL_DB = 150.0
"""PSNR reported for equal images, as JSON has no infinity."""


@dataclass(frozen=True)
class Timed:
    """Timing of one variant with one batch size."""

    ms: float
    """median time of the batch"""
    images_per_s: float
    speedup: float
    """eager time / own time, median over the rounds"""
    psnr: float
    """minimum PSNR relative to eager, in dB"""


def min_psnr(found: list[Image], reference: list[Image]) -> float:
    """Return the minimum PSNR, at most ``EQUAL_DB``."""
    return min(EQUAL_DB, *(psnr(a, b) for a, b in zip(found, reference, strict=True)))


def compare(jobs: list[dict[str, Variant]], rounds: int) -> list[dict[str, Timed]]:
    """Time each job's variants by name; in each round, all variants of all jobs take turns."""
    images = [{name: variant() for name, variant in variants.items()} for variants in jobs]
    seconds = interleave({(i, name): run for i, variants in enumerate(jobs) for name, run in variants.items()}, rounds)

    def timed(job: int, name: str) -> Timed:
        times, made = seconds[job, name], images[job]
        median = statistics.median(times)
        speedup = median_ratio(seconds[job, "eager"], times)
        return Timed(1e3 * median, len(made[name]) / median, speedup, min_psnr(made[name], made["eager"]))

    return [{name: timed(i, name) for name in variants} for i, variants in enumerate(jobs)]


Found = dict[int, dict[str, Timed]]
"""Timings by batch and variant."""


def table(title: str, found: Found) -> str:
    batches, last = list(found), max(found)
    columns = (f"{what}{batch}" for batch in batches for what in ("ms, batch ", "eager / it, "))
    head = [title, *columns, f"images/s, {last}", "PSNR relative to eager (dB)"]
    rows = []
    for name in found[last]:
        times = [found[batch][name] for batch in batches]
        cells = [text for t in times for text in (f"{t.ms:.2f}", f"{t.speedup:.2f}")]
        rows.append([VARIANTS[name], *cells, f"{times[-1].images_per_s:.1f}", f"{min(t.psnr for t in times):.1f}"])
    return markdown(head, rows)


@dataclass(frozen=True)
class Target:
    """Target for one H200: maximum milliseconds, or minimum of any other value."""

    text: str
    preset: str
    value: Callable[[Timed], float]
    limit: float
    largest: bool = False
    """for the largest batch, else for one image"""

    def reached(self, value: float) -> bool:
        return value <= self.limit if "ms" in self.text else value >= self.limit


TARGETS = (
    Target("paper, 300 steps: ms per image", "paper", lambda t: t.ms, 60),
    Target("paper, 300 steps: PyTorch eager / it", "paper", lambda t: t.speedup, 10),
    Target("paper, 300 steps: images/s", "paper", lambda t: t.images_per_s, 300, largest=True),
    Target("best: ms per image", "best", lambda t: t.ms, 5),
    Target("best: images/s", "best", lambda t: t.images_per_s, 2000, largest=True),
)


def targets_table(found: dict[str, Found], steps: int) -> str:
    """Format a table of the targets reached by the server and the fastest variant; paper's targets need all steps."""

    def cell(target: Target, variants: dict[str, Timed], name: str | None) -> str:
        if name not in variants:
            return "not measured"
        value = target.value(variants[name])
        return f"{value:.1f}, {'reached' if target.reached(value) else 'missed'}"

    rows = []
    for target in TARGETS:
        timings_by_batch = found.get(target.preset, {})
        batch = max(timings_by_batch, default=0) if target.largest else 1
        measured = target.preset != PAPER.name or steps == PAPER.diffusion.T
        timings = timings_by_batch.get(batch, {}) if measured else {}
        fastest = min(timings, key=lambda name: timings[name].ms, default=None)
        cells = (cell(target, timings, "triton"), cell(target, timings, fastest), VARIANTS.get(fastest or "", "–"))
        rows.append([target.text, f"{target.limit:g}", *cells])
    return markdown(["target on an H200", "limit", "Triton", "fastest of all", "which"], rows)


def describe(device: torch.device) -> dict[str, str]:
    """Return the device, its driver, installed packages, and PyTorch's default float32 precision."""
    cuda = device.type == "cuda"
    facts = {"device": torch.cuda.get_device_name(device) if cuda else f"CPU, {os.cpu_count()} cores"}
    if cuda:
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        try:
            facts["driver"] = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0]
        except (OSError, subprocess.CalledProcessError, IndexError):
            facts["driver"] = "unknown"
        facts["CUDA of torch"] = str(torch.version.cuda)
    facts["torch"] = torch.__version__
    for package, names in PACKAGES.items():
        try:
            facts[package] = str(load(names).__version__)
        except Unavailable:
            facts[package] = "not installed"
    facts["eager's convolutions in TF32"] = str(torch.backends.cudnn.allow_tf32)
    facts["eager's matrix products in TF32"] = str(torch.backends.cuda.matmul.allow_tf32)
    return facts


def measure(
    presets: Sequence[str],
    batches: Sequence[int],
    steps: int,
    rounds: int,
    wanted: Sequence[str],
    device: torch.device,
    repository: Path | None,
) -> tuple[dict[str, Found], dict[str, float]]:
    """Return the timings by preset, and the milliseconds to draw the noise of one image.

    ``steps`` and ``repository`` are for preset paper.
    """
    found: dict[str, Found] = {}
    drawing: dict[str, float] = {}
    for name in presets:
        preset = PRESETS[name]
        its_steps = steps if preset == PAPER else preset.diffusion.ddim_steps
        jobs = [make_job(preset, its_steps, device, batch) for batch in batches]
        with ExitStack() as stack:
            timed = compare(make_variants(jobs, wanted, repository, stack), rounds)
        found[name] = dict(zip(batches, timed, strict=True))
        drawing[name] = 1e3 * min(job.drawing / len(job.images) for job in jobs)
    return found, drawing


@one_line_errors(ValueError, RuntimeError)  # PyTorch raises RuntimeError, such as when out of memory
def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__doc__, "python -m benchmarks.gpu")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="default: %(default)s")
    parser.add_argument("--preset", choices=PRESETS, nargs="+", default=list(PRESETS), help="default: all")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 16], help="default: 1 8 16")
    variants = f"variants besides eager: {', '.join(VARIANTS)} (default: all)"
    parser.add_argument("--way", choices=VARIANTS, nargs="+", default=list(VARIANTS), metavar="NAME", help=variants)
    parser.add_argument("--rounds", type=count, default=20, help="default: %(default)s")
    parser.add_argument(
        "--steps", type=int, default=PAPER.diffusion.T, help="steps for preset paper (default: %(default)s)"
    )
    parser.add_argument(
        "--model-repository-paper",
        type=Path,
        help="repository exported from preset paper (default: exported for the run)",
    )
    args = parser.parse_args(argv)
    if not all(1 <= batch <= MAX_BATCH for batch in args.batch):
        parser.error(f"argument --batch: must be 1–{MAX_BATCH}, got {' '.join(map(str, args.batch))}")
    if args.steps % UNROLLED_STEPS or not 1 <= args.steps <= PAPER.diffusion.T:
        parser.error(
            f"argument --steps: must be a multiple of {UNROLLED_STEPS} up to {PAPER.diffusion.T}, got {args.steps}"
        )
    if args.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("PyTorch finds no CUDA device: use --device cpu")
    device = torch.device(args.device, 0)
    batches = sorted(set(args.batch))
    facts = describe(device)
    print("\n".join(f"{name}: {value}" for name, value in facts.items()), flush=True)
    # neither graphs nor onnxruntime's streams work with CUDA's default stream
    stream = torch.cuda.Stream(device) if args.device == "cuda" else None  # type: ignore[no-untyped-call]
    with torch.inference_mode(), torch.cuda.stream(stream):
        found, drawing = measure(
            args.preset, batches, args.steps, args.rounds, args.way, device, args.model_repository_paper
        )
    for name, timings_by_batch in found.items():
        title = f"{name}, {args.steps} steps" if name == PAPER.name else name
        print(f"\n{table(title, timings_by_batch)}\n\ndrawing the noise of an image on the CPU: {drawing[name]:.2f} ms")
    print(f"\n{targets_table(found, args.steps)}\n")
    figures = {
        name: {
            batch: {n: rounded(timed) for n, timed in timings.items()} for batch, timings in timings_by_batch.items()
        }
        for name, timings_by_batch in found.items()
    }
    print(json.dumps({"machine": facts, "steps": args.steps, "drawing_ms": drawing, "found": figures}))


def rounded(timed: Timed) -> dict[str, float]:
    return {name: round(value, 4) for name, value in asdict(timed).items()}


if __name__ == "__main__":
    sys.exit(main())
