"""Detect fast number formats from the processor flags that Linux reports."""

from __future__ import annotations

from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
BFLOAT16 = {"avx512_bf16", "amx_bf16"}
INT8 = {"avx2"}  # implied by VNNI and AMX


def cpu_supports(flags: set[str]) -> bool:
    """Whether the processor has any of these flags; False if unknown."""
    try:
        lines = CPUINFO.read_text().splitlines()
    except OSError:
        return False
    return any(flags & set(line.split()) for line in lines if line.startswith("flags"))
