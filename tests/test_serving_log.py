"""The log as JSON lines."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from pipeline import ROOT
from pipeline.serving.log import record

WHO = 'I1127 07:58:21.895362 16782 failures.py:52] "superres: request \'study \\"3\\"\' was cancelled by its caller"'


def test_a_line_of_triton_is_taken_apart() -> None:
    found = record('E0102 07:58:21.895362 16782 server.cc:241] "a \\"quoted\\" message\\nof two lines"')
    assert found["time"][4:] == "-01-02T07:58:21.895+00:00"
    del found["time"]
    assert found == {
        "level": "error",
        "source": "triton",
        "place": "server.cc:241",
        "message": 'a "quoted" message\nof two lines',
    }
    assert record("W0102 07:58:21.895362 1 a.cc:1] not quoted")["message"] == "not quoted"


def test_a_models_line_about_a_request_has_its_id() -> None:
    found = record(WHO)
    assert (found["model"], found["request"], found["level"]) == ("superres", 'study "3"', "info")


@pytest.mark.parametrize(
    ("line", "event", "level"),
    [
        ("restarting: a process of model 'superres' died (restart 1)", "restarting", "warning"),
        ("ready: grpc 127.0.0.1:8001", "ready", "info"),
        ("error: no server", "error", "error"),
    ],
)
def test_the_supervisors_lines_are_events(line: str, event: str, level: str) -> None:
    found = record(line)
    assert (found["source"], found["event"], found["level"], found["message"]) == ("supervisor", event, level, line)


def test_all_that_a_process_and_its_children_print_is_json() -> None:
    code = (
        "import subprocess, sys; from pipeline.serving.log import as_json\n"
        "with as_json():\n"
        "    print('ready: now'); print('error: late', file=sys.stderr); subprocess.run(['echo', '| table |'])\n"
        "print('plain')"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    *lines, last = result.stdout.splitlines()
    assert last == "plain"
    assert {json.loads(line)["message"] for line in lines} == {"ready: now", "error: late", "| table |"}
