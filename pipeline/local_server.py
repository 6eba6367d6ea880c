"""A server of one's own for as long as a block runs: for the demonstration, the benchmarks and the checks of a plan."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import tritonclient.grpc
from tritonclient.utils import InferenceServerException

from pipeline.serve import ROOT

START_LIMIT = 120
"""Seconds that a server may take until it is ready."""


class ServerError(Exception):
    """The server does not start; the message says why."""


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in sockets]


@contextlib.contextmanager
def running_server(
    log: Path, repository: Path = ROOT / "model_repository", flags: Sequence[str] = (), http: int | None = None
) -> Iterator[str]:
    """A server on a repository, ready; yields its gRPC address, and stops it whatever happens.

    Args:
        log: file for what it prints.
        repository: its model repository.
        flags: further arguments of ``python -m pipeline.serve``.
        http: its HTTP port, where the caller must know it.

    Raises:
        ServerError: it does not start.
    """
    free, grpc, metrics = free_ports(3)
    options = [f"--http-port={http or free}", f"--grpc-port={grpc}", f"--metrics-port={metrics}"]
    with open(log, "w") as file:
        # a session of its own, so that Ctrl-C reaches this process alone, which then stops the server in order
        server = subprocess.Popen(
            [sys.executable, "-m", "pipeline.serve", f"--model-repository={repository}", *options, *flags],
            stdout=file,
            stderr=file,
            start_new_session=True,
            cwd=ROOT,
        )
        try:
            wait_until_ready(server, f"localhost:{grpc}", log)
            yield f"localhost:{grpc}"
        finally:
            stop(server)


def wait_until_ready(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    """Return when every model of the server is ready.

    Raises:
        ServerError: it stops, or takes too long.
    """
    deadline = time.monotonic() + START_LIMIT
    with tritonclient.grpc.InferenceServerClient(url) as client:
        while server.poll() is None:
            with contextlib.suppress(InferenceServerException):
                if client.is_server_ready():
                    return
            if time.monotonic() > deadline:
                raise ServerError(f"the server is not ready after {START_LIMIT} seconds; see '{log}'")
            time.sleep(0.1)
    raise ServerError(f"the server stopped with status {server.returncode}:\n{last_lines(log)}")


def not_ready(url: str, model: str) -> str | None:
    """Why the server at ``url`` does not run ``model``; None where it does."""
    with tritonclient.grpc.InferenceServerClient(url) as client:
        if client.is_model_ready(model):
            return None
        reasons = [m.reason for m in client.get_model_repository_index().models if m.name == model]
    return (reasons or ["it is not in the repository"])[0].partition("\n")[0]


def stop(server: subprocess.Popen[bytes]) -> None:
    """End the server and every process it started, at once where another interruption comes meanwhile."""
    server.terminate()
    try:
        server.wait(40)
    except subprocess.TimeoutExpired:
        pass  # killed below
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def last_lines(path: Path, count: int = 5) -> str:
    return "\n".join(path.read_text().strip().splitlines()[-count:])
