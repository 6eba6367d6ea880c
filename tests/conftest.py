"""What tests share: fake networks, a tiny autoencoder, and the real server."""

from __future__ import annotations

import gc
import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from client import Client, ServerUnavailable
from pipeline import ROOT
from pipeline.method.images import downscale
from pipeline.method.upscale import Networks
from pipeline.presets import PAPER, PRESETS
from pipeline.serving.local_server import free_ports, stop
from tests.logs import found, logs, names
from tests.tiny import TINY

Array = NDArray[np.float32]

# a shell that runs the tests in the background has them, and what they start, ignore Ctrl-C
signal.signal(signal.SIGINT, signal.default_int_handler)
# no test asks the hub: huggingface_hub reads this when it is imported, and would try again and again
os.environ["HF_HUB_OFFLINE"] = "1"


LONGEST = ("test_web", "test_paper_repository", "test_faults")
"""Files that take a minute."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What needs a real server is slow. Workers begin with what is slow, so that none ends long after the others."""
    for item in items:
        if "started" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: (item.get_closest_marker("slow") is None, item.path.stem not in LONGEST))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Print failures when they happen: a run that is stopped from outside has said what failed."""
    if report.failed and "PYTEST_XDIST_WORKER" not in os.environ:
        print(f"\n{report.nodeid} ({report.when})\n{report.longreprtext[-3000:]}", flush=True)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give workers whole files, which share servers and exports, and recover from crashed workers."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):  # type: ignore[misc]
        def remove_node(self, node: Any) -> str | None:
            """Give up what a crashed worker was at, and give the others only what it had not finished.

            xdist's own gives them finished files too, and what crashed again: a worker that got a finished file as its
            last waits for more forever.
            """
            work = self.assigned_work[node]
            crashed = next((name for unit in work.values() for name, done in unit.items() if not done), None)
            left = {
                scope: {name: done for name, done in unit.items() if not done and name != crashed}
                for scope, unit in work.items()
            }
            self.assigned_work[node] = {}
            super().remove_node(node)
            self.workqueue.update({scope: unit for scope, unit in left.items() if unit})
            if crashed:
                for other in self.nodes:
                    self._reschedule(other)
            return crashed

    return Scheduling(config, log) if config.getoption("dist") == "loadfile" else None


def fake_denoise(z_t: Array, z_lr: Array, t: int) -> Array:
    """A smooth function of all three arguments that any array library computes alike.

    It grows with z_t throughout, as a trained network does, so that rounding errors fade instead of growing.
    """
    eps: Array = 0.8 * z_t + 0.1 * z_t / (1 + z_t * z_t) + 0.2 * z_lr / (1 + z_lr * z_lr) * (1 + t / 300)
    return eps


def exact_tables(scheduler: Any) -> Any:
    """A diffusers scheduler with its tables in float64, as ours are.

    Its own are float32, in which 1-ᾱ_t loses three of seven digits at small t.
    """
    betas = torch.linspace(1e-4, 0.02, 300, dtype=torch.float64)
    scheduler.betas, scheduler.alphas = betas, 1 - betas
    scheduler.alphas_cumprod = torch.cumprod(scheduler.alphas, dim=0)
    return scheduler


@pytest.fixture
def fake_networks() -> Networks:
    """Networks with the real ones' shapes that treat every image by itself."""

    def encode(image: Array, _lr: Array) -> Array:
        small = image[:, :1, ::8, ::8]
        return np.repeat(small, PAPER.vae.latent_channels, axis=1)

    def denoise(x: Array, t: Array) -> Array:
        return np.stack([fake_denoise(a[:4], a[4:], int(time[0])) for a, time in zip(x, t, strict=True)])

    def decode(latent: Array, _lr: Array) -> tuple[Array, ...]:
        return (np.tanh(np.repeat(np.repeat(latent[:, :3], 8, axis=2), 8, axis=3)),)

    return Networks(encode, denoise, decode)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``train.pairs`` writes: twenty smooth pairs of ten patients."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for name in ("HR_256", "LR_64"):
        (folder / name).mkdir()
    for patient, follow_up in itertools.product(range(10), range(2)):
        hr = cv2.resize(rng.integers(0, 256, (8, 8), dtype=np.uint8), (256, 256), interpolation=cv2.INTER_CUBIC)
        name = f"{patient:08}_{follow_up:03}.png"
        cv2.imwrite(str(folder / "HR_256" / name), hr)
        cv2.imwrite(str(folder / "LR_64" / name), downscale(hr))
    return folder


@pytest.fixture(scope="module")
def few_held_out() -> Iterator[None]:
    """Trainings validate on a few images."""
    with pytest.MonkeyPatch.context() as patch:
        for setting in ("tune.VALIDATION_SQUARES", "restore.HELD_OUT", "doubt.HELD_OUT", "presentation.HELD_OUT"):
            patch.setattr(f"train.{setting}", 4)
        yield


