"""Read image files in a separate process, to isolate decoders that crash, hang or print."""

from __future__ import annotations

import contextlib
import os
import pickle
import resource
import select
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from client.formats.source import Choice, FileError, Source

MEMORY = 12 * 2**30
"""Maximum address space of the process, in bytes: enough for the largest image without exhausting most machines."""
LIMIT = 120
"""Maximum seconds per file."""
COMMAND = (sys.executable, "-m", "client.reader")


class Reader:
    """``client.files.read_image`` in another process, one file at a time; thread-safe.

    The process is started immediately and restarted after a crash.
    """

    def __init__(self, command: tuple[str, ...] = COMMAND, limit: float = LIMIT) -> None:
        self._command, self._limit = command, limit
        self._lock = threading.Lock()
        self._process = self._start()

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._stop()

    def read(self, path: Path, choice: Choice | None = None, downscale: int | None = None) -> Source:
        """Read an image file.

        Raises:
            FileError: as in ``read_image``, or the decoder crashed or exceeded the limit.
        """
        with self._lock:
            try:
                answer = self._ask((path, choice, downscale))
            except TimeoutError:
                self._restart()
                raise FileError(f"'{path}' was not read within {self._limit:g} s") from None
            except (OSError, EOFError, pickle.UnpicklingError):
                status = self._restart()
                if status >= 0:
                    raise FileError(f"'{path}' cannot be read: the reading process failed (status {status})") from None
                name = signal.Signals(-status).name
                raise FileError(f"'{path}' is damaged: its decoder crashed ({name})") from None
        if isinstance(answer, FileError):
            raise answer
        return answer

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)

    def _ask(self, question: tuple[Path, Choice | None, int | None]) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        pickle.dump(question, self._process.stdin)
        self._process.stdin.flush()
        if not select.select([self._process.stdout], [], [], self._limit)[0]:
            raise TimeoutError
        return pickle.load(self._process.stdout)

    def _stop(self) -> int:
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                if pipe is not None:
                    pipe.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(0.5)
        self._process.kill()
        return self._process.wait()

    def _restart(self) -> int:
        status = self._stop()
        self._process = self._start()
        return status


def answer_all(questions: IO[bytes], answers: IO[bytes]) -> None:
    """Read requested files until the input ends."""
    from client.files import read_image

    while True:
        try:
            path, choice, downscale = pickle.load(questions)
        except EOFError:
            return
        try:
            answer: Source | FileError = read_image(path, choice, downscale)
        except FileError as error:
            answer = error
        pickle.dump(answer, answers, protocol=pickle.HIGHEST_PROTOCOL)
        answers.flush()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process decides when to end
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY if hard == resource.RLIM_INFINITY else min(MEMORY, hard), hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # decoders may print
    answer_all(sys.stdin.buffer, replies)
