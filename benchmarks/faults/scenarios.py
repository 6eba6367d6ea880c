"""Faults of processes and callers: what is killed, abused or too much, and the rows that tell what happened."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import tritonclient.grpc

from benchmarks.faults.load import IMAGE, Row, faulty, load
from benchmarks.faults.server import Server, serving, wait_until
from client import BadRequest, Client, ServerError, ServerLost
from client.png import write_png
from pipeline import ROOT
from pipeline.serving.processes import SHARED_MEMORY, cpu_seconds

LARGE = np.random.default_rng(0).random((256, 256), dtype=np.float32)


def kill_process(server: Server, model: str) -> None:
    os.kill(next(pid for pid, name in server.models().items() if name == model), signal.SIGKILL)


def stop_processes(server: Server, count: int) -> None:
    """Stop the busiest processes of ``superres``."""
    found = [pid for pid, name in server.models().items() if name == "superres"]
    for pid in sorted(found, key=cpu_seconds, reverse=True)[:count]:
        os.kill(pid, signal.SIGSTOP)


def process(folder: Path, seconds: float) -> Iterator[Row]:
    """kill -9 of a model's process under load; processes that stand still."""
    for model in ("superres_onnx", "superres"):
        yield faulty(folder, f"kill -9 of a process of {model}", seconds, partial(kill_process, model=model))
    for count in (1, 2):
        name = f"{count} of 2 processes of superres stand still"
        yield faulty(folder, name, seconds, partial(stop_processes, count=count))


def server(folder: Path, seconds: float) -> Iterator[Row]:
    """kill -9 of tritonserver under load, and of its supervisor too."""
    yield faulty(folder, "kill -9 of tritonserver", seconds, lambda s: os.kill(s.triton(), signal.SIGKILL))
    row = Row("kill -9 of server and supervisor, then started again")
    with serving(folder) as first:
        mine = f"-{first.process.pid}-"
        models = first.models()
        triton = first.triton()
        for pid in (first.process.pid, triton):
            os.kill(pid, signal.SIGKILL)
        first.process.wait()
        began = time.monotonic()
        with serving(folder) as second, Client(second.url, wait=60) as client:
            client.upscale(IMAGE)
            row.outcomes["right"] += 1
            row.recovered = time.monotonic() - began
            left = sum(mine in path.name for path in SHARED_MEMORY.iterdir())
            alive = sum(b"triton_python" in command(pid) for pid in models)
    row.note = f"{alive} processes and {left} regions left"
    row.good = not alive and not left
    yield row


def command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def work(folder: Path, seconds: float) -> Iterator[Row]:  # noqa: ARG001
    """Requests that are too much, cancelled, or in the way of a stop."""
    row = Row("16 samples × 300 steps at 512²")
    with serving(folder) as one:
        with Client(one.url) as client:
            began = time.monotonic()
            try:
                client.upscale(np.zeros((512, 512), np.float32), samples=16, sampler="ddpm")
            except BadRequest:
                row.outcomes["refused: BadRequest"] += 1
            row.note = f"refused after {time.monotonic() - began:.2f} s"
            row.good = bool(row.outcomes["refused: BadRequest"])
        yield row
        row = Row("a caller that gives up after 2 s")
        with Client(one.url, timeout=2) as client, contextlib.suppress(ServerError):
            client.upscale(LARGE, samples=4, sampler="ddpm")
        row.outcomes["refused: timeout"] += 1

        def rests() -> bool:
            before = one.cpu_seconds()
            time.sleep(0.25)
            return one.cpu_seconds() - before < 0.1

        took = wait_until(rests, 60)
        row.note, row.good = f"the server rests after {took:.1f} s", took < 2
        yield row
        row = Row("two clients that ask for as much as is allowed, again and again for 70 s")
        with Client(one.url, timeout=600) as client, ThreadPoolExecutor(2) as pool:
            row.outcomes["right"] = sum(pool.map(partial(occupy, client, time.monotonic() + 70), (5, 6)))
        row.note = f"{len(one.restarts())} restarts"
        row.good = row.all_right and not one.restarts()
        yield row
        row = Row("SIGTERM while a request of minutes is in progress")
        with Client(one.url, wait=0) as client, ThreadPoolExecutor(1) as pool:
            before = one.cpu_seconds()
            future = pool.submit(client.upscale, LARGE, samples=4, sampler="ddpm")
            wait_until(lambda: one.cpu_seconds() > before + 1, 60)
            began = time.monotonic()
            one.process.terminate()
            one.process.wait(60)
            took = time.monotonic() - began
            row.outcomes["refused: ServerLost"] += isinstance(future.exception(30), ServerLost)
        row.note, row.good = f"ended after {took:.1f} s", took < 10 and bool(row.outcomes["refused: ServerLost"])
    yield row


