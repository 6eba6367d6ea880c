"""Finding a server, starting it, and one clear line where that cannot be."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http

from client import BadRequest, Client
from pipeline import ROOT, hashes
from pipeline.models import plan_models, superres_model
from pipeline.presets import BEST, DEFAULT, PAPER
from pipeline.runtimes import processor
from pipeline.serving import ServeError, checks, find
from pipeline.serving.find import Server, runtime_flags
from pipeline.serving.local_server import free_ports, not_ready
from pipeline.serving.probe import listens, wait_until_listening
from pipeline.triton_config import config_text
from tests.conftest import RunningServer, StartServer

REPOSITORY = ROOT / "model_repository"
WHEELS = Server(Path("tritonserver"), bundled=True)


def run(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipeline.serve", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
        env={**os.environ, **environment},
    )


def assert_one_line(result: subprocess.CompletedProcess[str], *words: str) -> None:
    assert result.returncode != 0
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("error: ")
    for word in words:
        assert word in result.stderr


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A wheel's folder with everything the embedded server needs, except that the files are empty."""
    triton = tmp_path / "site-packages" / "pytriton" / "tritonserver"
    for name in (
        "bin/tritonserver",
        "backends/python/libtriton_python.so",
        "backends/python/triton_python_backend_utils.py",
        f"python_backend_stubs/{find.PYTHON_VERSION}/triton_python_backend_stub",
        "python_backend_stubs/3.9/triton_python_backend_stub",
    ):
        (triton / name).parent.mkdir(parents=True, exist_ok=True)
        (triton / name).write_text(name)
    return triton.parent


def test_an_installed_server_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    binary = tmp_path / "tritonserver"
    binary.write_text("#!/bin/sh\n")
    binary.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    server = find.find_server()
    assert server.binary == binary
    assert server.flags == ()
    assert server.environment["PYTHONPATH"].split(":")[0] == str(ROOT)


def test_no_server_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ServeError, match="pip install --no-deps nvidia-pytriton"):
        find.find_server()


