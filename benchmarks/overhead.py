"""Time one image through the server, through the same ONNX files in this process, and through PyTorch eager.

python -m benchmarks.overhead
python -m benchmarks.overhead --rounds 9 --sampler ddpm --steps 300
python -m benchmarks.overhead --url localhost:8001

The three take turns in one run, so that a busy machine troubles them alike; read the ratios, not the seconds. The
last line is JSON.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tritonclient.grpc
from tqdm import tqdm

from client import Client, UpscaleError
from pipeline import eager
from pipeline.command_line import make_parser
from pipeline.local_server import ServerError, running_server
from pipeline.onnx_networks import onnx_networks
from pipeline.serve import ROOT
from pipeline.spec import DEFAULT, SAMPLERS, SamplerName
from pipeline.superres import generator, upscale


def unet_seconds(url: str) -> tuple[int, float, float]:
    """(calls of the U-Net so far, seconds in its queue and backend, seconds of these in the backend alone)."""
    with tritonclient.grpc.InferenceServerClient(url) as client:
        (stats,) = client.get_inference_statistics("unet_onnx").model_stats
    s = stats.inference_stats
    return s.success.count, s.success.ns / 1e9, (s.compute_input.ns + s.compute_infer.ns + s.compute_output.ns) / 1e9


def measure(url: str, rounds: int, sampler: SamplerName, steps: int | None, side: int) -> dict[str, float]:
    """Median seconds of each way, the ratios, and the server's own account of its U-Net calls."""
    image = np.random.default_rng(0).random((side, side), dtype=np.float32)
    with Client(url) as client:
        preset = client.preset
        one_process = generator(onnx_networks(ROOT / "model_repository", preset), preset, steps=steps, sampler=sampler)
        pytorch = eager.load(ROOT / "weights" / preset.name, preset).generator(steps=steps, sampler=sampler)
        ways: dict[str, Callable[[], object]] = {
            "server": lambda: client.upscale(image, steps=steps, sampler=sampler),
            "one_process": lambda: upscale([image], [0], one_process, preset),
            "pytorch_eager": lambda: upscale([image], [0], pytorch, preset),
        }
        for run in ways.values():
            run()
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        before = unet_seconds(url)
        for _ in tqdm(range(rounds), desc="rounds"):
            for name, run in ways.items():
                began = time.perf_counter()
                run()
                seconds[name].append(time.perf_counter() - began)
        calls, total, compute = (b - a for a, b in zip(before, unet_seconds(url), strict=True))
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    return {
        **{f"{name}_s": value for name, value in medians.items()},
        "server/one_process": statistics.median(
            a / b for a, b in zip(seconds["server"], seconds["one_process"], strict=True)
        ),
        "pytorch_eager/server": statistics.median(
            a / b for a, b in zip(seconds["pytorch_eager"], seconds["server"], strict=True)
        ),
        "unet_calls_per_image": calls / rounds,
        "unet_compute_s_per_image": compute / rounds,
        "unet_queue_s_per_image": (total - compute) / rounds,
        "outside_unet_s_per_image": statistics.mean(seconds["server"]) - total / rounds,
    }


def report(r: dict[str, float], side: int) -> str:
    """What the figures mean, for people."""
    server = r["server_s"]
    per_call = 1e3 * (server - r["one_process_s"]) / r["unet_calls_per_image"]
    return f"""
one {side}×{side} image, {r["unet_calls_per_image"]:.0f} steps, medians
  (a) through the server          {server:7.3f} s
  (b) same files, one process     {r["one_process_s"]:7.3f} s   a/b = {r["server/one_process"]:.2f}
  (c) PyTorch eager               {r["pytorch_eager_s"]:7.3f} s   c/a = {r["pytorch_eager/server"]:.2f}
where (a) goes, by the server's statistics (means)
  U-Net: ONNX backend computing   {r["unet_compute_s_per_image"]:7.3f} s   {r["unet_calls_per_image"]:.0f} calls
  U-Net: queue and scheduling     {r["unet_queue_s_per_image"]:7.3f} s
  the rest                        {r["outside_unet_s_per_image"]:7.3f} s   BLS calls, sampler, autoencoder, wire
  overhead per U-Net call         {per_call:7.3f} ms  (a - b) / calls
"""


def main(argv: list[str] | None = None) -> int:
    parser = make_parser(__doc__)
    parser.add_argument("--url", help="gRPC address of a running server (default: one is started and stopped)")
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--sampler", choices=SAMPLERS, default=DEFAULT.diffusion.sampler, help="default: %(default)s")
    parser.add_argument("--steps", type=int, help="default: the preset's")
    parser.add_argument("--side", type=int, default=DEFAULT.data.lr_size, help="of the LR image (default: %(default)s)")
    args = parser.parse_args(argv)
    try:
        with contextlib.ExitStack() as stack:
            url = args.url
            if url is None:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                url = stack.enter_context(running_server(folder / "server.log"))
            results = measure(url, args.rounds, args.sampler, args.steps, args.side)
    except (ServerError, UpscaleError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(report(results, args.side))
    print(json.dumps({name: round(value, 4) for name, value in results.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
