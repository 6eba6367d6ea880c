"""Measure images per second of train.tune: data, arithmetic and both, relative to the device's matrix rate.

python -m benchmarks.training --batch 48
python -m benchmarks.training --data data/nih --batch 48 --workers 12 --compile on --steps 60
python -m benchmarks.training --device cpu --batch 2 --crop 64 --steps 4

Without --data, radiographs are synthetic, and no files are needed. "bound" is the rate if all operations ran at the
speed of plain matrix products in the same precision. An image is one square; two samples are drawn of each. The last
line is JSON.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from pipeline.command_line import count, make_parser, one_line_errors
from pipeline.networks.detail_vae import DetailVAE
from pipeline.networks.unet import UNet
from pipeline.networks.vae import make_vae
from train.config import DEVICES
from train.degrade import Gray
from train.loop import Task, TrainingRun, to_device
from train.report import markdown
from train.scans import Scans, read_scans
from train.setup import SWITCH, compiles, machine, make_accelerator, preset_of, split_files, workers_of
from train.tune import Tuning, draw_batch, make_loss, parse_sampler_steps, regions

MATRIX_SIDE = {"cuda": 8192, "cpu": 1024}
"""Side of the matrices to multiply, by device."""
SYNTHETIC_IMAGES, SYNTHETIC_SIZE = 16, 1024


@dataclass(frozen=True)
class Speed:
    """Images per second of training, and their bound."""

    machine: str
    precision: str
    batch: int
    crop: int
    workers: int
    compiled: bool
    data: float
    compute: float
    both: float
    bound: float
    tflop_a_step: float
    tflops_of_matmul: float


def synthetic_scans(size: int) -> Scans:
    """Make radiographs of noise, which take the same time to prepare."""
    rng = np.random.default_rng(0)
    images: list[Gray] = [rng.integers(0, 256, (size, size), dtype=np.uint8) for _ in range(SYNTHETIC_IMAGES)]
    return Scans({size: images}, {size: 1.0})


def make_run(config: Tuning, scans: Scans) -> TrainingRun:
    """Return a run with untrained networks, as weights do not affect the speed."""
    preset = preset_of(config)
    vae = make_vae(preset.vae)
    assert isinstance(vae, DetailVAE)
    loss = make_loss(UNet(preset.unet), vae, config, preset)
    numbers = parse_sampler_steps(config.sampler_steps, preset.diffusion.T)
    task = Task(
        name="benchmark",
        loss=loss,
        network="networks",
        batch=lambda step, share: draw_batch(scans, numbers, config, preset, step, share),
        validate=lambda _: 0.0,
        picture=lambda _: Image.new("L", (1, 1)),
        inputs={},
        regions=regions(loss),
    )
    return TrainingRun(task, config, make_accelerator(config))


def wait(run: TrainingRun) -> None:
    """Wait for the device to finish."""
    if run.on_gpu:
        torch.cuda.synchronize()


def seconds(run: TrainingRun, work: Callable[[], object], times: int) -> float:
    """Return the mean seconds per call."""
    wait(run)
    began = time.perf_counter()
    for _ in range(times):
        work()
    wait(run)
    return (time.perf_counter() - began) / times


def learn(run: TrainingRun) -> None:
    """Run one training step."""
    run.gradients()
    run.update()
    run.step += 1


def tflop_per_step(run: TrainingRun, steps: int) -> float:
    """Return the mean 10¹² operations per forward and backward pass, counting a multiply-add as two."""
    with torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False) as counter:
        for _ in range(steps):
            run.gradients()
    run.zero_grad()
    return float(counter.get_total_flops()) / steps / 1e12


def matmul_tflops(run: TrainingRun) -> float:
    """Return 10¹² operations per second of a plain matrix product."""
    side = MATRIX_SIDE[run.accelerator.device.type]
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[run.config.precision]
    a, b = torch.randn(2, side, side, device=run.accelerator.device).to(dtype)
    seconds(run, lambda: a @ b, 3)
    return 2 * side**3 / seconds(run, lambda: a @ b, 10) / 1e12


def measure(config: Tuning, scans: Scans, steps: int) -> Speed:
    """Time ``steps`` steps each of the data, the arithmetic, and both."""
    kinds = len(parse_sampler_steps(config.sampler_steps, preset_of(config).diffusion.T))
    run = make_run(config, scans)
    run.prepare()
    given = [to_device(next(run.batches), run.accelerator.device) for _ in range(kinds)]
    data = seconds(run, lambda: next(run.batches), steps)
    run.batches = cycle(given)
    flop, matmul = tflop_per_step(run, kinds), matmul_tflops(run)
    for _ in range(kinds):
        learn(run)
    compute = seconds(run, lambda: learn(run), steps)
    run.prepare()
    learn(run)
    both = seconds(run, lambda: learn(run), steps)
    return Speed(
        machine=machine(config.device),
        precision=config.precision,
        batch=config.batch,
        crop=config.crop,
        workers=workers_of(config, 1),
        compiled=compiles(config),
        data=round(config.batch / data, 1),
        compute=round(config.batch / compute, 1),
        both=round(config.batch / both, 1),
        bound=round(config.batch * matmul / flop, 1),
        tflop_a_step=round(flop, 4),
        tflops_of_matmul=round(matmul, 3),
    )


def report(speed: Speed) -> str:
    """Format a Markdown table."""
    title = f"{speed.machine}; {speed.precision}, batch {speed.batch}, crop {speed.crop}"
    rates = {
        f"data only, {speed.workers or 'no'} workers": speed.data,
        "compute only" + (", compiled" if speed.compiled else ""): speed.compute,
        "both": speed.both,
        f"bound: {speed.tflop_a_step:g} TFLOP per step at {speed.tflops_of_matmul:g} TFLOP/s": speed.bound,
    }
    rows = [[name, f"{rate:.1f}", f"{100 * rate / speed.bound:.0f} %"] for name, rate in rates.items()]
    return f"{title}\n\n{markdown(['', 'images/s', 'relative to bound'], rows)}"


@one_line_errors(ValueError, OSError, ImportError)
def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__doc__, "python -m benchmarks.training")
    given = Tuning()
    parser.add_argument("--data", type=Path, help="folder written by train.pairs (default: synthetic radiographs)")
    parser.add_argument("--batch", type=int, default=given.batch, help="squares per step (default: %(default)s)")
    parser.add_argument(
        "--crop", type=int, default=given.crop, help="side of the squares in HR pixels (default: %(default)s)"
    )
    parser.add_argument("--device", choices=DEVICES, default="auto", help="auto uses a GPU if there is one")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="default: %(default)s")
    parser.add_argument("--workers", type=int, default=-1, help="threads that prepare data; -1: up to 12 with a GPU")
    parser.add_argument("--compile", choices=SWITCH, default="auto", help="auto: on a GPU")
    parser.add_argument("--steps", type=count, default=30, help="timed steps of each kind (default: %(default)s)")
    args = parser.parse_args(argv)
    options = {name: value for name, value in vars(args).items() if name not in ("data", "steps")}
    config = Tuning(**options, data=args.data or given.data, steps=2 * args.steps + 20)
    scans = read_scans(config, split_files(config)[0])["train"] if args.data else synthetic_scans(SYNTHETIC_SIZE)
    speed = measure(config, scans, args.steps)
    print(report(speed))
    print(json.dumps(asdict(speed)))


if __name__ == "__main__":
    sys.exit(main())
