"""Who may call a server: certificate, token, and closed administration, as tritonserver flags."""

from __future__ import annotations

import contextlib
import secrets
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline import tokens
from pipeline.serving import ServeError

ADMINISTRATION = ("shared-memory", "model-repository", "statistics", "trace", "logging")
"""Triton's interfaces that change the server, write into its memory, or tell about other callers."""
USE = ("inference", "model-config", "metadata")
"""Triton's interfaces that clients need, besides health."""
KEY = "authorization"
GRPC_KEY = f"triton-grpc-protocol-{KEY}"
"""Header in which Triton expects the value of ``KEY`` over gRPC."""
RESERVED = ',:="'
"""Characters that mean something else in Triton's flags."""


@dataclass(frozen=True)
class Certificate:
    """A certificate with its key, both PEM files."""

    cert: Path
    key: Path
    name: str
    """A host name or address that it is valid for."""


@dataclass(frozen=True)
class Access:
    """What callers need."""

    certificate: Certificate | None = None
    token: str | None = field(default=None, repr=False)
    admin_token: str | None = field(default=None, repr=False)
    administration: bool = False
    """Whether administration is open to every caller, for measurements."""

    def headers(self) -> dict[str, str]:
        """Return the headers of a gRPC call that may upscale."""
        return {} if self.token is None else {GRPC_KEY: bearer(self.token)}

    def secrets(self) -> list[str]:
        """Return what must not be printed."""
        return [token for token in (self.token, self.admin_token) if token]

    def flags(self) -> list[str]:
        """Return the flags of tritonserver. Administration that nobody has a token for is closed by a random one."""
        groups: list[tuple[tuple[str, ...], str]] = [] if self.token is None else [(USE, self.token)]
        if not self.administration:
            groups.append((ADMINISTRATION, self.admin_token or secrets.token_hex(32)))
        restrictions = [f"{','.join(names)}:{KEY}={bearer(token)}" for names, token in groups]
        tls = self.certificate
        return [
            *(f"--grpc-restricted-protocol={restriction}" for restriction in restrictions),
            *(f"--http-restricted-api={restriction}" for restriction in restrictions),
            *(["--grpc-use-ssl=true", f"--grpc-server-cert={tls.cert}", f"--grpc-server-key={tls.key}"] if tls else []),
        ]


def bearer(token: str) -> str:
    return f"Bearer {token}"


def read_token(path: Path, flag: str) -> str:
    """Read a token that can be part of Triton's flags from a file of one line.

    Raises:
        ServeError: the file cannot be read or does not hold such a token.
    """
    try:
        token = tokens.read_token(path)
    except tokens.TokenError as error:
        raise ServeError(f"{flag}: {error}") from error
    if set(token) & set(RESERVED):
        raise ServeError(f"{flag}: the token file '{path}' must be a token without {' '.join(RESERVED)}")
    return token


def read_certificate(cert: Path, key: Path) -> Certificate:
    """Check that a certificate can be used now and belongs to the key, by a handshake in memory.

    Raises:
        ServeError: a file cannot be read or is damaged, they do not belong together, or the certificate is not valid.
    """
    for flag, path in (("--tls-cert", cert), ("--tls-key", key)):
        try:
            path.read_bytes()
        except OSError as error:
            raise ServeError(f"{flag}: cannot read '{path}': {error.strerror}") from error
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        server.load_cert_chain(cert, key, password=lambda: "")
    except (ssl.SSLError, ValueError) as error:
        reason = getattr(error, "reason", None) or "no PEM, or encrypted"
        raise ServeError(
            f"--tls-cert '{cert}' and --tls-key '{key}' must be a PEM certificate and its unencrypted key ({reason})"
        ) from error
    client.check_hostname = False
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # the certificate itself is trusted
    try:
        client.load_verify_locations(cert)
        names = _handshake(server, client)
    except ssl.SSLError as error:
        reason = getattr(error, "verify_message", None) or error.reason
        raise ServeError(f"--tls-cert: '{cert}' cannot be used: {reason}") from error
    if not names:
        raise ServeError(f"--tls-cert: '{cert}' must be valid for a host (subjectAltName): no client would accept it")
    return Certificate(cert, key, names[0])


def _handshake(server: ssl.SSLContext, client: ssl.SSLContext) -> list[str]:
    """Connect the two in memory and return the names that the server's certificate is valid for."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours, theirs = server.wrap_bio(up, down, server_side=True), client.wrap_bio(down, up)
    for _ in range(4):
        for side in (theirs, ours):
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
    certificate: dict[str, Any] = theirs.getpeercert() or {}
    return [str(value) for kind, value in certificate.get("subjectAltName", ()) if kind in ("DNS", "IP Address")]


def find_access(
    cert: Path | None,
    key: Path | None,
    token: Path | None,
    admin_token: Path | None,
    administration: bool,
) -> Access:
    """Return what callers need from the command's options.

    Raises:
        ServeError: a file cannot be used, or options contradict each other.
    """
    if (cert is None) != (key is None):
        raise ServeError("--tls-cert and --tls-key must be given together")
    if administration and admin_token is not None:
        raise ServeError("--admin-token-file and --open-administration exclude each other")
    return Access(
        read_certificate(cert, key) if cert and key else None,
        read_token(token, "--token-file") if token else None,
        read_token(admin_token, "--admin-token-file") if admin_token else None,
        administration,
    )
