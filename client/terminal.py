"""Printing to terminals and pipes of any kind: encodings that lack a sign, readers that stop reading."""

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


def print_anything() -> None:
    """Let stdout and stderr replace what their encoding lacks, file names that are no text among it."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="plain")


def stop_printing() -> None:
    """After a broken pipe: nothing that is still to be printed can raise again."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
