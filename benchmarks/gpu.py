"""Time images on a GPU by PyTorch, CUDA graphs, onnxruntime, TensorRT and Triton, from LR image to upscaled image.

python -m benchmarks.gpu
python -m benchmarks.gpu --preset paper --batch 1 16 --rounds 50
python -m benchmarks.gpu --way graph tensorrt-fp16 --model-repository-paper models-paper
python -m benchmarks.gpu --device cpu --preset paper --steps 10 --batch 1 --rounds 3

Preset `paper` takes all steps of DDPM, `best` its own one. The ways take turns; PyTorch eager, in its own default
precision, is always among them, and PSNR to its images tells whether a way computes the same. What is not installed is
left out with a line that says so. Noise is drawn beforehand, but for Triton, which draws it on the CPU as it always
does; what that takes is printed. Building plans is not timed, and takes minutes. The last line is JSON.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks.gpu_networks import Unavailable, load
from benchmarks.gpu_variants import PACKAGES, VARIANTS, Variant, make_job, make_variants
from pipeline.command_line import make_parser
from pipeline.method.images import Image, psnr
from pipeline.presets import PAPER, PRESETS
from pipeline.spec import LEAP, MAX_BATCH

EQUAL_DB = 150.0
"""What is given as the PSNR of images that are equal, for JSON has no infinity."""


@dataclass(frozen=True)
class Timed:
    """One way of one batch."""

    ms: float
    """the batch, median"""
    images_per_s: float
    speedup: float
    """eager's time by its own, median over the rounds"""
    psnr: float
    """dB, of its images to eager's, the least"""


def min_psnr(found: list[Image], reference: list[Image]) -> float:
    """The least PSNR, at most ``EQUAL_DB``."""
    return min(EQUAL_DB, *(psnr(a, b) for a, b in zip(found, reference, strict=True)))


def compare(jobs: list[dict[str, Variant]], rounds: int) -> list[dict[str, Timed]]:
    """For every batch its ways by name; in each round every way of every batch has its turn."""
    seconds: list[dict[str, list[float]]] = [{name: [] for name in ways} for ways in jobs]
    images = [{name: way() for name, way in ways.items()} for ways in jobs]
    for _ in tqdm(range(rounds), desc="rounds"):
        for ways, of_job in zip(jobs, seconds, strict=True):
            for name, way in ways.items():
                began = time.perf_counter()
                way()
                of_job[name].append(time.perf_counter() - began)

    def timed(name: str, of_job: dict[str, list[float]], made: dict[str, list[Image]]) -> Timed:
        median = statistics.median(of_job[name])
        speedup = statistics.median(e / s for e, s in zip(of_job["eager"], of_job[name], strict=True))
        return Timed(1e3 * median, len(made[name]) / median, speedup, min_psnr(made[name], made["eager"]))

    return [{name: timed(name, s, made) for name in s} for s, made in zip(seconds, images, strict=True)]


Found = dict[int, dict[str, Timed]]
"""By batch and way."""


