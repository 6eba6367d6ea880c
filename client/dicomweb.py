"""Fetch radiographs from a DICOMweb server (QIDO-RS, WADO-RS), and store results there (STOW-RS)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pydicom

from client.dicom import UID_PATTERN
from client.dicom.derive import NAME
from client.formats.dicom_original import CLASSES
from client.png import writing

TIMEOUT = 60.0
"""Maximum seconds for a part of an answer."""
ANY = (("application/dicom", "*"),)
"""Instances in the transfer syntax in which they are stored."""
FAILED = "FailedSOPSequence"


class DicomwebError(Exception):
    """The DICOMweb server cannot be used, or has nothing to upscale; the message says why."""


class Dicomweb:
    """A DICOMweb server; user and password are those of ``~/.netrc`` for its host, if any.

    Args:
        url: root of its services, such as http://localhost:8042/dicom-web.

    Raises:
        DicomwebError: the address is none, or dicomweb-client is not installed.
    """

    def __init__(self, url: str) -> None:
        try:
            import requests
            from dicomweb_client import DICOMwebClient
        except ModuleNotFoundError as error:
            if error.name not in ("dicomweb_client", "requests"):
                raise
            raise DicomwebError("--dicomweb needs what the extra 'pacs' installs: pip install '.[pacs]'") from None

        class Session(requests.Session):
            def request(self, *args: Any, **options: Any) -> requests.Response:
                return super().request(*args, **{"timeout": TIMEOUT, **options})

        self.url, self._failure = url, requests.RequestException
        try:
            self._client: Any = DICOMwebClient(url, session=Session())
        except ValueError as error:
            raise DicomwebError(f"'{url}' is no address of a DICOMweb server: {error}") from None
        self._client.set_http_retry_params(retry=False)

    def find(self, study: str, series: str | None = None) -> list[tuple[str, str]]:
        """Return the series and SOP Instance UIDs of the images of a study, or of a series, that can be upscaled.

        Raises:
            DicomwebError: there are none, or the server fails.
        """
        fields = ["SOPClassUID", "SeriesInstanceUID", "SOPInstanceUID"]
        with self._translated():
            found = self._client.search_for_instances(study, series, fields=fields)
        images = [pydicom.Dataset.from_json(item) for item in found]
        wanted = [(str(i.SeriesInstanceUID), str(i.SOPInstanceUID)) for i in images if i.SOPClassUID in CLASSES]
        wanted = [uids for uids in wanted if all(re.fullmatch(UID_PATTERN, uid) for uid in uids)]
        if not wanted:
            what = f"series {series}" if series else f"study {study}"
            raise DicomwebError(f"{self.url} has no CR, DX or Secondary Capture in {what}")
        return sorted(wanted)

    def fetch(self, study: str, images: Iterable[tuple[str, str]], folder: Path) -> Iterator[Path]:
        """Write images into a folder, and yield their files; results of this system are left out.

        Raises:
            DicomwebError: the server fails.
            FileError: a file cannot be written.
        """
        for series, instance in images:
            with self._translated():
                dataset = self._client.retrieve_instance(study, series, instance, media_types=ANY)
            if any(item.get("Manufacturer") == NAME for item in dataset.get("ContributingEquipmentSequence") or ()):
                continue
            path = folder / f"{instance}.dcm"
            with writing(path) as partial:
                dataset.save_as(partial, enforce_file_format=True)
            yield path

    def store(self, path: Path) -> None:
        """Store a file.

        Raises:
            DicomwebError: the server fails, or refuses it.
        """
        with self._translated():
            answer = self._client.store_instances([pydicom.dcmread(path)])
        for item in answer.get(FAILED) or ():
            raise DicomwebError(f"{self.url} refuses it (reason {item.get('FailureReason', 0):04X})")

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Turn an error of the library into one line."""
        try:
            yield
        except (self._failure, ValueError) as error:
            response = getattr(error, "response", None)
            if response is not None:
                raise DicomwebError(f"{self.url} answers {response.status_code} {response.reason}") from error
            name, unreachable = type(error).__name__, "cannot be reached"
            known = {"SSLError": "TLS fails", "ConnectionError": unreachable, "ConnectTimeout": unreachable}
            raise DicomwebError(f"{self.url}: {known.get(name, f'{name}: {error}')}") from error
