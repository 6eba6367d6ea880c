"""Compare the time of an image with a lower bound from this machine's measured arithmetic and memory rates.

python -m benchmarks.limits
python -m benchmarks.limits --side 128 --rounds 9
python -m benchmarks.limits --url localhost:8001

Counts the multiply-adds of all convolutions and matrix products, and the bytes they move: each reads its input and
weights once and writes its output once, in float32 (half for bfloat16, a quarter for INT8). Everything else –
normalisation, activations, sums – counts as fused and free. The floor is the larger of arithmetic / matrix rate and
bytes / memory rate. It holds for runtimes that work layer by layer without algorithms such as Winograd's, which need
fewer multiplications. The rates are the best of many tries before and after the paths, which take turns; on a busy
machine they are too low, and so is the floor's value. The last line is JSON.
"""

from __future__ import annotations

import json
import sys
import timeit
from collections.abc import Callable
from dataclasses import astuple, dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from tqdm import tqdm

from benchmarks import overhead
from benchmarks.arithmetic import Arithmetic, arithmetic
from benchmarks.server import add_server, server_at
from client import UpscaleError
from pipeline.command_line import count, make_parser, one_line_errors
from pipeline.presets import DEFAULT, PRESETS, Preset
from pipeline.serving.local_server import ServerError
from pipeline.triton_config import preset_of
from train.report import markdown

MATRIX_SIDE = 2048
"""Side of the square matrices to multiply."""
COPIED_BYTES = 2**28
"""Number of bytes to copy, larger than any cache."""
TRIES = 10
Kind = Literal["float32", "bfloat16", "int8"]
NUMBERS_PER_FLOAT32: dict[Kind, int] = {"float32": 1, "bfloat16": 2, "int8": 4}
"""Numbers of each type in the space of one float32."""
PATHS = {"pytorch_eager": "PyTorch eager", "one_process": "same files, one process", "server": "server"}


class Traffic(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counter of the bytes read and written by convolutions and matrix products."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)]
            self.bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return result


def gigabytes_moved(run: Callable[[], object]) -> float:
    """Count 10⁹ bytes read and written."""
    with Traffic() as traffic:
        run()
    return traffic.bytes / 1e9


def best_seconds(run: Callable[[], object]) -> float:
    """Return the minimum of a few tries, after one warm-up."""
    run()
    return min(timeit.repeat(run, number=1, repeat=TRIES))


@dataclass(frozen=True)
class Machine:
    """Measured rates on all cores: 10⁹ multiply-adds per second, and 10⁹ bytes per second read or written."""

    float32: float
    bfloat16: float
    int8: float
    memory: float

    def best(self, other: Machine) -> Machine:
        return Machine(*map(max, astuple(self), astuple(other)))


def measure_machine() -> Machine:
    def matrix_rate(dtype: torch.dtype, multiply: Callable[[Tensor, Tensor], Tensor] = torch.matmul) -> float:
        a, b = ((100 * torch.rand(MATRIX_SIDE, MATRIX_SIDE)).to(dtype) for _ in range(2))
        return MATRIX_SIDE**3 / 1e9 / best_seconds(lambda: multiply(a, b))

    source = torch.zeros(COPIED_BYTES, dtype=torch.uint8)
    target = torch.empty_like(source)
    copied = 2 * COPIED_BYTES / 1e9 / best_seconds(lambda: target.copy_(source))
    int8 = matrix_rate(torch.int8, torch._int_mm)  # accumulates in 32 bits; ``matmul`` does not support INT8
    return Machine(matrix_rate(torch.float32), matrix_rate(torch.bfloat16), int8, copied)


@dataclass(frozen=True)
class Need:
    """Cost of one image with a preset's default steps."""

    multiply_adds: Arithmetic
    traffic: Arithmetic
    steps: int

    def floor(self, machine: Machine, kind: Kind = "float32") -> float:
        """Return the minimum seconds per image with all numbers of one type."""
        computing = self.multiply_adds.total(self.steps) / getattr(machine, kind)
        moving = self.traffic.total(self.steps) / machine.memory / NUMBERS_PER_FLOAT32[kind]
        return max(computing, moving)


def need(preset: Preset, side: int) -> Need:
    """Return the cost of an LR image of side² pixels."""
    return Need(arithmetic(preset, side), arithmetic(preset, side, gigabytes_moved), preset.diffusion.ddim_steps)


def report(machine: Machine, needs: dict[str, Need], own: str, achieved: dict[str, float]) -> str:
    """Format three tables; ``achieved``: seconds by path for preset ``own``."""
    rates = (
        f"machine: {machine.float32:.1f}·10⁹ multiply-adds/s in float32, {machine.bfloat16:.1f} in bfloat16, "
        f"{machine.int8:.1f} in INT8; memory {machine.memory:.1f} GB/s"
    )
    networks, floors, ratios = [], [], []
    for name, found in needs.items():
        for part in ("unet", "encoder", "decoder"):
            work, traffic = getattr(found.multiply_adds, part), getattr(found.traffic, part)
            if work:
                networks.append([f"{name}, {part}", f"{work:.3f}", f"{traffic:.4f}", f"{work / traffic:.0f}"])
        by_kind = (f"{1e3 * found.floor(machine, kind):.2f}" for kind in NUMBERS_PER_FLOAT32)
        floors.append([f"{name}, {found.steps}", *by_kind])
    for path, seconds in achieved.items():
        by_kind = (f"{seconds / needs[own].floor(machine, kind):.1f}" for kind in NUMBERS_PER_FLOAT32)
        ratios.append([PATHS[path], f"{1e3 * seconds:.1f}", *by_kind])
    tables = (
        markdown(["network", "10⁹ multiply-adds", "GB", "multiply-adds per byte"], networks),
        markdown(["preset, steps", "floor (ms)", "in bfloat16", "in INT8"], floors),
        markdown([f"preset {own}", "ms per image", "/ floor", "/ floor in bfloat16", "/ in INT8"], ratios),
    )
    return "\n\n".join((rates, *tables))


@one_line_errors(ServerError, UpscaleError, ValueError)
def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__doc__)
    add_server(parser)
    parser.add_argument("--rounds", type=count, default=5, help="default: %(default)s")
    parser.add_argument(
        "--side", type=int, default=DEFAULT.data.lr_size, help="side of the LR image (default: %(default)s)"
    )
    args = parser.parse_args(argv)
    multiple = max(preset.lr_multiple for preset in PRESETS.values())
    if args.side < 1 or args.side % multiple:
        parser.error(f"argument --side: must be a multiple of {multiple}, got {args.side}")
    own = preset_of(args.model_repository)
    with server_at(args.url, args.model_repository) as url:
        before = measure_machine()
        times = overhead.measure(url, args.model_repository, args.rounds, None, None, args.side)
        machine = before.best(measure_machine())
    needs = {name: need(preset, args.side) for name, preset in tqdm(PRESETS.items(), desc="counting", leave=False)}
    achieved = {path: times[f"{path}_s"] for path in PATHS}
    print(report(machine, needs, own.name, achieved))
    figures = {
        "float32_gmac_per_s": machine.float32,
        "bfloat16_gmac_per_s": machine.bfloat16,
        "int8_gmac_per_s": machine.int8,
        "memory_gb_per_s": machine.memory,
        **{f"{name}_floor_s": found.floor(machine) for name, found in needs.items()},
        **{f"{path}/floor": seconds / needs[own.name].floor(machine) for path, seconds in achieved.items()},
    }
    print("\n" + json.dumps({name: round(value, 5) for name, value in figures.items()}))


if __name__ == "__main__":
    sys.exit(main())
