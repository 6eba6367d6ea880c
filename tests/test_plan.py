"""Plans: what is asked of TensorRT, what is refused, and what is installed. The builder is TensorRT-RTX, on the CPU."""

from __future__ import annotations

import pytest

rtx = pytest.importorskip("tensorrt_rtx_bindings")
