"""Measure the server under load with perf_analyzer: batches, concurrent clients, protocols, Poisson arrivals.

python -m benchmarks.serving --quick
python -m benchmarks.serving --part unet superres --rounds 5
python -m benchmarks.serving --part protocols --url localhost:8001 --http-url localhost:8000

Parts: `unet`, the denoiser alone, ONNX and TensorRT, by batch size; `superres`, whole images by number of clients;
`protocols`, gRPC and HTTP, with and without shared memory; `poisson`, random arrivals at a share of the rate with many
concurrent clients. Variants take turns, so that a busy machine affects all alike. Writes a table, CSV, JSON and a plot;
the last line is JSON too.
"""

from __future__ import annotations

import contextlib
import csv
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tritonclient.grpc
from matplotlib.figure import Figure
from tqdm import tqdm

from benchmarks.interleave import median_ratio
from benchmarks.perf_analyzer import Measurement, PerfAnalyzerError, measure
from benchmarks.server import add_server, server_at
from client import Client, UpscaleError
from pipeline import ROOT
from pipeline.command_line import count, make_parser, one_line_errors
from pipeline.models import onnx_models
from pipeline.presets import Preset
from pipeline.serving.checks import free_shared_memory
from pipeline.serving.local_server import ServerError, free_ports
from pipeline.spec import MAX_BATCH, SCALE
from train.report import markdown

Row = dict[str, Any]
"""Part, load, variant and results by the names in ``HEADS``; only a note with the reason if not measured."""
HEADS = {
    "variant": "variant",
    "per_s": "per second",
    "of_first": "relative to first",
    "p50_ms": "p50 (ms)",
    "p99_ms": "p99 (ms)",
    "p99/p50": "p99 / p50",
    "queue_ms": "queue (ms)",
    "note": "note",
}
PARTS = ("unet", "superres", "protocols", "poisson")
NO_PLAN = "no plan loaded"
NEEDED_MB = 64
"""Shared memory needed for the server's and perf_analyzer's regions, in MB."""
IMAGE = json.loads((ROOT / "benchmarks" / "superres.json").read_text())["data"][0]["image"]
"""Demo LR image, in perf_analyzer's format."""


@dataclass(frozen=True)
class Sweep:
    """Loads, rounds and requests to measure."""

    batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    """batch sizes; those above the models' ``max_batch_size`` are skipped"""
    clients: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    shares: tuple[float, ...] = (0.5, 0.8, 0.95)
    """shares of the saturated rate"""
    rounds: int = 3
    requests: int = 40
    """minimum requests in each of a measurement's three windows"""


QUICK = Sweep(batches=(1, 4, 16), clients=(1, 4, 16), shares=(0.8,), rounds=1, requests=10)


@dataclass(frozen=True)
class Target:
    """Running server and its inputs."""

    grpc: str
    http: str
    preset: Preset
    folder: Path
    """folder for input files"""
    plan: bool
    """whether the server has loaded ``unet_trt``"""
    steps: int
    """denoising steps"""

    def address(self, protocol: str) -> list[str]:
        return ["-i", protocol, "-u", self.grpc if protocol == "grpc" else self.http]

    def superres(self, denoiser: str) -> list[str]:
        """Return options for model and input; all inputs are set, as shared memory does not support optional ones."""
        diffusion = self.preset.diffusion
        options: dict[str, list[Any]] = {
            "seed": [0],
            "steps": [self.steps],
            "sampler": ["ddim"],
            "start": [diffusion.start],
            "samples": [1],
            "output": ["sample"],
            "faithful": [self.preset.faithful],
            "degradation": ["auto"],
            "pixel_mm": [5.5],
            "denoiser": [denoiser],
        }
        path = self.folder / f"{denoiser}.json"
        path.write_text(json.dumps({"data": [{"image": IMAGE, **options}]}))
        return ["-m", "superres", "--input-data", str(path)]

    def unet(self, runtime: str, batch: int) -> list[str]:
        model = onnx_models(self.preset).denoiser
        shapes = (f"{t.name}:{','.join(map(str, dims))}" for t, dims in zip(model.inputs, model.warmup, strict=True))
        return ["-m", f"unet_{runtime}", "-b", str(batch), *(word for shape in shapes for word in ("--shape", shape))]


@dataclass(frozen=True)
class Case:
    """Case to measure, compared with the first case of its part and load."""

    part: str
    load: str
    variant: str
    arguments: list[str]
    requests: int
    needs_plan: bool = False


def concurrency_options(clients: int) -> list[str]:
    # with the end of the range given, perf_analyzer starts as many threads as clients
    return ["--concurrency-range", f"{clients}:{clients}"]


def unet_cases(target: Target, sweep: Sweep) -> Iterator[Case]:
    for batch in (batch for batch in sweep.batches if batch <= MAX_BATCH):
        for runtime in ("onnx", "trt"):
            arguments = [*target.unet(runtime, batch), *target.address("grpc"), *concurrency_options(2)]
            yield Case("unet", f"batch {batch}", f"unet_{runtime}", arguments, sweep.requests, runtime == "trt")


