"""Write results as DICOM: ``derive.derive``, ``uncertainty.map_uncertainty``, ``files.write_dicom``."""

from typing import Literal

Compression = Literal["jpeg2000", "jpeg-ls"]
"""Compression of files, without loss."""

UID_PATTERN = r"[0-9][0-9.]{0,63}"
"""Regular expression of UIDs as others send them: rules that devices break are not in it, but no file name escapes."""
