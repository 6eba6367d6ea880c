"""The node's status by HTTP."""

from __future__ import annotations

import json
import re
import sqlite3
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from client.node.journal import Journal
from client.node.queue import Queue
from client.node.status import StatusPage


@pytest.fixture
def page(tmp_path: Path) -> Iterator[StatusPage]:
    queue, journal = Queue(tmp_path / "queue.db"), Journal()
    for uid in ("1", "2", "3"):
        queue.add(uid, "a")
    queue.move("2", "sent")
    queue.move("3", "dead", "is damaged")
    journal.say("accepted", "accepted")
    journal.refuse("9", "CT1", "is modality 'CT'")
    journal.down("server", "no server ready")
    yield StatusPage(queue, journal, lambda: True)
    queue.close()


def test_the_queue_names_what_waits_failed_and_was_refused(page: StatusPage) -> None:
    status, kind, text = page.answer("/queue")
    found = json.loads(text)
    assert (status, kind) == (200, "application/json")
    assert found["images"] == {"received": 1, "upscaled": 0, "sent": 1, "dead": 1}
    assert found["down"] == {"server": "no server ready"}
    assert found["problems"] == [{"uid": "3", "state": "dead", "tries": 0, "problem": "is damaged"}]
    assert found["refused"] == [{"uid": "9", "from": "CT1", "reason": "is modality 'CT'"}]


def test_metrics_are_prometheus_text(page: StatusPage) -> None:
    text = page.answer("/metrics")[2]
    sample = r'cxr_node_\w+(\{\w+="\w+"\})? [\d.]+'
    assert all(re.fullmatch(rf"# (HELP|TYPE) .+|{sample}", line) for line in text.splitlines())
    for line in (
        'cxr_node_images{state="dead"} 1',
        'cxr_node_down{part="server"} 1',
        'cxr_node_down{part="disk"} 0',
        "cxr_node_accepted_total 1",
        "cxr_node_refused_total 1",
    ):
        assert line in text.splitlines()
    names = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(names) == len(set(names))


def test_health_is_that_of_the_threads_and_the_queue(page: StatusPage) -> None:
    assert page.answer("/healthz")[0] == 200
    page.alive = lambda: False
    assert page.answer("/healthz")[0] == 503
    page.queue.close()
    assert page.answer("/queue")[0] == 503
    with pytest.raises(sqlite3.ProgrammingError):
        page.queue.counts()


def test_it_is_served(page: StatusPage) -> None:
    with page.running("127.0.0.1", 0) as port:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=10) as answer:
            assert answer.read() == b"ok\n"
        with pytest.raises(urllib.error.HTTPError, match="404") as caught:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10)
        caught.value.close()


def test_a_problem_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    journal = Journal()
    with caplog.at_level("INFO", "client.node"):
        for _ in range(3):
            journal.down("server", "no server ready")
        for _ in range(2):
            journal.up("server")
    assert [record.getMessage() for record in caplog.records] == [
        "server down, trying again: no server ready",
        "server is back",
    ]
