"""The server's log as JSON lines: what this process, Triton and its models print goes through one pipe."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
import sys
import threading
from collections.abc import Iterator
from typing import Any

TRITON = re.compile(r"([IWEF])(\d\d)(\d\d) (\d\d:\d\d:\d\d\.\d+) \d+ ([\w.]+:\d+)\] ?(.*)")
"""A line of Triton's log: level, month, day, time (UTC), place, message."""
LEVELS = {"I": "info", "W": "warning", "E": "error", "F": "fatal"}
OURS = re.compile(r"(error|warning|restarting|ready|starting|removed|not checked)\b")
"""How this project's own lines begin."""
REQUEST = re.compile(r"(\w+): request '(.*?)' ")
"""How a model's line about a request begins."""
END_LIMIT = 2.0
"""Maximum seconds to write what is left when the server has ended."""


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.timezone.utc)


def record(line: str) -> dict[str, Any]:
    """Return a line as fields: time, level, source and message; where known also place, event, model and request."""
    found: dict[str, Any] = {"time": _now().isoformat(timespec="milliseconds"), "level": "info"}
    if match := TRITON.fullmatch(line):
        level, month, day, clock, place, message = match.groups()
        with contextlib.suppress(ValueError):  # a string in quotes, as of Triton 2.50
            message = str(json.loads(message))
        found |= {
            "time": f"{_now().year}-{month}-{day}T{clock[:12]}+00:00",
            "level": LEVELS[level],
            "source": "triton",
            "place": place,
            "message": message,
        }
        if about := REQUEST.match(message):
            found |= {"model": about[1], "request": about[2]}
    elif match := OURS.match(line):
        level = match[1] if match[1] in ("error", "warning") else "warning" if match[1] == "restarting" else "info"
        found |= {"level": level, "source": "supervisor", "event": match[1], "message": line}
    else:
        found |= {"source": "output", "message": line}
    return found


@contextlib.contextmanager
def as_json() -> Iterator[None]:
    """Turn everything that this process and its children print into JSON lines on standard output."""
    sys.stdout.flush()
    sys.stderr.flush()
    outputs = [os.dup(number) for number in (1, 2)]
    receiver, sender = os.pipe()
    for number in (1, 2):
        os.dup2(sender, number)
    os.close(sender)

    def convert() -> None:
        with open(receiver, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if line.strip():
                    os.write(outputs[0], (json.dumps(record(line.rstrip("\n")), ensure_ascii=False) + "\n").encode())

    converter = threading.Thread(target=convert, daemon=True)
    converter.start()
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, output in zip((1, 2), outputs, strict=True):
            os.dup2(output, number)
        converter.join(END_LIMIT)
