"""Printing with any encoding, to readers that go away."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys

import pytest

from client.terminal import on_one_line

CODE = "from client.terminal import make_output_safe; make_output_safe(); print('a → b: 4×4 ±1 é' + '\\udcff')"


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [
        ("utf-8", "a → b: 4×4 ±1 é\\udcff"),
        ("latin-1", "a -> b: 4×4 ±1 é\\udcff"),
        ("ascii", "a -> b: 4x4 +-1 \\xe9\\udcff"),
    ],
)
def test_signs_that_the_encoding_lacks_are_replaced(encoding: str, expected: str) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    result = subprocess.run([sys.executable, "-c", CODE], capture_output=True, env=environment, check=True)
    assert result.stdout.decode(encoding).strip() == expected


@pytest.mark.parametrize("closed", ["1>&-", "2>&-", "0<&-", "0<&- 1>&- 2>&-"])
def test_streams_that_are_closed(closed: str) -> None:
    code = (
        "import sys, os; from client.terminal import make_output_safe; make_output_safe(); f = open('/dev/null'); "
        "print('x', flush=True); print('y', file=sys.stderr, flush=True); sys.exit(9 if f.fileno() > 2 else 1)"
    )
    command = f"exec {sys.executable} -c {shlex.quote(code)} {closed}"
    assert subprocess.run(["bash", "-c", command], capture_output=True, check=False).returncode == 9


def test_control_characters_of_a_name_are_spelt_out() -> None:
    assert on_one_line("a\nb\r\x1b[31mc → é\udcff") == "a\\nb\\r\\x1b[31mc → é\udcff"


def test_after_a_broken_pipe_nothing_raises() -> None:
    code = "import sys; from client.terminal import mute_output; mute_output(); print('x' * 10**6); sys.stdout.flush()"
    read, write = os.pipe()
    os.close(read)
    result = subprocess.run([sys.executable, "-c", code], stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)
    assert (result.returncode, result.stderr) == (0, b"")
