"""A running Orthanc, the PACS that images are sent to."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.serving.local_server import free_ports

ORTHANC = shutil.which("Orthanc", path=f"{os.environ.get('PATH', '')}:/usr/sbin") or ""
DICOMWEB = next(iter(Path("/usr/share/orthanc/plugins").glob("libOrthancDicomWeb.so*")), None)
"""The plugin for DICOMweb, if it is installed."""
START_LIMIT = 60
"""Maximum seconds to start."""


class Orthanc:
    """Runs for the duration of a block, at the ports ``http`` and ``dicom`` of 127.0.0.1, with its images in a folder.

    Args:
        folder: for images, configuration and log.
        settings: further settings of its configuration.
    """

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder = folder
        self.http, self.dicom = free_ports(2)
        self._process: subprocess.Popen[bytes] | None = None
        common = {
            "HttpPort": self.http,
            "DicomPort": self.dicom,
            "StorageDirectory": str(folder / "images"),
            "IndexDirectory": str(folder / "images"),
            "RemoteAccessAllowed": False,
            "Plugins": [] if DICOMWEB is None else [str(DICOMWEB)],
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
        }
        (folder / "orthanc.json").write_text(json.dumps({**common, **settings}))

    @property
    def dicomweb(self) -> str:
        """Address of its DICOMweb service."""
        return f"http://127.0.0.1:{self.http}/dicom-web"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        log = self.folder / "orthanc.log"
        with open(log, "ab") as file:
            self._process = subprocess.Popen([ORTHANC, self.folder / "orthanc.json"], stdout=file, stderr=file)
        deadline = time.monotonic() + START_LIMIT
        while True:
            try:
                self.ask("/system")
                return
            except OSError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    self.stop()
                    raise RuntimeError(f"Orthanc does not start:\n{log.read_text()[-2000:]}") from None
                time.sleep(0.05)

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(30)

    def __enter__(self) -> Orthanc:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def ask(self, path: str, data: bytes | None = None, accept: str = "application/json") -> bytes:
        """GET a path or, with data, POST it."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.http}{path}", data, {"Accept": accept})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return bytes(answer.read())

    def store(self, data: bytes) -> str:
        """Store a DICOM file; return Orthanc's ID of the instance."""
        return str(json.loads(self.ask("/instances", data))["ID"])

    def instances(self) -> list[str]:
        """Orthanc's IDs of all instances."""
        found: list[str] = json.loads(self.ask("/instances"))
        return found

    def tags(self, instance: str) -> dict[str, Any]:
        """The tags of an instance by name."""
        found: dict[str, Any] = json.loads(self.ask(f"/instances/{instance}/simplified-tags"))
        return found

    def picture(self, instance: str, what: str) -> NDArray[np.uint8]:
        """The picture of an instance: "preview" (its range) or "rendered" (its window)."""
        data = self.ask(f"/instances/{instance}/{what}", accept="image/png")
        return np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE))
