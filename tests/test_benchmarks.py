"""What holds for every benchmark."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys

import pytest

from pipeline import ROOT

NAMES = ["alternatives", "arithmetic", "limits", "node", "overhead", "peers", "serving", "soak"]


@pytest.mark.parametrize(("given", "expected"), [(None, "passive"), ("active", "active")])
def test_pytorchs_threads_sleep_unless_told_otherwise(given: str | None, expected: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    command = [sys.executable, "-c", "import os, benchmarks; print(os.environ['OMP_WAIT_POLICY'])"]
    given_one = {} if given is None else {"OMP_WAIT_POLICY": given}
    result = subprocess.run(command, env=environment | given_one, cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == expected


@pytest.mark.parametrize("name", NAMES)
def test_help_shows_examples(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        importlib.import_module(f"benchmarks.{name}").main(["--help"])
    assert name in capsys.readouterr().out.partition("examples:")[2]
