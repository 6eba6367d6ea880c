"""Printing to terminals and pipes of any kind, also such as lack signs, are closed, or are no longer read."""

from __future__ import annotations

import codecs
import io
import os
import sys

PLAIN = {"→": "->", "×": "x", "–": "-", "±": "+-", "…": "...", "²": "2", "│": "|"}


def _plain(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    signs = error.object[error.start : error.end]
    return "".join(PLAIN.get(s, s.encode("ascii", "backslashreplace").decode()) for s in signs), error.end


codecs.register_error("plain", _plain)


def make_output_safe() -> None:
    """Let stdout and stderr replace what their encoding lacks, file names that are no text among it.

    A stream that is closed gets one that leads nowhere, before any other file can take its place.
    """
    for number, name in ((0, "stdin"), (1, "stdout"), (2, "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # becomes the lowest number that is free
            setattr(sys, name, open(os.devnull, "r+"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="plain")


def discard_output() -> None:
    """After a broken pipe or a full disk: nothing that is still to be printed can raise again."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())


def on_one_line(text: str) -> str:
    """The text with its control characters spelt out: a file's name may hold line breaks, or commands to terminals."""
    return "".join(c if c.isprintable() or 0xDC80 <= ord(c) <= 0xDCFF else ascii(c)[1:-1] for c in text)
