"""What kills a part of the real server loses no image: the rest is answered, and the server comes back by itself."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import tritonclient.grpc
from google.protobuf import text_format
from tritonclient.utils import InferenceServerException

from benchmarks.faults.attacks import is_closed
from client import BadRequest, Client, ServerError, ServerLost
from pipeline import ROOT, triton_config
from pipeline.method.images import Image
from pipeline.method.options import BUSY
from pipeline.serving.access import GRPC_KEY
from pipeline.serving.processes import SHARED_MEMORY, children, cpu_seconds, model_processes
from tests.certificates import make_ca, make_certificate
from tests.conftest import RunningServer, StartServer, wait_for

REPOSITORY = ROOT / "model_repository"
IMAGE = np.linspace(0, 1, 64 * 64, dtype=np.float32).reshape(64, 64)
LARGE = np.random.default_rng(0).random((256, 256), dtype=np.float32)
LONG: dict[str, Any] = {"sampler": "ddpm", "samples": 4}
"""Options with which ``LARGE`` takes minutes."""


@pytest.fixture(scope="module")
def supervised(start_server: StartServer) -> RunningServer:
    return start_server(REPOSITORY, options=(), ready="")


def triton_of(server: RunningServer) -> int:
    (pid,) = children(server.process.pid)
    return pid


def restarts(server: RunningServer) -> int:
    return server.log.read_text().count("\nrestarting")


@contextlib.contextmanager
def load(server: RunningServer) -> Iterator[list[Image]]:
    """Two clients that upscale one image again and again; what they get is checked at the end."""
    stop, answers = threading.Event(), list[Image]()

    def work() -> None:
        with Client(server.url("grpc"), wait=60) as client:
            while not stop.is_set():
                answers.append(client.upscale(IMAGE, seed=1).image)

    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(work) for _ in range(2)]
        wait_for(lambda: len(answers) > 4)
        try:
            yield answers
        finally:
            stop.set()
        for future in futures:
            future.result()  # no request failed
    assert all(np.array_equal(answer, answers[0]) for answer in answers)


@pytest.mark.parametrize("victim", ["superres_onnx", "superres", "tritonserver"])
def test_a_process_that_is_killed_under_load_comes_back_and_no_image_is_lost(
    supervised: RunningServer, victim: str
) -> None:
    before, triton = restarts(supervised), triton_of(supervised)
    with load(supervised) as answers:
        pid = next((pid for pid, model in model_processes(triton).items() if model == victim), triton)
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: restarts(supervised) > before, limit=10)
        count = len(answers)
        wait_for(lambda: len(answers) > count + 4)
    assert triton not in children(supervised.process.pid)
    log = supervised.log.read_text().splitlines()
    reason = [line for line in log if line.startswith("restarting")][-1]
    assert victim in reason or (victim == "tritonserver" and "ended with signal 9" in reason)


def test_a_server_that_hangs_is_found_in_five_seconds(supervised: RunningServer) -> None:
    before, triton = restarts(supervised), triton_of(supervised)
    with Client(supervised.url("grpc"), wait=60) as client:
        for pid, model in model_processes(triton).items():
            if model == "superres":
                os.kill(pid, signal.SIGSTOP)
        wait_for(lambda: restarts(supervised) > before, limit=5)
        assert client.upscale(IMAGE, seed=1).image.shape == (256, 256)


def test_nothing_of_a_killed_server_stays(start_server: StartServer) -> None:
    server = start_server(REPOSITORY, options=(), ready="")
    triton = triton_of(server)
    models = list(model_processes(triton))
    assert regions_of(server.process.pid)
    for pid in (server.process.pid, triton):
        os.kill(pid, signal.SIGKILL)
    server.process.wait()
    start_server(REPOSITORY)
    assert regions_of(server.process.pid) == []
    wait_for(lambda: not any(is_model_process(pid) for pid in models))


def regions_of(supervisor: int) -> list[str]:
    return [path.name for path in SHARED_MEMORY.glob(f"cxr-superres-*-{supervisor}-*-????????-*")]


def is_model_process(pid: int) -> bool:
    try:
        return b"triton_python_backend_stub" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def taken(server: RunningServer) -> float:
    """Seconds of processor time that the models have taken."""
    return cpu_seconds(*model_processes(triton_of(server)))


def rests(server: RunningServer) -> bool:
    before = taken(server)
    time.sleep(0.5)  # what is measured is what a time takes
    return taken(server) - before < 0.2


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_work_ends_when_nobody_waits_for_it(supervised: RunningServer, protocol: Literal["grpc", "http"]) -> None:
    with Client(supervised.url(protocol), protocol=protocol, timeout=1) as client:
        with pytest.raises(ServerError, match="within 1 s"):
            client.upscale(LARGE, **LONG)
    wait_for(lambda: rests(supervised), limit=5)


def test_work_ends_when_its_caller_dies(supervised: RunningServer) -> None:
    code = (
        "import sys, numpy as np; from client import Client; "
        "Client(sys.argv[1]).upscale(np.zeros((256, 256), np.float32), sampler='ddpm', samples=4)"
    )
    caller = subprocess.Popen([sys.executable, "-c", code, supervised.url("grpc")], cwd=ROOT)
    before = taken(supervised)
    wait_for(lambda: taken(supervised) > before + 1)
    caller.kill()
    caller.wait()
    wait_for(lambda: rests(supervised), limit=5)


def test_a_server_stops_within_ten_seconds_and_refuses_what_is_left(start_server: StartServer) -> None:
    server = start_server(REPOSITORY)
    with Client(server.url("grpc"), wait=0) as client, ThreadPoolExecutor(1) as pool:
        before = taken(server)
        future = pool.submit(client.upscale, LARGE, **LONG)
        wait_for(lambda: taken(server) > before + 1)
        began = time.monotonic()
        server.process.terminate()
        server.process.wait(30)
        took = time.monotonic() - began
        assert isinstance(future.exception(10), ServerLost)
    assert took < 10


def test_a_request_has_a_budget(supervised: RunningServer) -> None:
    with Client(supervised.url("grpc")) as client:
        with pytest.raises(BadRequest, match=r"at most 134,217,728, got 1,258,291,200"):
            client.upscale(np.zeros((512, 512)), samples=16, sampler="ddpm")
        client.upscale(IMAGE)


def impatient_repository(folder: Path, waiting: int, seconds: float) -> Path:
    """The repository, where ``waiting`` requests for ``superres`` may wait, for ``seconds``."""
    shutil.copytree(REPOSITORY, folder / "models")
    path = folder / "models" / "superres" / "config.pbtxt"
    config = triton_config.read_config(path)
    policy = config.dynamic_batching.default_queue_policy
    policy.max_queue_size, policy.default_timeout_microseconds = waiting, round(seconds * 1e6)
    path.write_text(text_format.MessageToString(config))
    return folder / "models"


class Call:
    """A request sent by tritonclient itself, which does not try again."""

    def __init__(self, client: tritonclient.grpc.InferenceServerClient, *shape: int, sampler: str = "ddim") -> None:
        image = tritonclient.grpc.InferInput("image", shape, "FP32")
        image.set_data_from_numpy(np.zeros(shape, np.float32))
        samplers = tritonclient.grpc.InferInput("sampler", [shape[0], 1], "BYTES")
        samplers.set_data_from_numpy(np.full((shape[0], 1), sampler, np.object_))
        self.error: str | None = None
        self.took: float | None = None
        self._sent = time.monotonic()
        self.cancel = client.async_infer("superres", [image, samplers], self._done).cancel

    def _done(self, result: object, error: InferenceServerException | None) -> None:  # noqa: ARG002
        self.error = str(error)
        self.took = time.monotonic() - self._sent


def test_a_busy_model_has_few_requests_wait_and_not_for_long(start_server: StartServer, tmp_path: Path) -> None:
    waiting, seconds = 2, 3.0
    server = start_server(impatient_repository(tmp_path, waiting, seconds))
    with (
        Client(server.url("grpc"), wait=0) as client,
        tritonclient.grpc.InferenceServerClient(server.url("grpc")) as raw,
    ):
        expected = client.upscale(IMAGE, seed=1).image

        def begun() -> int:
            """Images whose noise has been removed, the first thing done."""
            statistics = raw.get_inference_statistics("restorer", as_json=True)
            return int(statistics["model_stats"][0].get("inference_count", 0))

        before = begun()
        busy = [Call(raw, 16, 128, 128, sampler="ddpm") for _ in range(2)]  # as many as the model has instances
        wait_for(lambda: begun() == before + 2 * 16)
        calls = [Call(raw, 1, 32, 32) for _ in range(6)]
        wait_for(lambda: all(call.took for call in calls))
        assert not any(call.took for call in busy)
        refused = [call.took for call in calls if BUSY in (call.error or "")]
        expired = [call.took for call in calls if "Request timeout expired" in (call.error or "")]
        assert (len(refused), len(expired)) == (len(calls) - waiting, waiting)
        assert all(took and took < seconds / 2 for took in refused), "at once"
        assert all(took and seconds <= took < 2 * seconds for took in expired)
        for call in busy:
            call.cancel()
        wait_for(lambda: rests(server), limit=20)
        np.testing.assert_array_equal(client.upscale(IMAGE, seed=1).image, expected)
    server.kill()


def test_administration_is_closed(start_server: StartServer, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("t0ken\n")
    (tmp_path / "admin").write_text("adm1n\n")
    tokens = [f"--token-file={tmp_path / 'token'}", f"--admin-token-file={tmp_path / 'admin'}"]
    server = start_server(REPOSITORY, options=tokens, ready="")
    assert "t0ken" not in server.log.read_text() and "adm1n" not in server.log.read_text()
    with tritonclient.grpc.InferenceServerClient(server.url("grpc")) as client:
        closed = {
            "index": client.get_model_repository_index,
            "statistics": client.get_inference_statistics,
            "logging": client.get_log_settings,
            "trace": client.get_trace_settings,
            "shared memory": client.get_system_shared_memory_status,
        }
        assert client.is_server_live()
        for name, call in closed.items():
            for headers in ({}, {GRPC_KEY: "Bearer t0ken"}, {GRPC_KEY: "Bearer wrong"}):
                assert is_closed(partial(call, headers=headers)), f"{name} is open to {headers}"
            call(headers={GRPC_KEY: "Bearer adm1n"})
        with pytest.raises(InferenceServerException, match="restricted"):
            client.get_model_config("superres")
        client.get_model_config("superres", headers={GRPC_KEY: "Bearer t0ken"})


def test_the_server_checks_itself_by_tls(start_server: StartServer, tmp_path: Path) -> None:
    made = make_certificate(make_ca(tmp_path, "ca"), "server", "DNS:upscale.example")
    (tmp_path / "token").write_text("t0ken\n")
    options = [f"--tls-cert={made.chain}", f"--tls-key={made.key}", f"--token-file={tmp_path / 'token'}"]
    server = start_server(REPOSITORY, options=options, ready="")
    probe = [sys.executable, "-m", "pipeline.serve", "--probe", f"--grpc-port={server.grpc}"]
    assert subprocess.run([*probe, *options], cwd=ROOT, capture_output=True).returncode == 0
    for fewer in ([], options[:2]):
        refused = subprocess.run([*probe, *fewer], cwd=ROOT, capture_output=True, text=True)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert refused.stderr.startswith(f"error: the server at 127.0.0.1:{server.grpc} is not ready")
