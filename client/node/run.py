"""A running node: its parts, how they start, and how they end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from client.node.config import Config
from client.node.journal import Journal
from client.node.queue import Queue
from client.node.receive import Receiver, digest_of
from client.node.status import StatusPage
from client.node.storage import Storage
from client.node.work import Worker


@contextmanager
def running(config: Config) -> Iterator[Callable[[float], None]]:
    """Run a node for the duration of the block; yield the function that lets it finish what it is at.

    The function takes no new associations and images, and returns when the images in progress are done or put back, at
    the latest after a number of seconds.

    Raises:
        InUse: another node uses the folder.
        OSError: a port is taken, or the folder cannot be written.
        sqlite3.Error: the queue cannot be read.
    """
    with ExitStack() as stack:
        storage = Storage(config.listen.folder)
        stack.callback(storage.close)
        queue = Queue(storage.folder / "queue.db")
        stack.callback(queue.close)
        recover(storage, queue)
        journal = Journal()
        worker = Worker(config, storage, queue, journal)
        page = StatusPage(queue, journal, lambda: all(thread.is_alive() for thread in worker.threads))
        stack.enter_context(page.running(config.status.host, config.status.port))
        stack.enter_context(worker.running())
        receiver = Receiver(config, storage, queue, journal)
        listening = stack.enter_context(receiver.running())
        listen, waiting = config.listen, queue.counts()
        journal.say(
            f"ready: {listen.ae_title} at {listen.host}:{listen.port}{' by TLS' if config.listen_tls else ''}, "
            f"{waiting['received'] + waiting['upscaled']} images waiting"
        )

        def drain(seconds: float) -> None:
            deadline = time.monotonic() + seconds
            journal.say("ending")
            worker.stop()
            listening.shutdown()
            for thread in worker.threads:
                thread.join(max(0.0, deadline - time.monotonic()))
            while listening.active_associations and time.monotonic() < deadline:
                time.sleep(0.05)
            waiting = queue.counts()
            journal.say(f"ended, {waiting['received'] + waiting['upscaled']} images waiting")

        yield drain


def recover(storage: Storage, queue: Queue) -> None:
    """Make files and queue agree after a node was killed."""
    known = queue.uids("received", "upscaled", "sent", "dead")
    for uid in storage.uids() - known:  # on disk, but the caller was not told so
        queue.add(uid, digest_of(storage.received(uid).read_bytes()))
    waiting = queue.uids("received", "upscaled")
    storage.tidy({"received": waiting, "derived": queue.uids("upscaled"), "dead": queue.uids("dead")})