def superres_cases(target: Target, sweep: Sweep) -> Iterator[Case]:
    for clients in sweep.clients:
        for denoiser in ("onnx", "trt"):
            arguments = [*target.superres(denoiser), *target.address("grpc"), *concurrency_options(clients)]
            requests = max(sweep.requests, 2 * clients)
            yield Case("superres", f"{clients} at once", denoiser, arguments, requests, denoiser == "trt")


def protocol_cases(target: Target, sweep: Sweep) -> Iterator[Case]:
    preset = target.preset
    latent = 4 * preset.unet.out_channels * (preset.data.hr_size // preset.vae.factor) ** 2
    image = 4 * SCALE**2 * IMAGE["shape"][0] * IMAGE["shape"][1]
    models = {
        f"unet_onnx, batch {MAX_BATCH}": (target.unet("onnx", MAX_BATCH), MAX_BATCH * latent),
        "superres": (target.superres("onnx"), image),
    }
    for name, (arguments, output_bytes) in models.items():
        shared = ["--shared-memory", "system", "--output-shared-memory-size", str(output_bytes)]
        for variant, extra in {"": [], ", shared memory": shared}.items():
            for protocol in ("grpc", "http"):
                command = [*arguments, *target.address(protocol), *extra, *concurrency_options(4)]
                yield Case("protocols", f"{name}, 4 at once", protocol + variant, command, sweep.requests)


def poisson_cases(target: Target, sweep: Sweep, saturated: float) -> Iterator[Case]:
    """Yield asynchronous cases, so that requests are sent when due, however many are in flight."""
    for share in sweep.shares:
        rate = ["--request-rate-range", f"{share * saturated:.3f}", "--async", "--max-threads", "16"]
        for distribution in ("constant", "poisson"):
            arguments = [*target.superres("onnx"), *target.address("grpc"), *rate]
            arguments += ["--request-distribution", distribution]
            yield Case("poisson", f"{share:.0%} of saturation", distribution, arguments, 4 * sweep.requests)


def run(cases: Sequence[Case], rounds: int, plan: bool) -> list[Row]:
    """Measure the cases in turn, ``rounds`` times; return a row per case, with medians over the rounds.

    Raises:
        PerfAnalyzerError: a measurement fails.
    """
    found: list[list[Measurement]] = [[] for _ in cases]
    wanted = [(case, mine) for case, mine in zip(cases, found, strict=True) if plan or not case.needs_plan]
    for case, mine in tqdm(wanted * rounds, desc=cases[0].part):
        try:
            mine.append(measure(case.arguments, case.requests))
        except PerfAnalyzerError as error:
            raise PerfAnalyzerError(f"{case.part}, {case.variant}, {case.load}: {error}") from error
    first: dict[str, list[Measurement]] = {}
    return [summary(case, mine, first.setdefault(case.load, mine)) for case, mine in zip(cases, found, strict=True)]


def summary(case: Case, found: Sequence[Measurement], first: Sequence[Measurement]) -> Row:
    """Summarise the rounds by medians; ratios to ``first`` are per round."""
    row: Row = {"part": case.part, "load": case.load, "variant": case.variant}
    if not found:
        return {**row, "note": NO_PLAN}
    ratio = median_ratio([m.throughput for m in found], [m.throughput for m in first])
    return {
        **row,
        "per_s": round(statistics.median(m.throughput for m in found), 3),
        "of_first": round(ratio, 3),
        "p50_ms": round(statistics.median(m.p50_ms for m in found), 2),
        "p99_ms": round(statistics.median(m.p99_ms for m in found), 2),
        "p99/p50": round(statistics.median(m.p99_ms / m.p50_ms for m in found), 2),
        "queue_ms": round(statistics.median(m.queue_ms for m in found), 2),
        "note": "" if all(m.stable for m in found) else "unstable",
    }


def measure_parts(target: Target, parts: Sequence[str], sweep: Sweep) -> Iterator[list[Row]]:
    """Yield the rows of each part.

    Raises:
        PerfAnalyzerError: a measurement fails.
    """
    builders = {"unet": unet_cases, "superres": superres_cases, "protocols": protocol_cases}
    for part in (part for part in parts if part in builders):
        yield run(list(builders[part](target, sweep)), sweep.rounds, target.plan)
    if "poisson" in parts:
        arguments = [*target.superres("onnx"), *target.address("grpc"), *concurrency_options(MAX_BATCH)]
        saturated = run([Case("poisson", "saturation", f"{MAX_BATCH} at once", arguments, 2 * MAX_BATCH)], 1, False)
        cases = list(poisson_cases(target, sweep, saturated[0]["per_s"]))
        yield saturated + run(cases, sweep.rounds, target.plan)


def tables(rows: Sequence[Row]) -> str:
    """Format a table per part."""
    cells: dict[str, list[list[str]]] = {}
    for row in rows:
        cells.setdefault(row["part"], []).append([row["load"], *(str(row.get(name, "")) for name in HEADS)])
    return "\n\n".join(markdown([part, *HEADS.values()], found) for part, found in cells.items())


SWEPT = ("unet", "superres", "poisson")
"""Parts with a sweep to plot."""


def plot(rows: Sequence[Row]) -> Figure | None:
    """Plot latency against throughput, a panel per sweep, a line per variant, p99 dashed; None without sweeps."""
    measured = [row for row in rows if "per_s" in row and row["part"] in SWEPT]
    parts = list(dict.fromkeys(row["part"] for row in measured))
    if not parts:
        return None
    figure = Figure(figsize=(6 * len(parts), 4.5), layout="constrained")
    for part, axes in zip(parts, figure.subplots(1, len(parts), squeeze=False)[0], strict=True):
        part_rows = [row for row in measured if row["part"] == part]
        for k, variant in enumerate(dict.fromkeys(row["variant"] for row in part_rows)):
            line = [row for row in part_rows if row["variant"] == variant]
            rates = [row["per_s"] for row in line]
            axes.plot(rates, [row["p50_ms"] for row in line], "o-", color=f"C{k}", label=f"{variant}, p50")
            axes.plot(rates, [row["p99_ms"] for row in line], "o--", color=f"C{k}", mfc="none", label=f"{variant}, p99")
            for row in line:
                at = (row["per_s"], row["p50_ms"])
                axes.annotate(row["load"], at, xytext=(4, -10), textcoords="offset points", fontsize=7)
        axes.set(title=part, xlabel="inferences per second", ylabel="request latency (ms)", yscale="log")
        axes.set_xlim(0, 1.25 * max(row["per_s"] for row in part_rows))
        axes.legend(fontsize=8, loc="upper left")
    return figure


def write(out: Path, rows: Sequence[Row]) -> None:
    """Write serving.md, .csv, .json and, for sweeps, .png into the folder ``out``; raise OSError on failure."""
    (out / "serving.md").write_text(tables(rows) + "\n")
    (out / "serving.json").write_text(json.dumps(rows, indent=2) + "\n")
    with open(out / "serving.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["part", "load", *HEADS], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    figure = plot(rows)
    if figure is not None:
        figure.savefig(out / "serving.png", dpi=100)


@contextlib.contextmanager
def target_of(url: str | None, http_url: str | None, repository: Path, steps: int | None) -> Iterator[Target]:
    """Connect to the server at an address, or start one on a repository for the duration of the block.

    Raises:
        ServerError: the server does not start.
        UpscaleError: the server does not respond.
    """
    (port,) = free_ports(1)
    with server_at(url, repository, http=port) as grpc, tempfile.TemporaryDirectory() as folder:
        with Client(grpc) as client:
            preset = client.preset
        with tritonclient.grpc.InferenceServerClient(grpc) as server:
            plan = server.is_model_ready("unet_trt")
        http = http_url or (f"localhost:{port}" if url is None else "")
        yield Target(grpc, http, preset, Path(folder), plan, steps or preset.diffusion.ddim_steps)


@one_line_errors(PerfAnalyzerError, ServerError, UpscaleError, OSError)
def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--part", choices=PARTS, nargs="+", default=PARTS, help="default: all")
    parser.add_argument("--quick", action="store_true", help="fewer loads and requests, one round: minutes on a CPU")
    parser.add_argument("--rounds", type=count, help=f"default: {Sweep.rounds}, with --quick {QUICK.rounds}")
    parser.add_argument("--steps", type=int, help="steps of superres (default: the preset's)")
    add_server(parser)
    parser.add_argument("--http-url", help="HTTP address of the server, for the part protocols")
    parser.add_argument(
        "--out", type=Path, default=Path("results/serving"), help="output folder (default: %(default)s)"
    )
    args = parser.parse_args(argv)
    if args.url and not args.http_url and "protocols" in args.part:
        parser.error("argument --http-url: required with --url for the part protocols")
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"argument --out: cannot create the folder '{args.out}': {error.strerror}")
    sweep = QUICK if args.quick else Sweep()
    sweep = replace(sweep, rounds=args.rounds or sweep.rounds)
    rows: list[Row] = []
    if "protocols" in args.part and free_shared_memory() < NEEDED_MB:
        raise PerfAnalyzerError(
            f"/dev/shm must have {NEEDED_MB} MB free for the part protocols, got {free_shared_memory():.0f} MB: "
            "enlarge it (docker run --shm-size=1g) or use other parts with --part"
        )
    if "unet" in args.part and (skipped := [batch for batch in sweep.batches if batch > MAX_BATCH]):
        print(f"skipped: batch {', '.join(map(str, skipped))}, above the models' max_batch_size {MAX_BATCH}")
    try:
        with target_of(args.url, args.http_url, args.model_repository, args.steps) as target:
            for found in measure_parts(target, args.part, sweep):
                rows += found
    finally:  # what was measured before a failure is kept
        if rows:
            print(f"\n{tables(rows)}\n\n{json.dumps(rows)}")
            write(args.out, rows)


if __name__ == "__main__":
    sys.exit(main())
