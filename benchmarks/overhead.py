"""Time one image on the server, in this process with the same files and runtime, and in eager PyTorch.

python -m benchmarks.overhead
python -m benchmarks.overhead --model-repository models-paper --sampler ddpm --rounds 9
python -m benchmarks.overhead --runtime onnxruntime
python -m benchmarks.overhead --url localhost:8001

The three take turns, so a busy machine affects them alike; read the ratios, not the seconds. The last line is JSON.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import tritonclient.grpc
from tqdm import tqdm

from benchmarks.interleave import interleave, median_ratio
from benchmarks.server import add_server, server_at
from client import Client, UpscaleError
from client.direct import connect
from pipeline import ROOT
from pipeline.command_line import count, make_parser, one_line_errors
from pipeline.method.options import Options
from pipeline.method.upscale import generator, upscale
from pipeline.networks import eager
from pipeline.presets import DEFAULT
from pipeline.runtimes.onnx import Runtime, onnx_networks
from pipeline.serving.find import RUNTIMES
from pipeline.serving.local_server import ServerError
from pipeline.spec import SAMPLERS, SamplerName

CONCURRENCY = 16
"""Concurrent images when measuring throughput."""
REQUESTS_PER_CLIENT = 3
"""Sequential images per client and round."""
BATCHES = (1, 4, 16)


def network_seconds(url: str) -> tuple[int, float, float]:
    """Return (network calls so far, seconds in their queues and backends, seconds in the backends alone)."""
    with tritonclient.grpc.InferenceServerClient(url) as client:
        stats = [s for s in client.get_inference_statistics().model_stats if s.name != "superres"]
    computing = (s.inference_stats for s in stats)
    ns = sum(s.compute_input.ns + s.compute_infer.ns + s.compute_output.ns for s in computing)
    calls = sum(s.inference_stats.success.count for s in stats)
    return calls, sum(s.inference_stats.success.ns for s in stats) / 1e9, ns / 1e9


def runtime_of(url: str) -> Runtime:
    """Return the server's runtime."""
    with tritonclient.grpc.InferenceServerClient(url) as client:
        return "openvino" if client.get_model_config("unet_onnx").config.backend == "openvino" else "onnxruntime"


def measure(
    url: str, repository: Path, rounds: int, sampler: SamplerName | None, steps: int | None, side: int
) -> dict[str, float]:
    """Return median seconds of each variant, ratios, and the server's statistics of its network calls."""
    image = np.random.default_rng(0).random((side, side), dtype=np.float32)
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(Client(url))
        preset = client.preset
        networks = onnx_networks(repository, preset, runtime_of(url))
        options = Options.of(preset, steps=steps, sampler=sampler)
        one_process = generator(networks, preset, options)
        pytorch = eager.load(ROOT / "weights" / preset.name, preset).generator(options)
        variants: dict[str, Callable[[], object]] = {
            "server": lambda: client.upscale(image, steps=steps, sampler=sampler),
            "one_process": lambda: upscale([image], [0], one_process, preset),
            "pytorch_eager": lambda: upscale([image], [0], pytorch, preset),
        }
        if preset.fused == "superres_onnx" and not steps and not sampler:
            direct = stack.enter_context(connect(url))
            variants["server_direct"] = lambda: direct([image], [0])
        for run in variants.values():
            run()
        seconds: dict[str, list[float]] = {name: [] for name in variants}
        served = np.zeros(3)
        for _ in tqdm(range(rounds), desc="rounds"):
            for name, run in variants.items():
                before, began = network_seconds(url) if name == "server" else (0, 0.0, 0.0), time.perf_counter()
                run()
                seconds[name].append(time.perf_counter() - began)
                if name == "server":
                    served += np.subtract(network_seconds(url), before)
        calls, total, compute = served
    medians = {name: statistics.median(times) for name, times in seconds.items()}

    def ratio(a: str, b: str) -> float:
        return median_ratio(seconds[a], seconds[b])

    return {
        **{f"{name}_s": value for name, value in medians.items()},
        "server/one_process": ratio("server", "one_process"),
        "pytorch_eager/server": ratio("pytorch_eager", "server"),
        **({"direct/one_process": ratio("server_direct", "one_process")} if "server_direct" in variants else {}),
        "calls_per_image": calls / rounds,
        "compute_s_per_image": compute / rounds,
        "queue_s_per_image": (total - compute) / rounds,
        "outside_s_per_image": statistics.mean(seconds["server"]) - total / rounds,
    }