def test_backend_directory_is_made_once_and_kept_up_to_date(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    server = find.embedded_server(package)
    (backends,) = (tmp_path / "cache" / "cxr-superres").iterdir()
    assert f"--backend-directory={backends}" in server.flags
    assert Path(server.environment["PATH"].split(":")[0]).samefile(Path(sys.executable).parent)
    assert sorted(str(p.relative_to(backends)) for p in backends.rglob("*") if p.is_file()) == [
        "onnxruntime/model.py",
        "openvino/model.py",
        "python/libtriton_python.so",
        "python/triton_python_backend_stub",
        "python/triton_python_backend_utils.py",
        "tensorrt/model.py",
    ]
    (backends / "onnxruntime" / "model.py").write_text("an older version")
    find.embedded_server(package)
    assert (backends / "onnxruntime" / "model.py").read_text() == (
        ROOT / "pipeline" / "backends" / "onnxruntime" / "model.py"
    ).read_text()


def test_missing_stub(package: Path) -> None:
    shutil.rmtree(package / "tritonserver" / "python_backend_stubs" / find.PYTHON_VERSION)
    with pytest.raises(ServeError, match=f"no stub for Python {find.PYTHON_VERSION}, only for 3.9"):
        find.embedded_server(package)


def test_missing_libpython_names_the_package(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sysconfig.get_config_var", lambda _: "/nowhere")
    monkeypatch.setattr("sys.base_prefix", "/nowhere")

    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr("ctypes.CDLL", missing)
    version = find.PYTHON_VERSION
    with pytest.raises(ServeError, match=rf"libpython{version}\.so\.1\.0.* install the package libpython{version}"):
        find.embedded_server(package)


def test_a_cache_that_triton_cannot_start_models_from(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("my cache", "Röntgen", "a$b"):
        monkeypatch.setenv("XDG_CACHE_HOME", f"/tmp/{name}")
        with pytest.raises(ServeError, match="cannot be started from .* set XDG_CACHE_HOME to a path of plain letters"):
            find.embedded_server(package)


def test_cache_that_cannot_be_written(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(ServeError, match="cannot write the backend directory .* XDG_CACHE_HOME"):
        find.embedded_server(package)


def test_a_numpy_that_the_stub_cannot_use_is_refused(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"numpy": "2.5.1"}
    monkeypatch.setattr("importlib.metadata.version", versions.__getitem__)
    with pytest.raises(ServeError) as refused:
        find.embedded_server(package)
    pip = f"{sys.executable} -m pip install '{ROOT}[server]'"
    assert str(refused.value) == f"NumPy 2.5.1 is installed, and the wheel's server needs NumPy 1: {pip}"
    monkeypatch.setattr(find, "ROOT", package)
    with pytest.raises(ServeError, match=r"pip install 'cxr-superres\[server\]'"):
        find.embedded_server(package)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda _: None, ["is not a directory"]),
        (lambda p: p.mkdir(), ["is not a model repository", "config.pbtxt"]),
    ],
)
def test_wrong_repository(tmp_path: Path, make: object, words: list[str]) -> None:
    path = tmp_path / "models"
    make(path)  # type: ignore[operator]
    assert_one_line(run("--model-repository", path), str(path), *words)


@pytest.mark.parametrize(
    "missing", ["unet_onnx/1/model.onnx", "superres/1/model.py", "vae_decoder/1", "superres_onnx/1/model_int8.onnx"]
)
def test_missing_model_file(tmp_path: Path, missing: str) -> None:
    shutil.copytree(REPOSITORY, tmp_path / "models")
    path = tmp_path / "models" / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert_one_line(run("--model-repository", tmp_path / "models"), missing, "is missing", "make export")


def test_a_model_directory_that_is_not_finished(tmp_path: Path) -> None:
    shutil.copytree(REPOSITORY, tmp_path / "models")
    (tmp_path / "models" / "unet_trt" / "1").mkdir(parents=True)
    assert_one_line(run("--model-repository", tmp_path / "models"), "unet_trt", "is unfinished")


def test_model_files_have_their_backends_names(tmp_path: Path) -> None:
    for backend, name in (("python", "model.py"), ("tensorrt", "model.plan"), ("other", "anything")):
        (tmp_path / backend / "1").mkdir(parents=True)
        (tmp_path / backend / "config.pbtxt").write_text(f'backend: "{backend}"')
        (tmp_path / backend / "1" / name).write_text("")
    checks.check_repository(tmp_path)


def add_plan(repository: Path, about: str | None = None) -> Path:
    """A plan that nothing can load, and the JSON file beside it."""
    model = plan_models(DEFAULT).denoiser
    folder = repository / model.name
    (folder / "1").mkdir(parents=True)
    (folder / "config.pbtxt").write_text(config_text(model))
    (folder / "1" / "model.plan").write_bytes(b"ftrt, cut off")
    if about is not None:
        (folder / "1" / "model.json").write_text(about)
    return folder


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    shutil.copytree(REPOSITORY, tmp_path / "models")
    return tmp_path / "models"


def test_a_plan_of_another_network_is_refused(repository: Path) -> None:
    onnx = repository / "unet_onnx" / "1" / "model.onnx"
    about = {"onnx": "unet_onnx/1/model.onnx", "onnx_sha256": hashlib.sha256(onnx.read_bytes()).hexdigest()}
    add_plan(repository, json.dumps(about))
    checks.check_repository(repository)
    onnx.write_bytes(onnx.read_bytes() + b" ")
    assert_one_line(
        run("--model-repository", repository),
        "unet_trt/1/model.plan' was not built from the current",
        "unet_onnx/1/model.onnx",
        "build it again with `make plan`",
    )


def test_a_file_that_differs_from_its_hash_stops_the_start(repository: Path) -> None:
    onnx = repository / "unet_onnx" / "1" / "model.onnx"
    onnx.write_bytes(onnx.read_bytes() + b" ")
    result = run("--model-repository", repository)
    assert result.returncode == 1
    assert_one_line(result, f"'{onnx}' differs from its hash", "restore it with git", "python -m pipeline.hashes")
    assert result.stdout == "", "nothing was started"


def test_a_repository_without_hashes_is_warned_of(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert checks.check_hashes(repository) == hashes.file_hash(repository / hashes.NAME)
    assert capsys.readouterr().err == ""
    (repository / hashes.NAME).unlink()
    assert checks.check_hashes(repository) == ""
    warning = capsys.readouterr().err
    assert warning.startswith(f"warning: '{repository}' has no SHA256SUMS")
    assert warning.count("\n") == 1


@pytest.mark.parametrize(
    "about",
    [
        *("{", "[]", "{}", '{"onnx": 1, "onnx_sha256": ""}', "[" * 100_000),
        *('{"onnx": "' + name + '", "onnx_sha256": ""}' for name in ("x" * 1000, "\\u0000", ".")),
    ],
)
def test_a_damaged_description_of_a_plan_is_named(repository: Path, about: str) -> None:
    add_plan(repository, about)
    with pytest.raises(ServeError, match=r"model.json' is damaged: build it again with `make plan`"):
        checks.check_repository(repository)


def test_a_missing_plan_is_built_again_not_restored(repository: Path) -> None:
    folder = add_plan(repository)
    checks.check_repository(repository)
    (folder / "config.pbtxt").write_text(config_text(plan_models(DEFAULT).denoiser, {"9.0": "model_sm90.plan"}))
    with pytest.raises(ServeError, match=r"model_sm90.plan' is missing: build it again with `make plan`, or remove"):
        checks.check_repository(repository)


def test_a_plan_that_does_not_load_leaves_the_rest_served(start_server: StartServer, repository: Path) -> None:
    add_plan(repository)
    server = start_server(repository)
    with Client(server.url("grpc")) as client:
        image = np.full((16, 16), 0.5, np.float32)
        np.testing.assert_array_equal(client.upscale(image).image, client.upscale(image, denoiser="onnx").image)
        with pytest.raises(BadRequest, match="'denoiser' is 'trt', but the server runs no .* see the server's log"):
            client.upscale(image, denoiser="trt")
    assert "TensorRT" in (not_ready(server.url("grpc"), "unet_trt") or "")
    assert "failed to load 'unet_trt'" in server.log.read_text()


@pytest.mark.slow
def test_a_network_that_does_not_load_ends_a_server_without_plans(tmp_path: Path) -> None:
    repository = tmp_path / "models"
    for name in ("vae_encoder", "unet_onnx"):
        shutil.copytree(REPOSITORY / name, repository / name)
    (repository / "unet_onnx" / "1" / "model.onnx").write_bytes(b"cut off")
    ports = [f"--{name}-port={port}" for name, port in zip(("http", "grpc", "metrics"), free_ports(3), strict=True)]
    result = run("--model-repository", repository, *ports)
    assert result.returncode != 0
    assert "cannot load" in result.stdout + result.stderr
    assert "restarting" not in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", ["config.pbtxt", "configs/openvino.pbtxt"])
def test_damaged_config(tmp_path: Path, name: str) -> None:
    (tmp_path / "m" / "configs").mkdir(parents=True)
    (tmp_path / "m" / "config.pbtxt").write_text("max_batch_size: 1")
    (tmp_path / "m" / name).write_text("max_batch_size: many")
    assert_one_line(run("--model-repository", tmp_path), f"m/{name}")


@pytest.mark.parametrize("name", ["http", "grpc", "metrics"])
def test_port_taken(name: str) -> None:
    ports = dict(zip(("http", "grpc", "metrics"), free_ports(3), strict=True))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", ports[name]))
        listener.listen()
        result = run(*(f"--{n}-port={p}" for n, p in ports.items()))
    assert_one_line(result, f"port {ports[name]} is taken", f"--{name}-port")


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", "::"])
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_port_is_taken_by_whoever_would_get_its_connections(address: str, host: str) -> None:
    both = address == "::"
    family = socket.AF_INET6 if both else socket.AF_INET
    with socket.create_server((address, 0), family=family, dualstack_ipv6=both) as listener:
        with pytest.raises(ServeError, match="is taken: choose another with --grpc-port"):
            checks.check_ports({"grpc": (host, listener.getsockname()[1])})


PORTS = {"grpc": 8001, "http": 8000, "metrics": 8002}


LOCAL = dict.fromkeys(PORTS, "127.0.0.1")


@pytest.mark.parametrize(
    ("ports", "extra", "message"),
    [
        ({"http": 0}, [], "--http-port must be 1–65535, got 0"),
        ({"http": 8001}, [], "port 8001 is given twice: --grpc-port, --http-port"),
        ({}, ["--metrics-port", "x"], "--metrics-port must be 1–65535, got x"),
        ({}, ["--metrics-port=8001"], "port 8001 is given twice"),
    ],
)
def test_port_not_allowed(ports: dict[str, int], extra: list[str], message: str) -> None:
    with pytest.raises(ServeError, match=message):
        checks.listen_addresses(LOCAL, PORTS | ports, extra)


def test_flags_behind_the_dashes_say_where_the_server_listens() -> None:
    assert checks.listen_addresses(LOCAL, PORTS, []) == {name: ("127.0.0.1", port) for name, port in PORTS.items()}
    extra = ["--allow-http", "false", "--grpc-port=1", "--grpc-port", "9001", "--metrics-address=0.0.0.0"]
    assert checks.listen_addresses(LOCAL, PORTS, extra) == {
        "grpc": ("127.0.0.1", 9001),
        "metrics": ("0.0.0.0", 8002),
    }


@pytest.mark.parametrize("host", ["no-such-host.invalid", "::1", "203.0.113.1", "", "x" * 80])
def test_a_wrong_host_is_one_line(host: str) -> None:
    with pytest.raises(ServeError, match=f"--host must be an IPv4 address or name of this machine, .*, got '{host}'"):
        checks.find_host(host)


def test_a_host_can_be_a_name() -> None:
    assert checks.find_host("localhost") == "127.0.0.1"
    assert checks.find_host("0.0.0.0") == "0.0.0.0"


def test_only_this_machine_reaches_the_server(server: RunningServer) -> None:
    ports = [int(port) for port in re.findall(r"-port=(\d+)", server.log.read_text().partition("\n")[0])]
    wait_until_listening(server.process, [("127.0.0.1", port) for port in ports], 10)
    assert not any(listens(("127.0.0.2", port)) for port in ports)


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        (["--allow-grpc=false"], "--allow-grpc is false"),
        (["--allow-grpc", "0"], "--allow-grpc is 0"),
        (["--grpc-use-ssl=TRUE"], "--grpc-use-ssl is TRUE"),
        (["--model-control-mode=explicit", "--load-model=superres"], "--model-control-mode is explicit"),
        (["--grpc-restricted-protocol=inference:key=value"], "--grpc-restricted-protocol is given"),
        (["--model-control-mode=poll", "--allow-grpc=true"], None),
    ],
)
def test_why_a_server_cannot_be_asked_for_an_image(extra: list[str], reason: str | None) -> None:
    models = checks.check_repository(REPOSITORY)
    assert checks.why_unchecked(models, BEST, extra) == reason
    assert (
        checks.why_unchecked([m for m in models if m.name != "superres"], BEST, [])
        == "the repository has no model 'superres'"
    )