@pytest.fixture(scope="module")
def tiny_presets(few_held_out: None) -> Iterator[None]:  # noqa: ARG001
    """Trainings of the presets make the networks of ``tests.tiny``, and validate on a few images."""
    with pytest.MonkeyPatch.context() as patch:
        for name, preset in TINY.items():
            patch.setitem(PRESETS, name, preset)
        yield


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def collected() -> Iterator[None]:
    """Have what a test leaves to the garbage collector end within it."""
    yield
    gc.collect()


@contextmanager
def answering(data: bytes | None) -> Iterator[int]:
    """A port where every connection gets ``data`` and is closed; None: never anything."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(10_000)
                connection.sendall(data or b"")

        if data is not None:
            threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]


def wait_for(state: Callable[[], object], limit: float = 60) -> None:
    """Return once ``state`` holds."""
    deadline = time.monotonic() + limit
    while not state():
        assert time.monotonic() < deadline, "what is waited for does not come"
        time.sleep(0.01)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own of 1 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", disk], capture_output=True).returncode:
        pytest.skip("mounting a small disk is not permitted here")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients that are not told how long to wait for a server wait a moment."""
    defaults = Client.__init__.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "wait", 0.1)


@dataclass
class RunningServer:
    """A tritonserver that tests started."""

    process: subprocess.Popen[bytes]
    http: int
    grpc: int
    metrics: int
    log: Path

    def url(self, protocol: str) -> str:
        return f"localhost:{self.grpc if protocol == 'grpc' else self.http}"

    def kill(self) -> None:
        """End it at once, as a crash would."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


StartServer = Callable[..., RunningServer]


@pytest.fixture(scope="session", autouse=True)
def private_logs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Once all tests have run and their servers have ended, no log has told a name of an image or patient, or pixels.

    A failure is one of the last test.
    """
    yield
    folder = tmp_path_factory.getbasetemp()
    forbidden = set(names(folder)) if logs(folder) else set()
    told = {str(log): found(log.read_text(errors="replace"), forbidden) for log in logs(folder)}
    assert not any(told.values()), {log: words for log, words in told.items() if words}


@pytest.fixture(scope="session")
def started() -> Iterator[list[RunningServer]]:
    """All servers of the run, which have ended at its end."""
    servers: list[RunningServer] = []
    yield servers
    for server in servers:
        server.process.terminate()
    for server in servers:
        stop(server.process)


@pytest.fixture(scope="module")
def start_server(started: list[RunningServer], tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartServer]:
    """``start`` servers that are told to stop when the tests of a file have run; nothing waits for that."""
    own: list[RunningServer] = []

    def start_one(*arguments: Any, **options: Any) -> RunningServer:
        own.append(start(started, tmp_path_factory, *arguments, **options))
        return own[-1]

    yield start_one
    for server in own:
        server.process.terminate()


def start(
    started: list[RunningServer],
    tmp_path_factory: pytest.TempPathFactory,
    repository: Path,
    *flags: str,
    ready: str = "superres",
    ports: list[int] | None = None,
    runtime: str = "onnxruntime",
    options: Sequence[str] = ("--open-administration", "--no-check"),
    protocols: Sequence[Literal["grpc", "http"]] = ("grpc", "http"),
) -> RunningServer:
    """Start a real server on a repository and wait for its models by ``protocols``."""
    http, grpc, metrics = ports or free_ports(3)
    log = tmp_path_factory.mktemp("server") / "log"
    command = [
        *(sys.executable, "-m", "pipeline.serve", "--model-repository", str(repository)),
        *(f"--http-port={http}", f"--grpc-port={grpc}", f"--metrics-port={metrics}"),
        *(f"--runtime={runtime}", *options, "--", *flags),
    ]
    with open(log, "wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True, cwd=ROOT)
    server = RunningServer(process, http, grpc, metrics, log)
    started.append(server)
    deadline = time.monotonic() + 120
    while True:
        assert process.poll() is None, f"the server stopped:\n{log.read_text()[-3000:]}"
        assert time.monotonic() < deadline, f"the server is not ready:\n{log.read_text()[-3000:]}"
        if not ready and "\nready: " in log.read_text():
            return server
        try:
            wait_ready(server, ready, protocols)
            return server
        except ServerUnavailable:
            continue


def wait_ready(server: RunningServer, model: str, protocols: Sequence[Literal["grpc", "http"]]) -> None:
    """Raises ServerUnavailable unless ``model`` gets ready within a second."""
    if model == "superres":
        for protocol in protocols:
            Client(server.url(protocol), protocol=protocol, wait=1).close()
        return
    import tritonclient.grpc

    try:
        with tritonclient.grpc.InferenceServerClient(server.url("grpc")) as client:
            if client.is_model_ready(model):
                socket.create_connection(("localhost", server.http), timeout=1).close()  # which opens last
                return
    except (tritonclient.utils.InferenceServerException, OSError):
        pass
    time.sleep(0.3)
    raise ServerUnavailable(model)


@pytest.fixture(scope="session")
def server(started: list[RunningServer], tmp_path_factory: pytest.TempPathFactory) -> RunningServer:
    """The real server on the repository as it is shipped, with no configuration completed by the server."""
    return start(started, tmp_path_factory, ROOT / "model_repository")
