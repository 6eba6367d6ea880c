"""One of two servers behind the proxy is killed: the other answers for both."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from benchmarks.faults.load import Row, load
from benchmarks.faults.server import FaultError, Server, serving, wait_until
from client import Client
from pipeline import ROOT
from pipeline.serving.local_server import free_ports
from pipeline.serving.processes import remove_leftovers

HAPROXY = shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
TOKEN = "a-token-of-the-scenario"
Protocol = Literal["grpc", "http"]
PROTOCOLS: tuple[Protocol, ...] = ("grpc", "http")


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """Return a certificate of localhost, which is its own authority, and a file of it and its key."""
    certificate, key, both = folder / "server.pem", folder / "server.key", folder / "both.pem"
    subprocess.run(
        [
            *(
                "openssl",
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
                "-nodes",
                "-days",
                "2",
            ),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", certificate),
        ],
        check=True,
        capture_output=True,
    )
    both.write_bytes(certificate.read_bytes() + key.read_bytes())
    return certificate, both


@contextlib.contextmanager
def proxying(haproxy: str, folder: Path, first: Server, second: Server) -> Iterator[tuple[str, Path]]:
    """Start the proxy in front of two servers; yield its address and the certificate to trust."""
    certificate, both = make_certificate(folder)
    tokens, log = folder / "tokens", folder / "proxy.log"
    tokens.write_text(f"{hashlib.sha256(TOKEN.encode()).hexdigest()} load\n")
    (port,) = free_ports(1)
    settings = {
        "CXR_ADDRESS": "127.0.0.1",
        "CXR_PORT": str(port),
        "CXR_CERTIFICATE": str(both),
        "CXR_TOKENS": str(tokens),
        "CXR_TRITON_GRPC": f"127.0.0.1:{first.grpc}",
        "CXR_TRITON_HTTP": f"127.0.0.1:{first.http}",
        "CXR_TRITON_GRPC_2": f"127.0.0.1:{second.grpc}",
        "CXR_TRITON_HTTP_2": f"127.0.0.1:{second.http}",
    }
    command = [haproxy, "-W", "-f", str(ROOT / "deploy" / "proxy" / "haproxy.cfg")]
    with open(log, "wb") as file:
        process = subprocess.Popen(command, env={**os.environ, **settings}, stdout=file, stderr=file)

    def listens() -> bool:
        with socket.socket() as connection:
            return connection.connect_ex(("127.0.0.1", port)) == 0

    try:
        wait_until(lambda: process.poll() is not None or listens(), 10)
        if process.poll() is not None:
            raise FaultError(f"the proxy does not start:\n{log.read_text()[-500:]}")
        yield f"localhost:{port}", certificate
    finally:
        process.terminate()
        process.wait(10)


def proxy(folder: Path, seconds: float) -> Iterator[Row]:
    """kill -9 of one of two servers behind the proxy under load, over gRPC and over HTTP."""
    name = "kill -9 of one of two servers behind the proxy"
    if not HAPROXY:
        yield Row(name, note="not run: needs haproxy")
        return
    for protocol in PROTOCOLS:
        (folder / protocol).mkdir()
        yield killed(HAPROXY, folder / protocol, seconds, protocol, Row(f"{name}, over {protocol}"))


def killed(haproxy: str, folder: Path, seconds: float, protocol: Protocol, row: Row) -> Row:
    """Return the row of a server that is killed with its supervisor, and so does not come back."""
    records = folder / "stays", folder / "killed"
    with (
        serving(folder, f"--audit={records[0]}") as stays,
        serving(folder, f"--audit={records[1]}") as mortal,
        proxying(haproxy, folder, stays, mortal) as (url, certificate),
    ):

        def connect() -> Client:
            return Client(url, protocol=protocol, ca=certificate, token=TOKEN, wait=60)

        def kill() -> None:
            for pid in (mortal.process.pid, mortal.triton()):
                os.kill(pid, signal.SIGKILL)

        load(stays, row, seconds, kill, connect)
    remove_leftovers()  # of the server that no supervisor starts again
    answered = [len(record.read_text().splitlines()) for record in records]
    row.note = f"{answered[1]} answered by it, {answered[0]} by the other"
    row.good = row.all_right and all(answered)
    return row


SCENARIOS: dict[str, Callable[[Path, float], Iterator[Row]]] = {"proxy": proxy}
