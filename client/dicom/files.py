"""Write DICOM files atomically, uncompressed or compressed without loss."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydicom import Dataset
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless

from client.formats import dicom_codecs
from client.formats.source import FileError
from client.png import tidy
from pipeline.atomic import atomic_write

Compression = Literal["jpeg2000", "jpeg-ls"]
PLUGINS = {"jpeg2000": (JPEG2000Lossless, dicom_codecs.PLUGIN), "jpeg-ls": (JPEGLSLossless, "pyjpegls")}
"""Compression ⇒ transfer syntax, encoder."""


def compress(dataset: Dataset, compression: Compression) -> None:
    """Compress the pixels in place, without loss."""
    syntax, plugin = PLUGINS[compression]
    dataset.compress(syntax, encoding_plugin=plugin, generate_instance_uid=False)


def write_dicom(path: Path, dataset: Dataset) -> None:
    """Write a DICOM file atomically.

    Raises:
        FileError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tidy(path.parent)
        with atomic_write(path) as partial:
            dataset.save_as(partial, enforce_file_format=True)
    except OSError as error:
        raise FileError(f"'{path}' cannot be written: {error.strerror or error}") from error
