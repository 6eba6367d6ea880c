"""Tokens and certificates: what is one, and a real server that wants both by itself."""

from __future__ import annotations

import time
import traceback
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from client import BadRequest, Client, NotAllowed, ServerUnavailable, direct
from client.access import AccessError, trust
from client.arguments import parse
from client.upscale import main
from pipeline import ROOT
from tests.certificates import Certificate, make_ca, make_certificate
from tests.conftest import RunningServer, StartServer

TOKEN = "a-token-of-the-tests"
IMAGE = np.random.default_rng(0).random((20, 24), dtype=np.float32)
Protocol = Literal["grpc", "http"]
PROTOCOLS: tuple[Protocol, ...] = ("grpc", "http")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path, problem in ((tmp_path / "none", "No such file or directory"), (tmp_path, "Is a directory")):
        with pytest.raises(AccessError) as error:
            trust(path, "grpc")
        assert str(error.value).endswith(f"cannot be read ({problem})")


def test_files_without_certificates(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("no certificate")
    with pytest.raises(AccessError) as error:
        trust(tmp_path / "ca.pem", "http")
    assert str(error.value) == f"'ca' must be a file of certificates (PEM), got '{tmp_path / 'ca.pem'}'"


def bad_arguments() -> list[tuple[dict[str, Any], str]]:
    return [
        ({"tls": 1}, "'tls' must be True or False, got 1"),
        ({"ca": 1}, "'ca' must be the path of a file, got 1"),
        ({"ca": "/none"}, "the file of certificates '/none' cannot be read (No such file or directory)"),
        ({"token": ""}, "'token' must be a token, got an empty one"),
        ({"token": 1}, "'token' must be a string, got a int"),
    ]


@pytest.mark.parametrize(("arguments", "message"), bad_arguments())
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_arguments_of_clients(protocol: Protocol, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRequest) as error:
        Client(protocol=protocol, **arguments)
    assert str(error.value) == message


def test_the_commands_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").write_text("of-file\n")
    monkeypatch.delenv("CXR_TOKEN", raising=False)
    assert parse(["a.png"]).token is None
    monkeypatch.setenv("CXR_TOKEN", "of-variable")
    assert parse(["a.png"]).token == "of-variable"
    assert parse(["a.png", "--token-file", str(tmp_path / "token")]).token == "of-file"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--token-file", "/none"], "argument --token-file: the token file '/none' cannot be read (No such file or "),
        (
            ["--ca", "/none"],
            "argument --ca: the file of certificates '/none' cannot be read (No such file or directory)",
        ),
        (["--token", "abc"], "error: "),
        ([], "the variable CXR_TOKEN must be a token of one line of printable ASCII without spaces, got "),
    ],
)
def test_arguments_of_the_command(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CXR_TOKEN", "not secret" if not arguments else TOKEN)
    with pytest.raises(SystemExit) as error:
        parse(["a.png", *arguments])
    assert error.value.code == 2
    said = capsys.readouterr().err
    assert message in said
    assert "not secret" not in said and TOKEN not in said


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_ca(tmp_path_factory.mktemp("certificates"), "ca")


@pytest.fixture(scope="module")
def protected(start_server: StartServer, ca: Certificate) -> RunningServer:
    """Triton with TLS for gRPC, and with a token for inference by both protocols."""
    certificate = make_certificate(ca, "server", "DNS:localhost")
    return start_server(
        ROOT / "model_repository",
        "--grpc-use-ssl=true",
        f"--grpc-server-cert={certificate.chain}",
        f"--grpc-server-key={certificate.key}",
        f"--grpc-restricted-protocol=inference:authorization=Bearer {TOKEN}",
        f"--http-restricted-api=inference:authorization=Bearer {TOKEN}",
        protocols=("http",),
    )


def connect(server: RunningServer, ca: Certificate, protocol: Protocol, token: str | None) -> Client:
    trusted = ca.chain if protocol == "grpc" else None
    return Client(server.url(protocol), protocol=protocol, ca=trusted, token=token, wait=60)


def test_a_server_with_tls_and_a_token(protected: RunningServer, ca: Certificate) -> None:
    results = []
    for protocol in PROTOCOLS:
        with connect(protected, ca, protocol, TOKEN) as client:
            results.append(client.upscale(IMAGE).image)
    np.testing.assert_array_equal(results[0], results[1])
    with direct.connect(protected.url("grpc"), ca=ca.chain, token=TOKEN) as upscale:
        assert upscale([IMAGE], [0])[0].upscaled.shape == (80, 96)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    ("token", "problem"),
    [
        (None, "the server needs a token: give one (token, --token-file, CXR_TOKEN)"),
        (f"{TOKEN}-wrong", "the server refuses the token"),
    ],
)
def test_calls_that_are_refused_are_not_sent_again(
    protected: RunningServer, ca: Certificate, protocol: Protocol, token: str | None, problem: str
) -> None:
    began = time.monotonic()
    with connect(protected, ca, protocol, token) as client, pytest.raises(NotAllowed) as error:
        client.upscale(IMAGE)
    assert time.monotonic() - began < 15
    assert str(error.value) == f"server {protected.url(protocol)}: {problem}"
    assert TOKEN not in "".join(traceback.format_exception(error.value))


def test_the_command_stops_at_the_first_refusal(
    protected: RunningServer, ca: Certificate, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(40):
        np.save(tmp_path / f"{i}.npy", IMAGE)
    assert main([str(tmp_path), "--url", protected.url("grpc"), "--ca", str(ca.chain)]) == 1
    said = capsys.readouterr().err
    assert said.count("the server needs a token") + said.count("not sent") == 40
    assert said.count("not sent") >= 20


def test_what_does_not_fit_a_servers_tls_fails_at_once(
    protected: RunningServer, ca: Certificate, tmp_path: Path
) -> None:
    other = make_ca(tmp_path, "other")
    numbers = f"127.0.0.1:{protected.grpc}"
    cases: list[tuple[str, Protocol, dict[str, Any], str]] = [
        (protected.url("grpc"), "grpc", {}, "that port speaks TLS: use it (tls, --tls)"),
        (
            protected.url("grpc"),
            "grpc",
            {"ca": other.chain},
            "its certificate is not signed by a trusted CA: give its ",
        ),
        (numbers, "grpc", {"ca": ca.chain}, "its certificate is for another address than 127.0.0.1"),
        (protected.url("http"), "http", {"ca": ca.chain}, "that port does not speak TLS: leave it out (tls, ca)"),
    ]
    for url, protocol, options, problem in cases:
        began = time.monotonic()
        with pytest.raises(ServerUnavailable) as error:
            Client(url, protocol=protocol, wait=60, **options)
        assert time.monotonic() - began < 15
        assert str(error.value).startswith(f"no server ready at {url} ({protocol}): {problem}")
