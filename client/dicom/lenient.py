"""Values of sources that break DICOM's rules."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from pydicom.config import disable_value_validation

_lock = threading.RLock()


@contextlib.contextmanager
def lenient() -> Iterator[None]:
    """Accept any values within the block, in one thread at a time: pydicom's setting is that of the whole process."""
    with _lock, disable_value_validation():
        yield
