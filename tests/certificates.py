"""Certificates for tests, made by openssl."""

from __future__ import annotations

import subprocess
from pathlib import Path


def openssl(*arguments: str, folder: Path) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)


def make_certificate(folder: Path, name: str = "server", host: str = "localhost", days: int = 30) -> tuple[Path, Path]:
    """Make ``name.pem``, signed by itself, for a host, and ``name.key``; ``days`` may be negative: expired."""
    subject = ["-subj", f"/CN={host}", "-addext", f"subjectAltName=DNS:{host}"] if host else ["-subj", "/CN=nobody"]
    openssl(
        *("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", f"{name}.key", "-out", f"{name}.pem"),
        *("-days", str(days) if days > 0 else "1", *subject),
        folder=folder,
    )
    if days <= 0:
        expire(folder, name)
    return folder / f"{name}.pem", folder / f"{name}.key"


def expire(folder: Path, name: str) -> None:
    """Sign the certificate again, for days that have passed."""
    (folder / "index").write_text("")
    (folder / "serial").write_text("01\n")
    (folder / "ca.cnf").write_text(
        "[ca]\ndefault_ca=own\n[own]\ndatabase=index\nserial=serial\nnew_certs_dir=.\ndefault_md=sha256\npolicy=any\n"
        "copy_extensions=copy\n[any]\ncommonName=optional\n"
    )
    openssl("x509", "-x509toreq", "-in", f"{name}.pem", "-signkey", f"{name}.key", "-out", "request", folder=folder)
    openssl(
        *("ca", "-batch", "-config", "ca.cnf", "-selfsign", "-keyfile", f"{name}.key", "-in", "request"),
        *("-startdate", "20200101000000Z", "-enddate", "20200102000000Z", "-notext", "-out", f"{name}.pem"),
        folder=folder,
    )
