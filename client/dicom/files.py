"""Write DICOM files atomically, uncompressed or compressed without loss."""

from __future__ import annotations

from pathlib import Path

from pydicom import Dataset
from pydicom.uid import UID, JPEG2000Lossless, JPEGLSLossless

from client.dicom import Compression
from client.dicom.lenient import lenient
from client.formats import dicom_codecs
from client.png import writing

PLUGINS: dict[Compression, tuple[UID, str]] = {
    "jpeg2000": (JPEG2000Lossless, dicom_codecs.PLUGIN),
    "jpeg-ls": (JPEGLSLossless, "pyjpegls"),
}
"""Compression ⇒ transfer syntax, encoder."""


def compress(dataset: Dataset, compression: Compression) -> None:
    """Compress the pixels in place, without loss."""
    syntax, plugin = PLUGINS[compression]
    dataset.compress(syntax, encoding_plugin=plugin, generate_instance_uid=False)


def write_dicom(path: Path | str, dataset: Dataset) -> None:
    """Write a DICOM file atomically; raise FileError if it cannot be written."""
    with writing(Path(path)) as partial, lenient():  # sources may break the rules
        dataset.save_as(partial, enforce_file_format=True)
