"""Supervise a server as a child process: start it, check it with a test image, forward signals, clean up."""

from __future__ import annotations

import ctypes
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import tritonclient.grpc
from tritonclient.utils import InferenceServerException

from pipeline.interrupts import uninterrupted
from pipeline.models import superres_model
from pipeline.presets import Preset
from pipeline.remote import infer
from pipeline.serving.drain import Door
from pipeline.spec import SCALE

Address = tuple[str, int]

ANSWER_LIMIT = 60
"""Maximum seconds for the test image."""
DRAIN_LIMIT = 25
"""Maximum seconds for requests in progress to finish before stopping the server."""
EXIT_LIMIT = 60
"""Maximum seconds for the server to exit; Triton itself gives requests in progress another 30."""
POLL = 0.02
"""Seconds between two checks of a starting server."""
ORPHANS_LIMIT = 2
"""Seconds that the server's child processes may outlive it."""
SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGCHLD}
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


class NotReady(Exception):
    """The server is not ready; the message states the reason, quoting the server if possible."""


def listens(address: Address) -> bool:
    """Whether the address accepts connections; 0.0.0.0 means this machine."""
    try:
        socket.create_connection(address, timeout=1).close()
    except OSError:
        return False
    return True


def wait_until_listening(
    server: subprocess.Popen[bytes], addresses: Sequence[Address], limit: float = math.inf
) -> None:
    """Wait until the server accepts connections at all addresses, which Triton does once its models are loaded.

    Args:
        server: process of the server or its supervisor.
        addresses: addresses in the order in which Triton opens them: gRPC, HTTP, metrics.
        limit: maximum seconds to wait.

    Raises:
        NotReady: the server ends, takes longer, or another process takes a port.
    """
    deadline = time.monotonic() + limit
    while True:
        # the last is checked first: if it is open and an earlier one then is not, it is not the server's
        open_ = [listens(address) for address in reversed(addresses)][::-1]
        if all(open_):
            return
        if server.poll() is not None:
            raise NotReady(f"the server stopped with status {server.returncode}")
        if any(open_[open_.index(False) :]):
            port = addresses[open_.index(True, open_.index(False))][1]
            raise NotReady(f"port {port} was taken by another process meanwhile")
        if time.monotonic() > deadline:
            raise NotReady(f"the server is not ready after {limit:g} seconds")
        time.sleep(POLL)


def upscale_one(address: Address, preset: Preset) -> float:
    """Upscale a test image of the usual shape with model ``superres``; return the seconds it takes.

    Raises:
        NotReady: the request fails, or the result is invalid.
    """
    side, (host, port) = preset.data.lr_size, address
    image = np.tile(np.linspace(0, 1, side, dtype=np.float32), (1, side, 1))
    began = time.monotonic()
    # never use a proxy for a local server
    arguments = [("grpc.enable_http_proxy", 0)]
    with uninterrupted():  # tritonclient cannot be deleted half made
        client = tritonclient.grpc.InferenceServerClient(f"{host}:{port}", channel_args=arguments)
    with client:
        try:
            (upscaled,) = infer(client, superres_model(preset).name, {"image": image}, ["upscaled"], ANSWER_LIMIT)
        except InferenceServerException as error:
            raise NotReady(f"a {side}×{side} image fails: {' '.join(error.message().split())}") from error
    if upscaled.shape != (1, SCALE * side, SCALE * side):
        raise NotReady(f"a {side}×{side} image becomes one of shape {upscaled.shape[1:]}, not {SCALE} times the size")
    low, high = upscaled.min(), upscaled.max()
    if not (low >= 0 and high <= 1):  # NaN is neither
        raise NotReady(f"the result of a {side}×{side} image must be 0–1, got values from {low:g} to {high:g}")
    return time.monotonic() - began


def start(command: Sequence[str | Path], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a server that terminates when this process ends for any reason, with no blocked signals.

    Raises:
        OSError: the server cannot be run.
    """
    libc, parent = ctypes.CDLL(None), os.getpid()

    def before_exec() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())

    return subprocess.Popen(command, env={**os.environ, **environment}, preexec_fn=before_exec)


def children() -> list[int]:
    """Return the process IDs of this process's children."""
    return [int(pid) for path in Path("/proc/self/task").glob("*/children") for pid in path.read_text().split()]


def end_orphans() -> None:
    """End orphaned processes of an ended server: those of models that were still loading can hang."""
    deadline = time.monotonic() + ORPHANS_LIMIT
    while left := children():
        if time.monotonic() > deadline:
            for pid in left:
                os.kill(pid, signal.SIGKILL)
        os.waitpid(-1, os.WNOHANG)
        time.sleep(POLL)


def terminate(server: subprocess.Popen[bytes]) -> None:
    """Terminate a server, killing it if that takes too long."""
    server.terminate()
    try:
        server.wait(EXIT_LIMIT)
    except subprocess.TimeoutExpired:
        server.kill()


def next_signal(server: subprocess.Popen[bytes], limit: float = math.inf) -> int | None:
    """Wait for the next SIGINT or SIGTERM, which this process blocks; return None if the server ends first.

    Also return None after ``limit`` seconds.
    """
    deadline = time.monotonic() + limit
    while server.poll() is None and (left := min(1, deadline - time.monotonic())) > 0:
        received = signal.sigtimedwait(SIGNALS, left)
        if received and received.si_signo != signal.SIGCHLD:
            return received.si_signo
    return None


def supervise(
    command: Sequence[str | Path],
    environment: Mapping[str, str],
    check: Callable[[subprocess.Popen[bytes]], str | None],
) -> int:
    """Run a server in the foreground, sharing this process's output, until it and its child processes have ended.

    The first SIGINT or SIGTERM is forwarded once requests in progress have finished (``pipeline.serving.drain``), or
    immediately after a second one. Ctrl-C also reaches the server directly.

    Args:
        command: the server's command line.
        environment: additional environment variables.
        check: wait until the server is ready and return a line to print; raise NotReady.

    Returns:
        The server's exit status, 128 + n if ended by signal n; 1 if stopped because it was not ready.

    Raises:
        OSError: the server cannot be run.
    """
    # blocked in every thread from here on, so that no signal is lost while nobody waits for it
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    door = Door()
    server = start(command, {**environment, **door.environment})
    stopping, failures = threading.Event(), []

    def watch() -> None:
        try:
            line = check(server)
            if line and not stopping.is_set():
                print(line, flush=True)
        except NotReady as error:
            if server.poll() is None and not stopping.is_set():
                failures.append(error)
                terminate(server)

    watcher = threading.Thread(target=watch)
    watcher.start()
    if number := next_signal(server):
        stopping.set()
        door.close()
        deadline = time.monotonic() + DRAIN_LIMIT
        while not door.is_idle() and time.monotonic() < deadline and not next_signal(server, POLL):
            pass
        server.send_signal(number)
    server.wait()
    watcher.join()
    end_orphans()
    status = server.returncode
    if failures:
        print(f"error: {failures[0]}", file=sys.stderr)
        return 1
    if status and not stopping.is_set():
        how = f"signal {-status}" if status < 0 else f"status {status}"
        print(f"error: the server ended with {how}; see its messages above", file=sys.stderr)
    return 128 - status if status < 0 else status
