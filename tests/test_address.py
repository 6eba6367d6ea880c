"""Addresses: what is wrong with one, from its text, from what answers there, and from the environment."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from client.access import trust
from client.address import AddressError, diagnose, proxy_variable, split
from pipeline.serving.local_server import free_ports
from tests.certificates import Certificate, make_ca, make_certificate
from tests.conftest import answering


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("localhost:8001", ("localhost", 8001)),
        ("10.0.0.1:1", ("10.0.0.1", 1)),
        ("[::1]:65535", ("::1", 65535)),
        ("[fe80::1%eth0]:8001", ("fe80::1%eth0", 8001)),
    ],
)
def test_host_and_port(url: str, expected: tuple[str, int]) -> None:
    assert split(url, "grpc") == expected


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://host:8000", "it must not begin with 'http://': give only host:port, such as host:8000"),
        ("grpc://", "it must not begin with 'grpc://': give only host:port, such as localhost:8000"),
        ("host", "it has no port: give host:port, such as host:8000"),
        ("host:", "it has no port: give host:port, such as host:8000"),
        (":8000", "it has no host: give host:port, such as localhost:8000"),
        ("host:http", "its port must be 1–65535, got 'http'"),
        ("host:8000/v2", "its port must be 1–65535, got '8000/v2'"),
        ("host:0", "its port must be 1–65535, got '0'"),
        ("host:65536", "its port must be 1–65535, got '65536'"),
        ("host:-1", "its port must be 1–65535, got '-1'"),
        ("host:²", "its port must be 1–65535, got '²'"),
        ("::1", "an IPv6 address must be in brackets, such as [::1]:8000"),
        ("::1:8000", "an IPv6 address must be in brackets, such as [::1]:8000"),
        ("[::1]", "it has no port: give host:port, such as [::1]:8000"),
    ],
)
def test_what_is_no_address(url: str, message: str) -> None:
    with pytest.raises(AddressError) as error:
        split(url, "http")
    assert str(error.value) == message


HTTP = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
METRICS = b"HTTP/1.1 200 OK\r\n\r\n# HELP nv_inference_request_success Number of requests\n"
GRPC = b"\0\0\x12\x04\0\0\0\0\0" + bytes(18)


@pytest.mark.parametrize(
    ("data", "protocol", "problem"),
    [
        (HTTP, "http", None),
        (GRPC, "grpc", None),
        (HTTP, "grpc", "that port speaks HTTP: give the gRPC port, or choose protocol http"),
        (GRPC, "http", "that port speaks gRPC: give the HTTP port, or choose protocol grpc"),
        (METRICS, "grpc", "that is its metrics port: give the gRPC port (8001 unless chosen otherwise)"),
        (METRICS, "http", "that is its metrics port: give the HTTP port (8000 unless chosen otherwise)"),
        (b"SSH-2.0-OpenSSH\r\n", "http", "what answers there speaks neither HTTP nor gRPC"),
        (b"", "grpc", "nothing answers, though something accepts connections there"),
        (None, "http", "nothing answers, though something accepts connections there"),
    ],
)
def test_what_answers_there(
    data: bytes | None, protocol: str, problem: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("grpc_proxy", "https_proxy", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    with answering(data) as port:
        assert diagnose("127.0.0.1", port, protocol, 0.4) == problem


def test_nothing_listens() -> None:
    (port,) = free_ports(1)
    assert (diagnose("127.0.0.1", port, "http", 1) or "").startswith("connection refused, nothing listens there")


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a" * 70])
def test_a_name_that_cannot_be_resolved(host: str) -> None:
    assert (diagnose(host, 1, "http", 5) or "").startswith(f"the host name '{host}' cannot be resolved (")


def test_a_name_whose_resolution_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    late = threading.Event()

    def resolve(*_: object, **__: object) -> None:
        late.wait(5)
        raise socket.gaierror

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    assert diagnose("host", 1, "http", 0.1) == "nothing answers"
    late.set()


def environment(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name in ("grpc_proxy", "https_proxy", "http_proxy", "no_grpc_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, None),
        ({"http_proxy": "p"}, "http_proxy"),
        ({"https_proxy": "p", "http_proxy": "p"}, "https_proxy"),
        ({"grpc_proxy": "p", "https_proxy": "p"}, "grpc_proxy"),
        ({"grpc_proxy": "", "https_proxy": "p"}, None),
        ({"HTTP_PROXY": "p"}, None),
        ({"http_proxy": "p", "no_proxy": "other, host.example"}, None),
        ({"http_proxy": "p", "no_proxy": ".EXAMPLE"}, None),
        ({"http_proxy": "p", "no_proxy": "other,"}, "http_proxy"),
        ({"http_proxy": "p", "no_grpc_proxy": "", "no_proxy": "host.example"}, "http_proxy"),
        ({"http_proxy": "p", "no_grpc_proxy": "host.example"}, None),
    ],
)
def test_variables_that_send_grpc_through_a_proxy(
    variables: dict[str, str], expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment(monkeypatch, variables)
    assert proxy_variable("host.example") == expected


def test_networks_without_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    environment(monkeypatch, {"http_proxy": "p", "no_proxy": "10.0.0.0/8"})
    assert proxy_variable("10.1.2.3") is None
    assert proxy_variable("11.1.2.3") == "http_proxy"


def test_a_proxy_and_what_is_there_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    environment(monkeypatch, {"http_proxy": "http://name:password@proxy:3128"})
    with answering(HTTP) as port:
        assert diagnose("127.0.0.1", port, "grpc", 1) == (
            "gRPC calls it through the proxy of the variable http_proxy: add 127.0.0.1 to no_proxy to call it "
            "directly; without it, that port speaks HTTP: give the gRPC port, or choose protocol http"
        )


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_ca(tmp_path_factory.mktemp("certificates"), "ca")


@contextmanager
def answering_by_tls(certificate: Certificate, data: bytes) -> Iterator[int]:
    """A port where every connection by TLS gets ``data``, and others nothing."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.chain, certificate.key)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return  # the port is closed
                with contextlib.suppress(OSError), connection:
                    with context.wrap_socket(connection, server_side=True) as secure:
                        secure.recv(10_000)
                        secure.sendall(data)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            server.shutdown(socket.SHUT_RDWR)  # ends accept()
            thread.join()