def table(title: str, found: Found) -> str:
    batches, last = list(found), max(found)
    columns = (f"{what}{batch}" for batch in batches for what in ("ms, batch ", "eager / it, "))
    head = [title, *columns, f"images/s, {last}", "PSNR to eager (dB)"]
    lines = [head, ["---"] * len(head)]
    for name in found[last]:
        times = [found[batch][name] for batch in batches]
        cells = [text for t in times for text in (f"{t.ms:.2f}", f"{t.speedup:.2f}")]
        lines.append(
            [VARIANTS[name], *cells, f"{found[last][name].images_per_s:.1f}", f"{min(t.psnr for t in times):.1f}"]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


@dataclass(frozen=True)
class Target:
    """What one H200 should reach; the most milliseconds, or the least of anything else."""

    text: str
    preset: str
    value: Callable[[Timed], float]
    limit: float
    largest: bool = False
    """of the largest batch, else of one image"""

    def reached(self, value: float) -> bool:
        return value <= self.limit if "ms" in self.text else value >= self.limit


TARGETS = (
    Target("paper, 300 steps: ms an image", "paper", lambda t: t.ms, 60),
    Target("paper, 300 steps: PyTorch eager / it", "paper", lambda t: t.speedup, 10),
    Target("paper, 300 steps: images/s", "paper", lambda t: t.images_per_s, 300, largest=True),
    Target("best: ms an image", "best", lambda t: t.ms, 5),
    Target("best: images/s", "best", lambda t: t.images_per_s, 2000, largest=True),
)


def targets_table(found: dict[str, Found], steps: int) -> str:
    """A table of what the server and the fastest way reach; targets of 300 steps need so many."""

    def cell(target: Target, ways: dict[str, Timed], name: str | None) -> str:
        if name not in ways:
            return "not measured"
        value = target.value(ways[name])
        return f"{value:.1f}, {'reached' if target.reached(value) else 'missed'}"

    lines = ["| target on an H200 | limit | Triton | fastest of all | which |", "|---|---|---|---|---|"]
    for target in TARGETS:
        of_preset = found.get(target.preset, {})
        batch = max(of_preset, default=0) if target.largest else 1
        measured = target.preset != PAPER.name or steps == PAPER.diffusion.T
        ways = of_preset.get(batch, {}) if measured else {}
        fastest = min(ways, key=lambda name: ways[name].ms, default=None)
        cells = (cell(target, ways, "triton"), cell(target, ways, fastest), VARIANTS.get(fastest or "", "–"))
        lines.append(f"| {target.text} | {target.limit:g} | {' | '.join(cells)} |")
    return "\n".join(lines)


def describe(device: torch.device) -> dict[str, str]:
    """The device, its driver, what is installed, and how exactly PyTorch computes in float32 unless told otherwise."""
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
    """What was found, by preset, and the milliseconds that the noise of one image takes to draw.

    ``steps`` is of preset paper, as is ``repository``.
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


def main(argv: list[str] | None = None) -> int:
    parser = make_parser(__doc__, "python -m benchmarks.gpu")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="default: %(default)s")
    parser.add_argument("--preset", choices=PRESETS, nargs="+", default=list(PRESETS), help="default: all")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 16], help="default: 1 8 16")
    ways = f"besides eager: {', '.join(VARIANTS)} (default: all)"
    parser.add_argument("--way", choices=VARIANTS, nargs="+", default=list(VARIANTS), metavar="WAY", help=ways)
    parser.add_argument("--rounds", type=int, default=20, help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=PAPER.diffusion.T, help="of preset paper (default: %(default)s)")
    parser.add_argument(
        "--model-repository-paper", type=Path, help="exported from preset paper (default: exported for the run)"
    )
    args = parser.parse_args(argv)
    if args.rounds < 1:
        parser.error(f"argument --rounds: {args.rounds}, needed is 1 or more")
    if not all(1 <= batch <= MAX_BATCH for batch in args.batch):
        parser.error(f"argument --batch: allowed are 1 to {MAX_BATCH}")
    if args.steps % LEAP or not 1 <= args.steps <= PAPER.diffusion.T:
        parser.error(f"argument --steps: {args.steps}, needed is a multiple of {LEAP} up to {PAPER.diffusion.T}")
    if args.device == "cuda" and not torch.cuda.is_available():
        print("error: PyTorch finds no CUDA device here: use --device cpu", file=sys.stderr)
        return 1
    device = torch.device(args.device, 0)
    batches = sorted(set(args.batch))
    facts = describe(device)
    print("\n".join(f"{name}: {value}" for name, value in facts.items()), flush=True)
    # neither graphs nor onnxruntime's streams go together with CUDA's default stream
    stream = torch.cuda.Stream(device) if args.device == "cuda" else None  # type: ignore[no-untyped-call]
    try:
        with torch.inference_mode(), torch.cuda.stream(stream):
            found, drawing = measure(
                args.preset, batches, args.steps, args.rounds, args.way, device, args.model_repository_paper
            )
    except (ValueError, RuntimeError) as error:  # the latter is PyTorch's, as for too little memory
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    for name, of_preset in found.items():
        title = f"{name}, {args.steps} steps" if name == PAPER.name else name
        print(f"\n{table(title, of_preset)}\n\ndrawing the noise of an image on the CPU: {drawing[name]:.2f} ms")
    print(f"\n{targets_table(found, args.steps)}\n")
    figures = {
        name: {batch: {way: rounded(timed) for way, timed in ways.items()} for batch, ways in of_preset.items()}
        for name, of_preset in found.items()
    }
    print(json.dumps({"machine": facts, "steps": args.steps, "drawing_ms": drawing, "found": figures}))
    return 0


def rounded(timed: Timed) -> dict[str, float]:
    return {name: round(value, 4) for name, value in asdict(timed).items()}


if __name__ == "__main__":
    sys.exit(main())
