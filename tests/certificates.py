"""Certificates as openssl makes them: a CA, and servers' certificates that it signs."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Certificate:
    """A certificate (PEM), and its key."""

    chain: Path
    key: Path

    @property
    def both(self) -> Path:
        """One file of both, as HAProxy reads it."""
        path = self.chain.with_suffix(".both")
        path.write_bytes(self.chain.read_bytes() + self.key.read_bytes())
        return path


def openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


def make_ca(folder: Path, name: str) -> Certificate:
    ca = Certificate(folder / f"{name}.pem", folder / f"{name}.key")
    openssl(
        *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"),
        *("-subj", f"/CN={name}", "-keyout", ca.key, "-out", ca.chain),
    )
    return ca


def make_certificate(
    ca: Certificate, name: str, names: str = "DNS:localhost,IP:127.0.0.1", days: int = 2
) -> Certificate:
    """``days`` below 0: it has expired."""
    made = Certificate(ca.chain.with_name(f"{name}.pem"), ca.chain.with_name(f"{name}.key"))
    request, extensions = made.chain.with_suffix(".csr"), made.chain.with_suffix(".cnf")
    extensions.write_text(f"subjectAltName={names}\n")
    openssl(
        *("req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
        *("-subj", f"/CN={name}", "-keyout", made.key, "-out", request),
    )
    openssl(
        *("x509", "-req", "-in", request, "-CA", ca.chain, "-CAkey", ca.key, "-CAcreateserial"),
        *("-days", str(days), "-extfile", extensions, "-out", made.chain),
    )
    return made