@pytest.mark.parametrize(
    ("certificate", "problem"),
    [
        ({}, None),
        ({"days": -1}, "its certificate has expired"),
        ({"names": "DNS:elsewhere.example"}, "its certificate is for another host name than 'localhost'"),
    ],
)
@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_certificates(ca: Certificate, protocol: str, certificate: dict[str, Any], problem: str | None) -> None:
    made = make_certificate(ca, "server", **certificate)
    with answering_by_tls(made, GRPC if protocol == "grpc" else HTTP) as port:
        context = trust(ca.chain, protocol)
        assert diagnose("localhost", port, protocol, 6, context, lasting=True) == problem
        assert diagnose("localhost", port, protocol, 6, context) == problem


def test_a_ca_that_is_not_trusted(ca: Certificate) -> None:
    with answering_by_tls(make_certificate(ca, "server"), HTTP) as port:
        problem = "its certificate is not signed by a trusted CA: give its CA (ca, --ca)"
        assert diagnose("localhost", port, "http", 6, trust(None, "http"), lasting=True) == problem


def test_a_port_that_wants_tls(ca: Certificate, monkeypatch: pytest.MonkeyPatch) -> None:
    environment(monkeypatch, {})
    with answering_by_tls(make_certificate(ca, "server"), HTTP) as port:
        for protocol in ("grpc", "http"):
            for lasting in (False, True):
                problem = diagnose("localhost", port, protocol, 6, lasting=lasting)
                assert problem == "that port speaks TLS: use it (tls, --tls)"


@pytest.mark.parametrize(("data", "protocol"), [(HTTP, "http"), (GRPC, "grpc")])
def test_ports_without_tls_are_told_from_those_of_servers_that_start(data: bytes, protocol: str) -> None:
    with answering(data) as port:
        assert diagnose("127.0.0.1", port, protocol, 3, lasting=True) is None
    (port,) = free_ports(1)
    for context in (None, trust(None, protocol)):
        assert diagnose("127.0.0.1", port, protocol, 3, context, lasting=True) is None
    with answering(None) as port:
        assert diagnose("127.0.0.1", port, protocol, 0.5, trust(None, protocol), lasting=True) is None