MODEL = """
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [ANSWER for _ in requests]
"""
AN_IMAGE = "pb_utils.InferenceResponse([pb_utils.Tensor('upscaled', np.full((1, 256, 256), 0.5, np.float32))])"
AN_ERROR = "pb_utils.InferenceResponse(error=pb_utils.TritonError('no network\\ntoday'))"


def write_superres(repository: Path, answer: str = AN_IMAGE) -> Path:
    """A repository whose model ``superres`` gives every request the same answer, and is soon ready."""
    folder = repository / "superres"
    (folder / "1").mkdir(parents=True)
    (folder / "config.pbtxt").write_text(config_text(superres_model(BEST)))
    (folder / "1" / "model.py").write_text(MODEL.replace("ANSWER", answer))
    return repository


def ports_of(grpc: int | None = None) -> list[str]:
    http, free, metrics = free_ports(3)
    return [f"--http-port={http}", f"--grpc-port={grpc or free}", f"--metrics-port={metrics}"]


@pytest.mark.slow
def test_a_server_that_does_not_upscale_is_stopped(tmp_path: Path) -> None:
    result = run("--model-repository", write_superres(tmp_path, AN_ERROR), *ports_of())
    assert result.returncode == 1
    last = result.stderr.splitlines()[-1]
    assert last == "error: the server is not ready: a 64×64 image fails: no network today"
    assert "ready: grpc" not in result.stdout


