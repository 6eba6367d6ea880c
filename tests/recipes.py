"""The shell scripts of ``train/runs``, with their trainings in this process, where PyTorch is imported already."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

from accelerate.state import AcceleratorState

# a shell function comes before what is in PATH: `python -m` asks, through one pipe, and waits for the answer in another
PYTHON = """() {
    if [ "$1" != -m ]; then command python "$@"; return; fi
    local status
    echo "${*@Q}" > "$ASKED"
    read -r status < "$ANSWERED"
    return "$status"
}"""


def call(module: str, arguments: list[str]) -> int:
    """What ``python -m module`` would end with."""
    with own_precision():
        try:
            return int(import_module(module).main(arguments))
        except SystemExit as end:
            return end.code if isinstance(end.code, int) else 1
        except BaseException:  # the script waits for an answer, whatever happens
            traceback.print_exc()
            return 1


@contextmanager
def own_precision() -> Iterator[None]:
    """accelerate lets a process choose its precision once; every training has its own."""
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        yield
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


def run_recipe(script: Path, *arguments: str | Path, **variables: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a script of ``train/runs``; what its trainings print, this process prints."""
    with tempfile.TemporaryDirectory() as folder:
        asked, answered = Path(folder, "asked"), Path(folder, "answered")
        for pipe in (asked, answered):
            os.mkfifo(pipe)
        environment = {
            **os.environ,
            **{name: str(value) for name, value in variables.items()},
            **{"BASH_FUNC_python%%": PYTHON, "ASKED": str(asked), "ANSWERED": str(answered)},
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }
        process = subprocess.Popen(
            [script, *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        said: list[str] = []

        def wait_for_the_end() -> None:
            said.extend(process.communicate())
            asked.open("w").close()

        waiting = threading.Thread(target=wait_for_the_end)
        waiting.start()
        while command := asked.read_text():
            flag, module, *rest = shlex.split(command)
            assert flag == "-m"
            answered.write_text(f"{call(module, rest)}\n")
        waiting.join()
    return subprocess.CompletedProcess(process.args, process.returncode, *said)
