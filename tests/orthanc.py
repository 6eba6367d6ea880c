"""A running Orthanc, the PACS that tests send images to."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.serving.local_server import free_ports
from tests.conftest import wait_for

ORTHANC = shutil.which("Orthanc", path=f"{os.environ.get('PATH', '')}:/usr/sbin") or ""


@dataclass(frozen=True)
class Orthanc:
    """Its ports at 127.0.0.1."""

    http: int
    dicom: int

    def ask(self, path: str, data: bytes | None = None, accept: str = "application/json") -> bytes:
        """GET a path or, with data, POST it."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.http}{path}", data, {"Accept": accept})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return bytes(answer.read())

    def store(self, data: bytes) -> str:
        """Store a DICOM file; return Orthanc's ID of the instance."""
        return str(json.loads(self.ask("/instances", data))["ID"])

    def tags(self, instance: str) -> dict[str, Any]:
        """The tags of an instance by name."""
        found: dict[str, Any] = json.loads(self.ask(f"/instances/{instance}/simplified-tags"))
        return found

    def picture(self, instance: str, what: str) -> NDArray[np.uint8]:
        """The picture of an instance: "preview" (its range) or "rendered" (its window)."""
        data = self.ask(f"/instances/{instance}/{what}", accept="image/png")
        return np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE))


@contextmanager
def running_orthanc(folder: Path) -> Iterator[Orthanc]:
    """Start an Orthanc that keeps its images in a folder."""
    http, dicom = free_ports(2)
    config, log = folder / "orthanc.json", folder / "orthanc.log"
    settings = {
        "HttpPort": http,
        "DicomPort": dicom,
        "StorageDirectory": str(folder / "images"),
        "IndexDirectory": str(folder / "images"),
        "RemoteAccessAllowed": False,
    }
    config.write_text(json.dumps(settings))
    with open(log, "wb") as file:
        process = subprocess.Popen([ORTHANC, config], stdout=file, stderr=file)
    orthanc = Orthanc(http, dicom)

    def ready() -> bool:
        assert process.poll() is None, log.read_text()
        try:
            return bool(orthanc.ask("/system"))
        except OSError:
            return False

    try:
        wait_for(ready)
        yield orthanc
    finally:
        process.terminate()
        process.wait(30)
