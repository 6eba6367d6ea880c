"""A private server for the duration of a block, for the demo, the benchmarks and plan checks."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import tritonclient.grpc

from pipeline import ROOT
from pipeline.models import superres_model
from pipeline.serving.probe import NotReady, upscale_one, wait_until_listening
from pipeline.triton_config import preset_of

EXIT_LIMIT = 30
"""Maximum seconds for a server to end with all its processes."""
START_LIMIT = 120
"""Seconds until a server must accept connections; on a GPU, plans and graphs are loaded first."""


class ServerError(Exception):
    """The server does not start; the message states the reason."""


def free_ports(count: int) -> list[int]:
    """Return unused ports."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in sockets]


@contextlib.contextmanager
def running_server(
    log: Path,
    repository: Path = ROOT / "model_repository",
    flags: Sequence[str] = (),
    http: int | None = None,
    check: bool = True,
    supervised: bool = False,
) -> Iterator[str]:
    """Start a server on a repository, yield its gRPC address once it is ready, and always stop it.

    Args:
        log: file for the server's output.
        repository: model repository.
        flags: further arguments of ``python -m pipeline.serve``.
        http: HTTP port, if the caller needs to know it.
        check: whether model ``superres``, if present, must also upscale a test image.
        supervised: whether the server is also probed, and restarted, while it runs.

    Raises:
        ServerError: the server does not start or cannot upscale.
    """
    free, grpc, metrics = free_ports(3)
    ports = {"grpc": grpc, "http": http or free, "metrics": metrics}
    options = [f"--model-repository={repository.resolve()}", *(f"--{name}-port={port}" for name, port in ports.items())]
    unsupervised = [] if supervised else ["--no-check"]
    with open(log, "w") as file:
        # a separate session, so that Ctrl-C only reaches this process, which then stops the server properly
        server = subprocess.Popen(
            [*(sys.executable, "-m", "pipeline.serve", *options), *unsupervised, "--open-administration", *flags],
            stdout=file,
            stderr=file,
            start_new_session=True,
            cwd=ROOT,
        )
        try:
            try:
                wait_until_listening(server, [("127.0.0.1", port) for port in ports.values()], START_LIMIT)
                preset = preset_of(repository)
                if check and (repository / superres_model(preset).name).is_dir():
                    upscale_one(("127.0.0.1", grpc), preset)
            except NotReady as error:
                raise ServerError(f"{error}:\n{last_lines(log)}") from error
            yield f"127.0.0.1:{grpc}"
        finally:
            stop(server)


def not_ready(url: str, model: str) -> str | None:
    """Return why the server at ``url`` does not run ``model``; None if it does."""
    with tritonclient.grpc.InferenceServerClient(url) as client:
        if client.is_model_ready(model):
            return None
        reasons = [m.reason for m in client.get_model_repository_index().models if m.name == model]
    return (reasons or ["it is not in the repository"])[0].partition("\n")[0]


def stop(server: subprocess.Popen[bytes]) -> None:
    """Stop the server and every process it started; kill them on another interruption."""
    server.terminate()
    try:
        server.wait(EXIT_LIMIT)
    except subprocess.TimeoutExpired:
        pass  # killed below
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def last_lines(path: Path, count: int = 5) -> str:
    return "\n".join(path.read_text().strip().splitlines()[-count:])
