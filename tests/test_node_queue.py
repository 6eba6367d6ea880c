"""The node's queue and files: what is written survives, and no image is taken twice."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from client.node.queue import Queue
from client.node.run import recover
from client.node.storage import InUse, Storage, write_durably
from pipeline import ROOT
from tests.dicom_files import make_radiograph, to_bytes

KILLED = """
import os, signal, sys
from pathlib import Path
from client.node.queue import Queue
queue = Queue(Path(sys.argv[1]))
for number in range(10):
    queue.add(str(number), "digest")
queue.move("3", "upscaled")
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[Queue]:
    queue = Queue(tmp_path / "queue.db")
    yield queue
    queue.close()


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[Storage]:
    storage = Storage(tmp_path / "node")
    yield storage
    storage.close()


def test_an_image_goes_through_its_states(queue: Queue) -> None:
    queue.add("1.2", "a")
    for state in ("received", "upscaled"):
        entry = queue.next(state)
        assert entry is not None and entry.uid == "1.2" and entry.tries == 0
        queue.move("1.2", "upscaled" if state == "received" else "sent")
    assert queue.counts() == {"received": 0, "upscaled": 0, "sent": 1, "dead": 0}
    assert queue.oldest() == 0


def test_images_are_recognised_by_uid_and_content(queue: Queue) -> None:
    assert queue.find("1.2", "a") == "new"
    queue.add("1.2", "a")
    assert (queue.find("1.2", "a"), queue.find("1.2", "b")) == ("same", "other")
    queue.move("1.2", "dead", "reason")
    assert queue.find("1.2", "a") == "dead"
    queue.add("1.2", "a")
    assert queue.next("received") is not None and queue.problems() == []


def test_a_failed_try_waits(queue: Queue) -> None:
    queue.add("1", "a")
    queue.postpone("1", 100, "reason")
    queue.add("2", "a")
    first = queue.next("received")
    assert first is not None and first.uid == "2"
    assert queue.problems() == [{"uid": "1", "state": "received", "tries": 1, "problem": "reason"}]
    with queue.take("received") as (one, _), queue.take("received") as (other, pause):
        assert one is not None and one.uid == "2"
        assert other is None and 0 < pause <= 60


def test_who_waits_for_the_next_state_of_an_image_is_woken_once_it_can_be_taken(queue: Queue) -> None:
    queue.add("1", "a")
    with queue.take("received"):
        queue.move("1", "upscaled")
        with queue.take("upscaled") as (none, pause):
            assert none is None
        changes = queue.changes
    began = time.monotonic()
    queue.wait(changes, pause)
    assert time.monotonic() - began < pause / 2
    with queue.take("upscaled") as (entry, _):
        assert entry is not None


def test_two_threads_do_not_take_the_same_image(queue: Queue) -> None:
    for uid in ("1", "2"):
        queue.add(uid, "a")
    with (
        queue.take("received") as (first, _),
        queue.take("received") as (second, _),
        queue.take("received") as (none, _),
    ):
        assert first is not None and second is not None and {first.uid, second.uid} == {"1", "2"}
        assert none is None
    with queue.take("received") as (again, _):
        assert again is not None and again.uid == "1"


def test_a_change_ends_waiting_even_if_it_came_before(queue: Queue) -> None:
    changes = queue.changes
    queue.add("1", "a")
    queue.wait(changes, 1000)


def test_a_killed_process_loses_nothing(tmp_path: Path) -> None:
    file = tmp_path / "queue.db"
    done = subprocess.run([sys.executable, "-c", KILLED, file], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    queue = Queue(file)
    assert queue.counts() == {"received": 9, "upscaled": 1, "sent": 0, "dead": 0}
    queue.close()


def test_the_disk_writes_before_an_answer(queue: Queue) -> None:
    settings = {name: queue._ask(f"PRAGMA {name}")[0][0] for name in ("journal_mode", "synchronous")}
    assert settings == {"journal_mode": "wal", "synchronous": 2}


def test_a_folder_is_for_one_node(storage: Storage) -> None:
    with pytest.raises(InUse, match=str(storage.folder)):
        Storage(storage.folder)


def test_dead_images_keep_their_files_and_a_reason(storage: Storage) -> None:
    for path in (storage.received("1.2"), storage.derived("1.2")):
        path.write_bytes(b"image")
    storage.bury("1.2", "reason")
    storage.bury("1.2", "another")  # as after a kill in between
    storage.remove("1.2")
    dead = {path.name: path.read_text() for path in (storage.folder / "dead").iterdir()}
    assert dead == {"1.2.txt": "another\n", "1.2.dcm": "image", "1.2.derived.dcm": "image"}
    assert not storage.received("1.2").exists()
    storage.forget_dead("1.2")
    assert list((storage.folder / "dead").iterdir()) == []


def test_a_start_takes_up_what_a_killed_node_left(storage: Storage, queue: Queue) -> None:
    file = to_bytes(make_radiograph())
    for uid in ("1.1", "1.2", "1.3", "1.4"):
        storage.received(uid).write_bytes(file)
        storage.derived(uid).write_bytes(file)
    for uid in ("1.2", "1.3", "1.4"):
        queue.add(uid, "a")
    queue.move("1.3", "upscaled")
    queue.move("1.4", "sent")
    recover(storage, queue)
    assert queue.uids("received") == {"1.1", "1.2"}, "1.1 was written, but not yet listed"
    assert storage.uids() == {"1.1", "1.2", "1.3"}
    assert [path.name for path in (storage.folder / "derived").iterdir()] == ["1.3.dcm"]


def test_a_full_disk_leaves_no_half_file(small_disk: Path) -> None:
    with pytest.raises(OSError, match="No space left") as caught:
        write_durably(small_disk / "a", lambda path: path.write_bytes(bytes(2**21)))
    assert caught.value.errno == errno.ENOSPC
    assert list(small_disk.iterdir()) == []
