"""Write results as DICOM: ``derive.derive``, ``uncertainty.map_uncertainty``, ``files.write_dicom``."""

from typing import Literal

Compression = Literal["jpeg2000", "jpeg-ls"]
"""Compression of files, without loss."""