def measure_throughput(
    url: str, repository: Path, rounds: int, sampler: SamplerName | None, steps: int | None, side: int
) -> dict[str, float]:
    """Return median images per second on the server, CONCURRENCY at once, and in this process by batch size."""
    number = REQUESTS_PER_CLIENT * CONCURRENCY
    images = list(np.random.default_rng(0).random((number, side, side), dtype=np.float32))
    with Client(url) as client, ThreadPoolExecutor(CONCURRENCY) as pool:
        preset = client.preset
        generate = generator(
            onnx_networks(repository, preset, runtime_of(url)), preset, Options.of(preset, steps=steps, sampler=sampler)
        )

        def served() -> None:
            list(pool.map(lambda image: client.upscale(image, steps=steps, sampler=sampler), images))

        def in_process(batch: int) -> None:
            for first in range(0, number, batch):
                upscale(images[first : first + batch], list(range(batch)), generate, preset)

        variants: dict[str, Callable[[], None]] = {
            "server": served,
            **{f"batch {b}": partial(in_process, b) for b in BATCHES},
        }
        for run in variants.values():
            run()
        seconds = interleave(variants, rounds, "throughput")
    return {name: statistics.median(number / s for s in times) for name, times in seconds.items()}


def report_throughput(rates: dict[str, float]) -> str:
    """Format the throughput as text."""
    best = max((name for name in rates if name != "server"), key=rates.__getitem__)
    lines = [f"  {name:<14}{rate:8.2f}" for name, rate in rates.items()]
    ratio = f"server / {best} in one process: {rates['server'] / rates[best]:.2f}"
    title = f"images per second, {CONCURRENCY} at once on the server, and in one process by batch size"
    return "\n".join([title, *lines, ratio, ""])


def report(r: dict[str, float], side: int) -> str:
    """Format the results as text."""
    server = r["server_s"]
    direct = ""
    if "server_direct_s" in r:
        direct = f"""
  (d) superres_onnx alone         {1e3 * r["server_direct_s"]:8.1f} ms   d/b = {r["direct/one_process"]:.2f}"""
    return f"""
one {side}×{side} image, {r["calls_per_image"]:.0f} network calls, medians
  (a) server                      {1e3 * server:8.1f} ms
  (b) same files, one process     {1e3 * r["one_process_s"]:8.1f} ms   a/b = {r["server/one_process"]:.2f}
  (c) PyTorch eager               {1e3 * r["pytorch_eager_s"]:8.1f} ms   c/a = {r["pytorch_eager/server"]:.2f}{direct}
breakdown of (a) by the server's statistics (means)
  network computation             {1e3 * r["compute_s_per_image"]:8.1f} ms
  queues and scheduling           {1e3 * r["queue_s_per_image"]:8.1f} ms
  other                           {1e3 * r["outside_s_per_image"]:8.1f} ms   BLS calls, sampler, projection, wire
"""


@one_line_errors(ServerError, UpscaleError, ValueError)
def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__doc__)
    add_server(parser)
    parser.add_argument("--runtime", choices=RUNTIMES, default="auto", help="runtime of a server started here")
    parser.add_argument("--throughput", action="store_true", help=f"also measure {CONCURRENCY} images at once")
    parser.add_argument("--rounds", type=count, default=5, help="default: %(default)s")
    parser.add_argument("--sampler", choices=SAMPLERS, help="default: the preset's")
    parser.add_argument("--steps", type=int, help="default: the preset's")
    parser.add_argument(
        "--side", type=int, default=DEFAULT.data.lr_size, help="side of the LR image (default: %(default)s)"
    )
    args = parser.parse_args(argv)
    with server_at(args.url, args.model_repository, [f"--runtime={args.runtime}"]) as url:
        options = (url, args.model_repository, args.rounds, args.sampler, args.steps, args.side)
        results = measure(*options)
        throughput = measure_throughput(*options) if args.throughput else {}
    print(report(results, args.side))
    if throughput:
        print(report_throughput(throughput))
        results |= {f"{name}_per_s": rate for name, rate in throughput.items()}
    print(json.dumps({name: round(value, 4) for name, value in results.items()}))


if __name__ == "__main__":
    sys.exit(main())