@contextlib.contextmanager
def serving(folder: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """``pipeline.serve`` in ``folder``, with the second line that it prints; all of it is killed at the end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.serve", *ports_of(), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("starting: env ")
        yield process, next(line for line in process.stdout if line.startswith(("ready", "not checked"))).strip()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


TOOK = r"\(a 64×64 image took \d\.\d\d s\)"


@pytest.mark.slow
def test_ready_is_said_once_an_image_is_upscaled(tmp_path: Path) -> None:
    """By models in a folder that a shell would take for two, whose letters are not ASCII, by a relative path."""
    write_superres(tmp_path / "Röntgen models")
    with serving(tmp_path, "--model-repository=Röntgen models") as (_, line):
        assert re.fullmatch(rf"ready: grpc 127\.0\.0\.1:\d+, http 127\.0\.0\.1:\d+ {TOOK}", line)


@pytest.mark.slow
def test_the_model_hash_is_said_and_given_to_the_server(tmp_path: Path) -> None:
    repository = write_superres(tmp_path / "models", AN_IMAGE)
    hashes.write_hashes(repository)
    model = hashes.file_hash(repository / hashes.NAME)
    with serving(tmp_path, "--model-repository=models") as (process, line):
        assert line.endswith(f" s, model {model[:12]})")
        server = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])
        assert f"CXR_SUPERRES_MODEL={model}" in Path(f"/proc/{server}/environ").read_text().split("\0")


@pytest.mark.slow
def test_what_cannot_be_checked_is_said(tmp_path: Path) -> None:
    write_superres(tmp_path / "models")
    with serving(tmp_path, "--model-repository=models", "--", "--allow-grpc=false") as (_, line):
        assert line == "not checked: --allow-grpc is false"


@pytest.mark.slow
def test_a_supervisor_that_is_killed_takes_the_server_along(tmp_path: Path) -> None:
    write_superres(tmp_path / "models")
    with serving(tmp_path, "--model-repository=models", "--host=0.0.0.0", "--", "--allow-http=0") as (process, line):
        assert re.fullmatch(rf"ready: grpc 0\.0\.0\.0:\d+ {TOOK}", line)
        assert len(processes_of_session(process.pid)) > 2
        process.kill()
        process.wait()
        deadline = time.monotonic() + 30
        while left := processes_of_session(process.pid):
            assert time.monotonic() < deadline, left
            time.sleep(0.05)


@pytest.mark.parametrize(
    ("free", "extra", "needed"),
    [(5, [], "10 MB"), (64, ["--backend-config=python,shm-default-byte-size=67108864"], "671 MB")],
)
def test_too_little_shared_memory_to_start(
    free: float, extra: list[str], needed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "free_shared_memory", lambda: free)
    with pytest.raises(ServeError, match=rf"{free} MB free, the models need {needed} to start.*--shm-size=1g"):
        checks.check_shared_memory(checks.check_repository(REPOSITORY), extra)


@pytest.mark.parametrize(("free", "warned"), [(67, True), (1000, False)])
def test_a_containers_64_mb_are_enough_to_start_but_not_for_large_images(
    free: float, warned: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(checks, "free_shared_memory", lambda: free)
    checks.check_shared_memory(checks.check_repository(REPOSITORY), [])
    assert ("images of 512×512 may need 260 MB and otherwise fail" in capsys.readouterr().err) == warned


def test_free_shared_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "SHARED_MEMORY", tmp_path)
    assert checks.free_shared_memory() == pytest.approx(shutil.disk_usage(tmp_path).free / 1e6, rel=0.1)
    monkeypatch.setattr(checks, "SHARED_MEMORY", tmp_path / "none")
    assert checks.free_shared_memory() == float("inf")


def test_flags_behind_the_dashes_reach_the_server() -> None:
    ports = [f"--{name}-port={port}" for name, port in zip(("http", "grpc", "metrics"), free_ports(3), strict=True)]
    result = run(*ports, "--", "--no-such-flag")
    assert result.returncode != 0
    assert "no-such-flag" in result.stdout + result.stderr
    assert result.stderr.endswith("error: the server ended with status 1; see its messages above\n")


def processes_of_session(session: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_the_server_and_all_its_processes(start_server: StartServer, number: signal.Signals) -> None:
    reports = f"--proxy-reports={free_ports(1)[0]}"  # received by a thread of its own
    server = start_server(REPOSITORY, options=("--open-administration", "--no-check", reports))
    log = server.log.read_text()
    assert log.startswith("starting: env "), "the equivalent plain command is printed first"
    with tritonclient.http.InferenceServerClient(server.url("http")) as client:
        assert client.is_server_ready()
        assert {m["name"] for m in client.get_model_repository_index()} == {
            "superres",
            "superres_stream",
            "superres_onnx",
            "unet_onnx",
            "restorer",
            "vae_encoder",
            "vae_decoder",
        }
    assert len(processes_of_session(server.process.pid)) > 4
    server.process.send_signal(number)
    assert server.process.wait(60) == 0
    assert processes_of_session(server.process.pid) == []


@pytest.mark.parametrize(
    ("flags", "best", "paper"),
    [("avx2 avx512_bf16", True, True), ("avx avx2", True, False), ("sse4_2 avx", False, False)],
)
def test_openvino_is_chosen_where_the_processor_has_what_the_preset_uses(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flags: str, best: bool, paper: bool
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: object())
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(find, "NVIDIA", tmp_path / "no GPU")
    (tmp_path / "cpuinfo").write_text(f"processor : 0\nflags : fpu {flags} sse\n")
    for preset, chosen in ((BEST, best), (PAPER, paper)):
        assert runtime_flags("auto", WHEELS, preset) == (["--model-config-name=openvino"] if chosen else [])


def test_the_choice_of_runtime_can_be_made_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = Server(Path("tritonserver"))
    monkeypatch.setattr("importlib.util.find_spec", lambda _: object())
    monkeypatch.setattr(find, "cpu_supports", lambda _: True)
    assert runtime_flags("auto", installed, BEST) == [], "which may have a GPU and has its own backends"
    assert runtime_flags("onnxruntime", WHEELS, BEST) == []
    assert runtime_flags("openvino", installed, BEST) == ["--model-config-name=openvino"]


def test_openvino_must_be_installed_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert runtime_flags("auto", WHEELS, BEST) == []
    with pytest.raises(ServeError, match="openvino, which is not installed: pip install"):
        runtime_flags("openvino", WHEELS, BEST)
