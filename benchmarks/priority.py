"""Measure how long an interactive request takes while a folder is upscaled, with and without its priority.

python -m benchmarks.priority
python -m benchmarks.priority --requests 100 --clients 32
"""

from __future__ import annotations

import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np
from tqdm import tqdm

from benchmarks.server import server_at
from client import Client, UpscaleError
from pipeline.command_line import count, make_parser, one_line_errors
from pipeline.serving.local_server import ServerError

SIDE = 64


def measure(url: str, bulk: Literal["interactive", "bulk"], clients: int, requests: int) -> list[float]:
    """Return the seconds of interactive requests while ``clients`` others send images of priority ``bulk``."""
    image, stop, seconds = np.random.default_rng(0).random((SIDE, SIDE)), threading.Event(), []

    def load(client: Client, seed: int) -> None:
        while not stop.is_set():
            client.upscale(image, seed=seed)

    with (
        Client(url, priority=bulk) as folder,
        Client(url) as reader,
        ThreadPoolExecutor(clients) as pool,
    ):
        futures = [pool.submit(load, folder, seed) for seed in range(clients)]
        try:
            time.sleep(1)  # until the queue is full
            for _ in tqdm(range(requests), desc=f"beside {bulk} requests", leave=False):
                began = time.monotonic()
                reader.upscale(image)
                seconds.append(time.monotonic() - began)
        finally:
            stop.set()
        for future in futures:
            future.result()
    return seconds


@one_line_errors(ServerError, UpscaleError, OSError)
def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__doc__, "python -m benchmarks.priority")
    parser.add_argument("--clients", type=count, default=48, help="concurrent bulk requests (default: %(default)s)")
    parser.add_argument("--requests", type=count, default=60, help="interactive requests (default: %(default)s)")
    args = parser.parse_args(argv)
    with server_at(None) as url:
        print("| load beside it | median (ms) | p95 (ms) |\n|---|---|---|")
        for name, level in (("bulk", "bulk"), ("of the same priority", "interactive")):
            found = measure(url, level, args.clients, args.requests)  # type: ignore[arg-type]
            print(f"| {name} | {1e3 * np.median(found):.0f} | {1e3 * np.percentile(found, 95):.0f} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