def occupy(client: Client, until: float, samples: int) -> int:
    """Upscale an image that takes minutes until a time has passed; return how many were answered."""
    images = 0
    while time.monotonic() < until:
        client.upscale(LARGE, samples=samples, sampler="ddpm")
        images += 1
    return images


def client(folder: Path, seconds: float) -> Iterator[Row]:  # noqa: ARG001
    """kill -9 of the command in the middle of a folder, then the same command again."""
    images, out = folder / "images", folder / "out"
    images.mkdir()
    rng = np.random.default_rng(0)
    for i in range(40):
        write_png(images / f"{i:02}.png", rng.random((64, 64), dtype=np.float32))
    row = Row("kill -9 of the command in the middle of a folder, run again")
    with serving(folder) as one:
        words = [sys.executable, "client/upscale.py", str(images), "-o", str(out), "--url", one.url, "--skip-existing"]
        first = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until(lambda: out.is_dir() and len(list(out.glob("*.png"))) > 10, 60)
        first.kill()
        first.wait()
        unfinished = len(list(out.glob(".*")))
        again = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
        row.outcomes["right"] = len(list(out.glob("*.png")))
        left = len(list(out.glob(".*")))
    row.note = f"{unfinished} unfinished files after the kill, {left} in the end; status {again.returncode}"
    row.good = row.outcomes["right"] == 40 and not left and again.returncode == 0
    yield row


def connections(folder: Path, seconds: float) -> Iterator[Row]:
    """Idle connections, one that sends slowly, one whose owner stands still."""

    def abuse(one: Server) -> None:
        held.extend(socket.create_connection(("localhost", one.grpc)) for _ in range(500))
        slow = socket.create_connection(("localhost", one.http))
        slow.sendall(b"POST /v2/models/superres/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")
        held.append(slow)
        threading.Thread(target=drip, args=(slow,), daemon=True).start()
        code = (
            "import os, signal, sys, threading, numpy as np; from client import Client; c = Client(sys.argv[1]);"
            "threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGSTOP)).start();"
            "[c.upscale(np.zeros((512, 512), np.float32)) for _ in range(9)]"
        )
        stopped.append(subprocess.Popen([sys.executable, "-c", code, one.url], cwd=ROOT))

    def drip(connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection.sendall(b"x" * 100)
                time.sleep(0.1)

    held: list[socket.socket] = []
    stopped: list[subprocess.Popen[bytes]] = []
    try:
        yield faulty(folder, "500 idle connections, one of 1 kB/s, a client that never reads", seconds, abuse)
    finally:
        for connection in held:
            connection.close()
        for one in stopped:
            one.kill()
            one.wait()


def reload(folder: Path, seconds: float) -> Iterator[Row]:
    """Models that are unloaded and loaded again under load, by explicit control."""

    def again(one: Server) -> None:
        with tritonclient.grpc.InferenceServerClient(one.url) as control:
            for _ in range(3):
                control.unload_model("superres_onnx")
                time.sleep(0.5)
                control.load_model("superres_onnx")

    row = Row("superres_onnx unloaded and loaded three times")
    explicit = ["--open-administration", "--", "--model-control-mode=explicit", "--load-model=*"]
    with serving(folder, *explicit) as one:
        load(one, row, seconds, lambda: again(one))
    row.good = row.all_right
    yield row


def memory(folder: Path, seconds: float) -> Iterator[Row]:  # noqa: ARG001
    """Images of the largest size, twice as many again: what their memory is kept for, and that it ends."""
    row = Row("12 images of 512², four at a time, then 12 and 12 more")
    with serving(folder) as one, Client(one.url) as client, ThreadPoolExecutor(4) as pool:
        found = [one.memory_mb()]
        for _ in range(3):
            images = [np.full((512, 512), 0.5, np.float32)] * 12
            row.outcomes["right"] += sum(
                result.image.shape == (2048, 2048) for result in pool.map(client.upscale, images)
            )
            found.append(one.memory_mb())
    row.memory = found[0], found[-1]
    row.note = "MB after each: " + ", ".join(f"{mb:.0f}" for mb in found[1:])
    row.good = row.all_right and found[-1] < 1.1 * found[-2]
    yield row


SCENARIOS: dict[str, Callable[[Path, float], Iterator[Row]]] = {
    "process": process,
    "server": server,
    "work": work,
    "memory": memory,
    "client": client,
    "connections": connections,
    "reload": reload,
}
