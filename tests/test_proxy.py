"""The proxy: a real HAProxy with real certificates in front of the real server, from right calls to attacks."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from client import BadRequest, Client, NotAllowed, ServerError, ServerUnavailable
from client.upscale import main
from pipeline import ROOT
from pipeline.serving.local_server import free_ports
from tests.certificates import Certificate, make_ca, make_certificate
from tests.conftest import RunningServer, StartServer, wait_for

HAPROXY = shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}:/usr/sbin") or ""
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not HAPROXY, reason="there is no haproxy: apt-get install haproxy"),
]
Protocol = Literal["grpc", "http"]
PROTOCOLS: tuple[Protocol, ...] = ("grpc", "http")
TOKEN = "a-token-of-the-tests"
IMAGE = np.random.default_rng(0).random((20, 24), dtype=np.float32)
HTTP_INFER = "/v2/models/superres/infer"
LARGEST = 16 * 512 * 512 * 4
(REPORTS,) = free_ports(1)


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_ca(tmp_path_factory.mktemp("certificates"), "ca")


@pytest.fixture(scope="module")
def triton(start_server: StartServer) -> RunningServer:
    """A server of its own: attacks that get through would end it."""
    return start_server(
        ROOT / "model_repository", options=("--open-administration", "--no-check", f"--proxy-reports={REPORTS}")
    )


@dataclass(frozen=True)
class Proxy:
    """A running proxy."""

    port: int
    log: Path
    pid: int

    @property
    def url(self) -> str:
        return f"localhost:{self.port}"


@contextmanager
def running_proxy(certificate: Certificate, triton: RunningServer, folder: Path, **settings: object) -> Iterator[Proxy]:
    (port,) = free_ports(1)
    tokens, log = folder / "tokens", folder / "proxy.log"
    hashes = {name: hashlib.sha256(token.encode()).hexdigest() for name, token in (("one", TOKEN), ("two", "other"))}
    tokens.write_text("".join(f"{digest} {name}\n" for name, digest in hashes.items()))
    variables = {
        "CXR_ADDRESS": "127.0.0.1",
        "CXR_PORT": port,
        "CXR_CERTIFICATE": certificate.both,
        "CXR_TOKENS": tokens,
        "CXR_TRITON_GRPC": f"127.0.0.1:{triton.grpc}",
        "CXR_TRITON_HTTP": f"127.0.0.1:{triton.http}",
        "CXR_REPORTS": f"127.0.0.1:{REPORTS}",
        **settings,
    }
    with open(log, "wb") as file:
        process = subprocess.Popen(
            [HAPROXY, "-W", "-f", ROOT / "deploy" / "proxy" / "haproxy.cfg"],
            env={**os.environ, **{name: str(value) for name, value in variables.items()}},
            stdout=file,
            stderr=file,
        )

    def listens() -> bool:
        assert process.poll() is None, log.read_text()
        with socket.socket() as connection:
            return connection.connect_ex(("127.0.0.1", port)) == 0

    try:
        wait_for(listens)
        yield Proxy(port, log, process.pid)
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture(scope="module")
def proxy(ca: Certificate, triton: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    with running_proxy(make_certificate(ca, "server"), triton, tmp_path_factory.mktemp("proxy")) as proxy:
        yield proxy


def upscaled(client: Client) -> Any:
    with client:
        return client.upscale(IMAGE, seed=3)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("token", [TOKEN, "other"])
def test_results_are_those_of_the_server_itself(
    proxy: Proxy, ca: Certificate, triton: RunningServer, protocol: Protocol, token: str
) -> None:
    direct = upscaled(Client(triton.url(protocol), protocol=protocol))
    found = upscaled(Client(proxy.url, protocol=protocol, ca=ca.chain, token=token))
    np.testing.assert_array_equal(found.image, direct.image)
    np.testing.assert_array_equal(found.spread, direct.spread)


def test_work_ends_when_a_caller_behind_it_gives_up(proxy: Proxy, ca: Certificate, triton: RunningServer) -> None:
    with (
        Client(proxy.url, ca=ca.chain, token=TOKEN, timeout=1) as client,
        pytest.raises(ServerError, match="within 1 s"),
    ):
        client.upscale(np.zeros((128, 128)), sampler="ddpm", samples=4)
    wait_for(lambda: "was cancelled by its caller" in triton.log.read_text(), limit=10)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_work_ends_when_a_caller_behind_it_closes_its_connection(
    proxy: Proxy, ca: Certificate, triton: RunningServer, protocol: Protocol
) -> None:
    code = (
        "import sys, numpy as np; from client import Client; url, protocol, ca, token = sys.argv[1:];"
        "client = Client(url, protocol=protocol, ca=ca, token=token); print(flush=True);"
        "client.upscale(np.zeros((256, 256)), sampler='ddpm', samples=4)"
    )
    arguments = [proxy.url, protocol, str(ca.chain), TOKEN]

    def ended() -> int:
        return triton.log.read_text().count("was cancelled by its caller")

    before = ended()
    with subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, cwd=ROOT) as caller:
        assert caller.stdout
        caller.stdout.readline()
        with pytest.raises(AssertionError):
            wait_for(lambda: ended() > before, limit=1)
        caller.kill()
        wait_for(lambda: ended() > before, limit=2)


def test_the_command_goes_through_it(
    proxy: Proxy, ca: Certificate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "image.npy", IMAGE)
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    command = [str(tmp_path / "image.npy"), "--url", proxy.url, "--ca", str(ca.chain)]
    assert main([*command, "--token-file", str(tmp_path / "token")]) == 0
    monkeypatch.setenv("CXR_TOKEN", TOKEN)
    assert main([*command, "--force", "--protocol", "http"]) == 0


def why_not(kind: type[Exception], *arguments: Any, **options: Any) -> str:
    """The message of the error that a client raises at once, long before it would give up waiting."""
    began = time.monotonic()
    with pytest.raises(kind) as error:
        Client(*arguments, wait=60, **options)
    assert time.monotonic() - began < 15
    assert TOKEN not in str(error.value)
    return str(error.value).partition(": ")[2]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_clients_that_are_refused_are_told_why_at_once(proxy: Proxy, ca: Certificate, protocol: Protocol) -> None:
    common = {"protocol": protocol, "ca": ca.chain}
    needs = "the server needs a token: give one (token, --token-file, CXR_TOKEN)"
    assert why_not(NotAllowed, proxy.url, **common) == needs
    assert why_not(NotAllowed, proxy.url, token=f"{TOKEN}x", **common) == "the server refuses the token"


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_certificates_that_are_not_accepted(
    proxy: Proxy, ca: Certificate, triton: RunningServer, tmp_path: Path, protocol: Protocol
) -> None:
    other = make_ca(tmp_path, "other")
    common = {"protocol": protocol, "token": TOKEN}
    distrusted = "its certificate is not signed by a trusted CA: give its CA (ca, --ca)"
    assert why_not(ServerUnavailable, proxy.url, ca=other.chain, **common) == distrusted
    assert why_not(ServerUnavailable, proxy.url, tls=True, **common) == distrusted
    with running_proxy(make_certificate(ca, "old", days=-1), triton, tmp_path) as old:
        assert why_not(ServerUnavailable, old.url, ca=ca.chain, **common) == "its certificate has expired"
    with running_proxy(make_certificate(ca, "elsewhere", "DNS:elsewhere.example"), triton, tmp_path) as elsewhere:
        problem = "its certificate is for another host name than 'localhost'"
        assert why_not(ServerUnavailable, elsewhere.url, ca=ca.chain, **common) == problem


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_only_one_side_uses_tls(proxy: Proxy, ca: Certificate, triton: RunningServer, protocol: Protocol) -> None:
    assert why_not(ServerUnavailable, proxy.url, protocol=protocol) == "that port speaks TLS: use it (tls, --tls)"
    problem = "that port does not speak TLS: leave it out (tls, ca)"
    assert why_not(ServerUnavailable, triton.url(protocol), protocol=protocol, ca=ca.chain) == problem


def context(ca: Certificate) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=ca.chain)


@pytest.mark.parametrize(("version", "accepted"), [("-tls1_1", False), ("-tls1_2", True), ("-tls1_3", True)])
def test_versions_of_tls(proxy: Proxy, ca: Certificate, version: str, accepted: bool) -> None:
    command = ["openssl", "s_client", "-connect", proxy.url, "-CAfile", str(ca.chain), version]
    old = ["-cipher", "ALL:@SECLEVEL=0"] if not accepted else []
    done = subprocess.run([*command, *old], stdin=subprocess.DEVNULL, capture_output=True, timeout=60)
    assert (done.returncode == 0) == accepted


def send(*arguments: Any, **options: Any) -> int:
    """Return the status of the answer to a request, see ``answer_to``."""
    return int(answer_to(*arguments, **options).split()[1])


def answer_to(
    proxy: Proxy, ca: Certificate, method: str, path: str, body: bytes = b"", token: str | None = TOKEN, **headers: Any
) -> bytes:
    """Return the start of the answer. The proxy may answer, and close, before it has got all of the body."""
    lines = {"Host": "localhost", "Connection": "close", **{n.replace("_", "-"): v for n, v in headers.items()}}
    lines |= {} if token is None else {"Authorization": f"Bearer {token}"}
    lines |= {"Content-Length": len(body)} if method == "POST" and "Transfer_Encoding" not in headers else {}
    head = "".join(
        [f"{method} {path} HTTP/1.1\r\n", *(f"{name}: {value}\r\n" for name, value in lines.items()), "\r\n"]
    )
    with (
        socket.create_connection(("localhost", proxy.port), 60) as connection,
        context(ca).wrap_socket(connection, server_hostname="localhost") as secure,
    ):
        with contextlib.suppress(OSError):  # the answer is there already
            secure.sendall(head.encode() + body)
        return secure.recv(4096)


@pytest.mark.parametrize(
    "path", ["/v2/health/live", "/v2/health/ready", "/v2/models/superres/ready", "/v2/models/superres_onnx/ready"]
)
def test_health_over_http_is_open(proxy: Proxy, ca: Certificate, path: str) -> None:
    assert send(proxy, ca, "GET", path, token=None) == 200


ADMINISTRATION = [
    ("POST", "/v2/repository/index"),
    ("POST", "/v2/repository/models/superres/load"),
    ("POST", "/v2/repository/models/superres/unload"),
    ("GET", "/v2/systemsharedmemory/status"),
    ("POST", "/v2/systemsharedmemory/region/x/register"),
    ("POST", "/v2/cudasharedmemory/region/x/register"),
    ("GET", "/v2/models/superres/stats"),
    ("GET", "/v2/models/stats"),
    ("POST", "/v2/trace/setting"),
    ("GET", "/v2/models/superres/trace/setting"),
    ("POST", "/v2/logging"),
]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *ADMINISTRATION,
        ("GET", "/metrics"),
        ("POST", "/v2/models/superres/generate"),
        ("POST", "/v2/models/unet_onnx/infer"),
        ("POST", "/v2/models/superres/../../repository/index"),
        ("POST", "/v2/models/superres%2F..%2Fx/infer"),
        ("POST", "//v2/logging"),
        ("DELETE", "/v2/models/superres"),
        ("PUT", HTTP_INFER),
    ],
)
def test_other_calls_over_http_are_closed(proxy: Proxy, ca: Certificate, method: str, path: str) -> None:
    assert send(proxy, ca, method, path, b"{}") == 403


@pytest.mark.parametrize("path", ["/v2", "/v2/models/superres", "/v2/models/superres/config"])
def test_reading_over_http_needs_a_token(proxy: Proxy, ca: Certificate, path: str) -> None:
    assert send(proxy, ca, "GET", path) == 200
    assert send(proxy, ca, "GET", path, token=None) == 401
    assert send(proxy, ca, "GET", path, token="wrong") == 401


def header(*shape: object, size: int = 16, **more: Any) -> bytes:
    tensor = {"name": "image", "datatype": "FP32", "shape": shape, "parameters": {"binary_data_size": size}, **more}
    return json.dumps({"inputs": [tensor], "outputs": [{"name": "lr_error"}]}).encode()


def with_parameters(**parameters: object) -> bytes:
    return json.dumps({**json.loads(header(1, 2, 2)), "parameters": parameters}).encode()


def tensor(*shape: int, count: int = 1) -> bytes:
    """An inference request all in JSON."""
    inputs = [{"name": "image", "datatype": "FP32", "shape": shape, "data": [0.5] * count}]
    return json.dumps({"inputs": inputs, "outputs": [{"name": "lr_error"}]}).encode()


@pytest.mark.parametrize(
    ("body", "status"),
    [
        pytest.param(tensor(1, 2**40, 16), 400, id="too much memory"),
        pytest.param(tensor(2**62, 1, 1), 400, id="overflow"),
        pytest.param(tensor(1, 2**62 + 16, 1, count=100_000), 400, id="overflow, with many values"),
        pytest.param(tensor(1, 2, 2, count=4), 400, id="any JSON tensor"),
        pytest.param(b'{"inputs":' + b"[" * 200_000 + b"]" * 200_000 + b"}", 400, id="nested"),
    ],
)
def test_json_requests_are_refused(
    proxy: Proxy, ca: Certificate, triton: RunningServer, body: bytes, status: int
) -> None:
    assert send(proxy, ca, "POST", HTTP_INFER, body) == status
    size = min(len(body), 4096)
    assert send(proxy, ca, "POST", HTTP_INFER, body, Inference_Header_Content_Length=size) == status
    assert triton.process.poll() is None


@pytest.mark.parametrize(
    "head",
    [
        header(1, 2**62 + 16, 1),
        header(1, 10_000, 1),
        header(1, 0, 2),
        header(1, -2, 2),
        header(1, 2.5, 2),
        header(1, 2, 2, [[[[1]]]]),
        header(1, 1, 1, 1, 1, 1),
        header(1, 2, 2, size=10**10),
        header(1, 2, 2, data=[0.0]),
        header(1, 2, 2, parameters={"shared_memory_region": "x", "shared_memory_byte_size": 16}),
        header(1, 2, 2, name="\n"),
        with_parameters(priority=10),
        with_parameters(timeout=10**15),
        with_parameters(timeout=-1),
        with_parameters(sequence_id=1),
        header(1, 2, 2)[:-1],
        header(1, 2, 2) + b"x",
        b"[]",
        b"",
    ],
)
def test_json_headers_with_anything_else_are_refused(
    proxy: Proxy, ca: Certificate, triton: RunningServer, head: bytes
) -> None:
    size = len(head)
    assert send(proxy, ca, "POST", HTTP_INFER, head + bytes(16), Inference_Header_Content_Length=size) == 400
    assert triton.process.poll() is None


def test_json_headers_of_every_layout_are_let_through(proxy: Proxy, ca: Certificate) -> None:
    inputs = (
        b'"inputs" :[ { "shape":[ 1,2 ,2 ] , "parameters":{"binary_data_size":16},"datatype":"FP32","name":"image"}]'
    )
    loose = (
        b' {"id" : "1",\n\t"outputs": [{"parameters": {"binary_data": true}, "name": "lr_error"}], '
        + inputs
        + b"} \r\n"
    )
    for head in (header(1, 2, 2), loose, with_parameters(priority=1, timeout=10_000_000)):
        size = len(head)
        assert send(proxy, ca, "POST", HTTP_INFER, head + bytes(16), Inference_Header_Content_Length=size) == 200


@pytest.mark.parametrize("size", ["", "0", "-1", "4097", "99999", "1e2", "200"])
def test_sizes_of_json_headers(proxy: Proxy, ca: Certificate, size: str) -> None:
    body = header(1, 2, 2) + bytes(16)
    assert send(proxy, ca, "POST", HTTP_INFER, body, Inference_Header_Content_Length=size) == 400


def test_queries_and_large_headers_are_refused(proxy: Proxy, ca: Certificate) -> None:
    assert send(proxy, ca, "GET", "/v2/health/live?a=b") == 400
    assert send(proxy, ca, "GET", "/v2/health/live", X_Large="x" * 3000) == 200
    assert send(proxy, ca, "GET", "/v2/health/live", X_Large="x" * 5000) == 431


def test_compressed_requests_are_refused(proxy: Proxy, ca: Certificate, triton: RunningServer) -> None:
    body = gzip.compress(bytes(100_000_000), 1)
    assert send(proxy, ca, "POST", HTTP_INFER, body, Content_Encoding="gzip") == 415
    assert triton.process.poll() is None


def test_chunked_requests_are_refused(proxy: Proxy, ca: Certificate, triton: RunningServer) -> None:
    head = header(1, 2, 2)
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in (head + bytes(16)).ljust(1_000_000)) + b"0\r\n\r\n"
    more: dict[str, Any] = {"Transfer_Encoding": "chunked", "Inference_Header_Content_Length": len(head)}
    assert send(proxy, ca, "POST", HTTP_INFER, chunks, **more) == 411
    assert triton.process.poll() is None


def test_bodies_that_call_themselves_forms_are_not_parsed_as_such(
    proxy: Proxy, ca: Certificate, triton: RunningServer
) -> None:
    """curl says so of every body unless told otherwise; Triton itself dies of a large one."""
    size = 4 * 512 * 512 * 4
    head = header(4, 512, 512, size=size)
    more: dict[str, Any] = {
        "Inference_Header_Content_Length": len(head),
        "Content_Type": "application/x-www-form-urlencoded",
    }
    not_a_number = b"\xff" * size
    assert b"NaN" in answer_to(proxy, ca, "POST", HTTP_INFER, head + not_a_number, **more), "the model's answer"
    assert triton.process.poll() is None


def test_the_limit_on_sizes_over_http(proxy: Proxy, ca: Certificate) -> None:
    """The largest request reaches Triton, which finds that it is not of the shape it states."""
    head = header(16, 1, 2, size=LARGEST)
    common: dict[str, Any] = {"Inference_Header_Content_Length": len(head)}
    assert send(proxy, ca, "POST", HTTP_INFER, head + bytes(LARGEST), **common) == 400
    assert send(proxy, ca, "POST", HTTP_INFER, bytes(17_000_001), **common) == 413


def test_requests_that_arrive_too_slowly_end(ca: Certificate, triton: RunningServer, tmp_path: Path) -> None:
    certificate = make_certificate(ca, "slow")
    head = header(1, 2, 2)
    with running_proxy(certificate, triton, tmp_path, CXR_BODY_SECONDS=1) as proxy:
        common = {"Inference_Header_Content_Length": len(head), "Content_Length": 1000}
        lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in common.items())
        with (
            socket.create_connection(("localhost", proxy.port), 60) as connection,
            context(ca).wrap_socket(connection, server_hostname="localhost") as secure,
        ):
            request = f"POST {HTTP_INFER} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n{lines}\r\n"
            secure.sendall(request.encode() + head)
            assert secure.recv(4096).split()[1] == b"408"


def test_the_limit_on_the_rate_of_an_address(ca: Certificate, triton: RunningServer, tmp_path: Path) -> None:
    with running_proxy(make_certificate(ca, "rate"), triton, tmp_path, CXR_REQUESTS=5) as proxy:
        statuses = [send(proxy, ca, "GET", "/v2/health/live") for _ in range(8)]
        assert statuses == [200] * 5 + [429] * 3
        stub, channel = stub_of(proxy, ca)
        with channel:
            assert code_of(stub.ServerLive, service_pb2.ServerLiveRequest()) == "UNAVAILABLE"


def test_the_limit_on_requests_at_a_time(ca: Certificate, triton: RunningServer, tmp_path: Path) -> None:
    """Memory is bounded: beyond the limit, requests are refused before their bodies are read, and may be sent again."""
    head = f"POST {HTTP_INFER} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: 1000\r\n"
    with (
        running_proxy(make_certificate(ca, "busy"), triton, tmp_path, CXR_IN_FLIGHT=2) as proxy,
        contextlib.ExitStack() as stack,
    ):
        for _ in range(2):
            connection = stack.enter_context(socket.create_connection(("localhost", proxy.port), 60))
            secure = stack.enter_context(context(ca).wrap_socket(connection, server_hostname="localhost"))
            secure.sendall(f"{head}Inference-Header-Content-Length: 100\r\n\r\n".encode())
        wait_for(lambda: send(proxy, ca, "GET", "/v2") == 429)
        assert send(proxy, ca, "GET", "/v2/health/live") == 200
    with Client(triton.url("http"), protocol="http") as client:
        assert client.upscale(IMAGE).image.shape == (80, 96)


def test_the_recipe_and_new_tokens(triton: RunningServer, tmp_path: Path) -> None:
    """The commands in the documentation make a certificate and tokens; a reload takes what has been added."""
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / "how-to" / "secure.md").read_text(), re.DOTALL)
    recipes = [block for block in blocks if block.startswith("openssl")]
    assert len(recipes) == 2
    for recipe in recipes:
        subprocess.run(["bash", "-euc", recipe], cwd=tmp_path, check=True, capture_output=True)
    settings = {"CXR_CERTIFICATE": tmp_path / "server.pem", "CXR_TOKENS": tmp_path / "tokens"}
    made = Certificate(tmp_path / "server.crt", tmp_path / "server.key")
    ca = Certificate(tmp_path / "ca.pem", tmp_path / "ca.key")
    first = (tmp_path / "token").read_text().strip()
    (tmp_path / "proxy").mkdir()
    with running_proxy(made, triton, tmp_path / "proxy", **settings) as proxy:
        assert send(proxy, ca, "GET", "/v2", token=first) == 200
        subprocess.run(["bash", "-euc", recipes[1]], cwd=tmp_path, check=True)
        second = (tmp_path / "token").read_text().strip()
        assert send(proxy, ca, "GET", "/v2", token=second) == 401
        os.kill(proxy.pid, signal.SIGUSR2)
        wait_for(lambda: send(proxy, ca, "GET", "/v2", token=second) == 200)
        assert send(proxy, ca, "GET", "/v2", token=first) == 200


def test_a_server_that_is_gone(ca: Certificate, triton: RunningServer, tmp_path: Path) -> None:
    http, rpc = free_ports(2)
    settings = {"CXR_TRITON_GRPC": f"127.0.0.1:{rpc}", "CXR_TRITON_HTTP": f"127.0.0.1:{http}"}
    with running_proxy(make_certificate(ca, "gone"), triton, tmp_path, **settings) as proxy:
        assert send(proxy, ca, "GET", "/v2/health/ready") == 503
        for protocol in PROTOCOLS:
            with pytest.raises(ServerUnavailable):
                Client(proxy.url, protocol=protocol, ca=ca.chain, token=TOKEN, wait=0)


def stub_of(proxy: Proxy, ca: Certificate) -> tuple[Any, grpc.Channel]:
    credentials = grpc.ssl_channel_credentials(ca.chain.read_bytes())
    channel = grpc.secure_channel(proxy.url, credentials, [("grpc.max_send_message_length", -1)])
    return service_pb2_grpc.GRPCInferenceServiceStub(channel), channel


@pytest.fixture(scope="module")
def stub(proxy: Proxy, ca: Certificate) -> Iterator[Any]:
    stub, channel = stub_of(proxy, ca)
    with channel:
        yield stub


def code_of(call: Callable[..., Any], request: Any, token: str | None = TOKEN, **options: Any) -> str:
    """The name of the status with which a call ends."""
    metadata = [] if token is None else [("authorization", f"Bearer {token}")]
    try:
        call(request, metadata=metadata, timeout=60, **options)
    except grpc.RpcError as error:
        return error.code().name
    return "OK"


def test_health_over_grpc_is_open(stub: Any) -> None:
    for name in ("ServerLive", "ServerReady"):
        assert code_of(getattr(stub, name), getattr(service_pb2, f"{name}Request")(), token=None) == "OK"
    assert code_of(stub.ModelReady, service_pb2.ModelReadyRequest(name="superres"), token=None) == "OK"


def test_reading_over_grpc_needs_a_token(stub: Any) -> None:
    request = service_pb2.ModelConfigRequest(name="superres")
    assert code_of(stub.ModelConfig, request) == "OK"
    assert code_of(stub.ModelConfig, request, token=None) == "UNAUTHENTICATED"
    assert code_of(stub.ModelConfig, request, token="wrong") == "UNAUTHENTICATED"


@pytest.mark.parametrize(
    "name",
    [
        *("RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload", "ModelStatistics"),
        *("SystemSharedMemoryStatus", "SystemSharedMemoryRegister", "SystemSharedMemoryUnregister"),
        *("CudaSharedMemoryStatus", "CudaSharedMemoryRegister", "CudaSharedMemoryUnregister"),
        *("TraceSetting", "LogSettings"),
    ],
)
def test_administration_over_grpc_is_closed(stub: Any, name: str) -> None:
    assert code_of(getattr(stub, name), getattr(service_pb2, f"{name}Request")()) == "PERMISSION_DENIED"


def test_open_calls_are_small(stub: Any) -> None:
    for size, code in ((100, "OK"), (10_000_000, "INVALID_ARGUMENT")):
        request = service_pb2.ModelReadyRequest(name="superres", version="1".ljust(size) if size > 100 else "1")
        assert code_of(stub.ModelReady, request, token=None) in (code, "CANCELLED")


def test_progress_comes_through(proxy: Proxy, ca: Certificate) -> None:
    with Client(proxy.url, ca=ca.chain, token=TOKEN) as client:
        image = np.linspace(0, 1, 64 * 64).reshape(64, 64)
        *_, last = client.stream(image, steps=20)
        assert last.result is not None
        np.testing.assert_array_equal(last.result.image, client.upscale(image, steps=20).image)


@pytest.mark.parametrize("model", ["superres_onnx", "unet_onnx"])
def test_streams_are_checked_like_other_requests(stub: Any, model: str) -> None:
    bad = infer_request(1, 2**40, 16) if model == "superres_onnx" else infer_request(1, 2, 2, model=model)
    answers = stub.ModelStreamInfer(iter([bad]), metadata=[("authorization", f"Bearer {TOKEN}")], timeout=60)
    with pytest.raises(grpc.RpcError) as error:
        list(answers)
    assert error.value.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.CANCELLED)


def infer_request(*shape: int, raw: bytes | None = bytes(16), model: str = "superres") -> Any:
    request = service_pb2.ModelInferRequest(model_name=model, raw_input_contents=[] if raw is None else [raw])
    request.inputs.add(name="image", datatype="FP32", shape=shape)
    request.outputs.add(name="lr_error")
    return request


def bad_requests() -> Iterator[tuple[str, Any]]:
    yield "overflow", infer_request(1, 2**62 + 16, 1, raw=bytes(64))
    yield "large", infer_request(1, 2**40, 16)
    yield "zero", infer_request(0, 0, 0, raw=b"")
    yield "negative", infer_request(-1, 2, 2)
    yield "many dimensions", infer_request(*[1] * 6)
    yield "other model", infer_request(1, 2, 2, model="unet_onnx")
    yield (
        "many fields",
        infer_request(1, 2, 2, raw=bytes(16))
        and service_pb2.ModelInferRequest(model_name="superres", raw_input_contents=[b""] * 100),
    )
    typed = infer_request(1, 2, 2, raw=None)
    typed.inputs[0].contents.fp32_contents.extend([0.0] * 4)
    yield "values in the message", typed
    shared = infer_request(1, 2, 2, raw=None)
    shared.inputs[0].parameters["shared_memory_region"].string_param = "x"
    yield "shared memory", shared
    late = infer_request(1, 2, 2)
    late.inputs.add(name="seed", datatype="INT64", shape=[1, 2**62])
    late.raw_input_contents.append(bytes(8))
    yield "second input", late
    parameters = infer_request(1, 2, 2)
    parameters.parameters["sequence_id"].int64_param = 1
    yield "parameters", parameters


@pytest.mark.parametrize(("name", "request_"), [pytest.param(*bad, id=bad[0]) for bad in bad_requests()])
def test_grpc_requests_with_anything_else_are_refused(
    stub: Any, triton: RunningServer, name: str, request_: Any
) -> None:
    assert code_of(stub.ModelInfer, infer_request(1, 2, 2)) == "OK"
    assert code_of(stub.ModelInfer, request_) == "INVALID_ARGUMENT", name
    assert triton.process.poll() is None


def test_shapes_hidden_behind_the_tensors_are_found(proxy: Proxy, ca: Certificate) -> None:
    """Protocol Buffers allow fields in any order: a bad input may follow megabytes of tensors."""
    hidden = service_pb2.ModelInferRequest()
    hidden.inputs.add(name="seed", datatype="INT64", shape=[1, 2**62 + 1])
    message = infer_request(1, 2, 2, raw=bytes(10_000_000)).SerializeToString() + hidden.SerializeToString()
    with grpc.secure_channel(proxy.url, grpc.ssl_channel_credentials(ca.chain.read_bytes())) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer", bytes, bytes)
        assert code_of(call, message) == "INVALID_ARGUMENT"
        for broken in (b"\xff" * 30, b"\x0a\xff\xff\xff\xff\x0f", b"\x0b", message[:100]):
            assert code_of(call, broken) == "INVALID_ARGUMENT"


def test_compressed_messages_are_refused(stub: Any) -> None:
    request = infer_request(1, 512, 512, raw=bytes(512 * 512 * 4))
    assert code_of(stub.ModelInfer, request, compression=grpc.Compression.Gzip) == "INVALID_ARGUMENT"


def test_the_limit_on_sizes_over_grpc(stub: Any) -> None:
    assert code_of(stub.ModelInfer, infer_request(16, 1, 2, raw=bytes(LARGEST))) == "INVALID_ARGUMENT"  # by Triton
    for size in (17_000_001, 60_000_000):
        assert code_of(stub.ModelInfer, infer_request(16, 512, 512, raw=bytes(size))) in (
            "INVALID_ARGUMENT",
            "CANCELLED",
        )
    assert code_of(stub.ServerLive, service_pb2.ServerLiveRequest()) == "OK"


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_errors_of_the_server_arrive(proxy: Proxy, ca: Certificate, protocol: Protocol) -> None:
    with Client(proxy.url, protocol=protocol, ca=ca.chain, token=TOKEN) as client, pytest.raises(BadRequest):
        client.upscale(np.zeros((512, 512)), steps=300, samples=16)  # more work than a request may be


def test_the_log_has_names_of_tokens_but_not_tokens(proxy: Proxy, ca: Certificate) -> None:
    assert send(proxy, ca, "GET", f"/v2?token={TOKEN}") == 400
    assert send(proxy, ca, "GET", "/v2") == 200
    send(proxy, ca, "GET", "/v2", token=f"{TOKEN}-wrong")
    wait_for(lambda: "127.0.0.1 one GET /v2 status=200" in proxy.log.read_text())
    assert TOKEN not in proxy.log.read_text()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_second_server_takes_over_from_one_that_is_killed(
    start_server: StartServer, triton: RunningServer, ca: Certificate, tmp_path: Path, protocol: Protocol
) -> None:
    certificate = make_certificate(ca, f"two-{protocol}")
    mortal = start_server(ROOT / "model_repository", options=("--no-check",))
    second = {"CXR_TRITON_GRPC_2": f"127.0.0.1:{mortal.grpc}", "CXR_TRITON_HTTP_2": f"127.0.0.1:{mortal.http}"}
    image, stop, answers = np.full((64, 64), 0.5, np.float32), threading.Event(), list[float]()

    with running_proxy(certificate, triton, tmp_path, **second) as proxy, ThreadPoolExecutor(4) as pool:
        clients = [Client(proxy.url, protocol=protocol, ca=ca.chain, token=TOKEN, wait=20) for _ in range(4)]

        def work(client: Client) -> None:
            with client:
                while not stop.is_set():
                    client.upscale(image)
                    answers.append(time.monotonic())

        running = [pool.submit(work, client) for client in clients]
        wait_for(lambda: len(answers) > 20)
        mortal.kill()
        count = len(answers)
        wait_for(lambda: len(answers) > count + 40)
        stop.set()
        for future in running:
            future.result()  # no request failed
