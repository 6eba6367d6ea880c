"""Print safely to terminals and pipes that lack characters, are closed, or are no longer read."""

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
    """Make stdout and stderr replace characters that their encoding lacks, including undecodable file names.

    Closed streams are redirected to the null device, before another file can take their numbers.
    """
    for number, name in ((0, "stdin"), (1, "stdout"), (2, "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
            setattr(sys, name, open(os.devnull, "r+"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="plain")


def mute_output() -> None:
    """Discard further output after a broken pipe or a full disk, so that it cannot raise again."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())


def on_one_line(text: str) -> str:
    """Escape control characters in a text, because file names may contain line breaks or terminal commands."""
    return "".join(c if c.isprintable() or 0xDC80 <= ord(c) <= 0xDCFF else ascii(c)[1:-1] for c in text)
