"""A supervised server of this machine, to be killed and abused."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline import ROOT
from pipeline.serving.local_server import free_ports
from pipeline.serving.processes import children, cpu_seconds, model_processes

REPOSITORY = ROOT / "model_repository"
STARTED = re.compile(r"^(ready|not checked): ", re.MULTILINE)
START_LIMIT = 120.0
"""Maximum seconds for a server to get ready."""


class FaultError(Exception):
    """A scenario cannot be run; the message says why."""


@dataclass
class Server:
    """A supervised server on this machine."""

    process: subprocess.Popen[bytes]
    grpc: int
    http: int
    log: Path
    host: str = "localhost"

    @property
    def url(self) -> str:
        return f"{self.host}:{self.grpc}"

    def triton(self) -> int:
        return children(self.process.pid)[0]

    def models(self) -> dict[int, str]:
        return model_processes(self.triton())

    def restarts(self) -> list[str]:
        """The supervisor's reasons for restarts so far."""
        return re.findall(r"^restarting.*?: (.*) \(restart \d+\)$", self.log.read_text(), re.MULTILINE)

    def memory_mb(self) -> float:
        """Memory of the server and its models, in MB."""
        pages = 0
        for pid in (self.triton(), *self.models()):
            with contextlib.suppress(OSError):
                pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

    def cpu_seconds(self) -> float:
        """Processor time that the models have taken."""
        return cpu_seconds(*model_processes(self.triton()))


@contextlib.contextmanager
def serving(
    folder: Path, *options: str, prefix: Sequence[str] = (), repository: Path = REPOSITORY, host: str = "localhost"
) -> Iterator[Server]:
    """Start a supervised server, wait until it is ready, and end everything of it."""
    grpc, http, metrics = free_ports(3)
    log = folder / f"server-{grpc}.log"
    command = [
        *(*prefix, sys.executable, "-m", "pipeline.serve", f"--model-repository={repository}"),
        *(f"--grpc-port={grpc}", f"--http-port={http}", f"--metrics-port={metrics}", f"--host={host}", *options),
    ]
    with open(log, "wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True, cwd=ROOT)
    server = Server(process, grpc, http, log, host)
    try:
        wait_until(lambda: process.poll() is not None or STARTED.search(log.read_text()), START_LIMIT)
        if process.poll() is not None:
            raise FaultError(f"the server does not start:\n{log.read_text()[-500:]}")
        yield server
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_until(state: Callable[[], object], limit: float) -> float:
    """Return the seconds until ``state`` holds.

    Raises:
        FaultError: that takes longer than ``limit``.
    """
    began = time.monotonic()
    while not state():
        if time.monotonic() - began > limit:
            raise FaultError(f"what should happen did not within {limit:g} s")
        time.sleep(0.02)
    return time.monotonic() - began
