"""What this machine's processor cpu_supports fast, by the flags that Linux tells."""

from __future__ import annotations

from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
BFLOAT16 = {"avx512_bf16", "amx_bf16"}
INT8 = {"avx2"}  # all with VNNI or AMX have it too


def cpu_supports(flags: set[str]) -> bool:
    """Whether the processor has one of these flags; no where it does not tell."""
    try:
        lines = CPUINFO.read_text().splitlines()
    except OSError:
        return False
    return any(flags & set(line.split()) for line in lines if line.startswith("flags"))
