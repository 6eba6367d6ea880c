"""What the processor multiplies fast, as Linux tells."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.runtimes import processor
from pipeline.runtimes.processor import BFLOAT16, INT8, cpu_supports


@pytest.mark.parametrize(
    ("flags", "bfloat16", "int8"),
    [
        ("fpu avx2 avx512_bf16", True, True),
        ("fpu avx2 amx_bf16", True, True),
        ("fpu avx avx2", False, True),
        ("fpu avx avx2x avx512_bf16x", False, False),
    ],
)
def test_flags(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flags: str, bfloat16: bool, int8: bool) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(f"model name : avx2 avx512_bf16\nflags\t\t: {flags}\nbugs : none\n")
    monkeypatch.setattr(processor, "CPUINFO", path)
    assert (cpu_supports(BFLOAT16), cpu_supports(INT8)) == (bfloat16, int8)


def test_a_system_that_does_not_tell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "none")
    assert not cpu_supports(INT8)
