"""Upscale what was received, and send the results on."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from pydicom import Dataset

from client import BadRequest, Client, ServerError, Upscaled, UpscaleError
from client.dicom.derive import derive
from client.dicom.files import compress
from client.dicom.uncertainty import map_uncertainty
from client.formats.source import Choice, FileError, Source
from client.node.config import Config
from client.node.journal import Journal
from client.node.queue import Entry, Queue
from client.node.send import Sender
from client.node.storage import Storage, write_durably
from client.reader import Reader

WAIT = 10.0
"""Maximum seconds to wait for the server before an image is put back."""


class Down(Exception):
    """Server, destination or disk cannot be used at present, whatever the image is."""

    def __init__(self, what: str, problem: str) -> None:
        super().__init__(problem)
        self.what = what


class Fault(Exception):
    """An image cannot be upscaled or sent; the message says why."""


class Worker:
    """Threads that move images through the queue: some upscale, one sends."""

    def __init__(self, config: Config, storage: Storage, queue: Queue, journal: Journal) -> None:
        self.config, self.storage, self.queue, self.journal = config, storage, queue, journal
        self.stopping = threading.Event()
        self.threads = [
            *(threading.Thread(target=self._upscale_all, name=f"upscale {i}") for i in range(config.server.requests)),
            threading.Thread(target=self._send_all, name="send"),
        ]
        for thread in self.threads:
            thread.daemon = True

    @contextmanager
    def running(self) -> Iterator[None]:
        """Work for the duration of the block; ``stopping`` lets threads end after their present image."""
        with Reader() as self.reader:
            for thread in self.threads:
                thread.start()
            yield

    def stop(self) -> None:
        """Take no further image."""
        self.stopping.set()
        self.queue.wake()

    def _upscale_all(self) -> None:
        client: Client | None = None

        def upscale(entry: Entry) -> None:
            nonlocal client
            try:
                client = client or self._connect()
                self._upscale(client, entry.uid)
            except Down:
                if client is not None:
                    client.close()
                client = None
                raise

        self._repeat("received", upscale)
        if client is not None:
            client.close()

    def _send_all(self) -> None:
        sender = Sender(self.config)

        def send(entry: Entry) -> None:
            try:
                problem = sender.send(
                    [p for p in (self.storage.derived(entry.uid), self.storage.map(entry.uid)) if p.exists()]
                )
            except ConnectionError as error:
                raise Down("destination", str(error)) from error
            self.journal.up("destination")
            if problem is not None:
                raise Fault(problem)
            self.queue.move(entry.uid, "sent")
            self.journal.say(f"sent the result of {entry.uid}", "sent")
            with suppress(OSError):  # the next start removes them
                self.storage.remove(entry.uid)

        self._repeat("upscaled", send, idle=sender.release)
        sender.release()

    def _repeat(self, state: str, do: Callable[[Entry], None], idle: Callable[[], None] = lambda: None) -> None:
        """Do every image that is due, until the node stops."""
        failures = 0
        while not self.stopping.is_set():
            changes = self.queue.changes
            try:
                with self.queue.take(state) as (entry, pause):  # type: ignore[arg-type]
                    if entry is not None:
                        self._do(entry, do)
                        failures = 0
                if entry is None:
                    idle()
                    self.queue.wait(changes, pause)
            except (Down, OSError, sqlite3.Error) as error:
                failures += 1
                what = error.what if isinstance(error, Down) else "disk"
                self.journal.down(what, str(getattr(error, "strerror", None) or error))
                self.stopping.wait(self.config.retry.pause(failures))

    def _do(self, entry: Entry, do: Callable[[Entry], None]) -> None:
        """Do an image; count a fault, and give it up after the last try. Raises Down, OSError, sqlite3.Error."""
        try:
            do(entry)
            self.journal.up("disk")
            return
        except (Down, OSError, sqlite3.Error):
            raise
        except Fault as error:
            reason = str(error)
        except Exception as error:  # whose message may quote the data
            reason = f"{type(error).__name__} in handling it"
        retry, tries = self.config.retry, entry.tries + 1
        if tries < retry.tries:
            self.queue.postpone(entry.uid, retry.pause(tries), reason)
            self.journal.say(f"failed {entry.uid} (try {tries} of {retry.tries}): {reason}", "retries")
            return
        self.storage.bury(entry.uid, reason)
        self.queue.move(entry.uid, "dead", reason)
        self.storage.remove(entry.uid)
        self.journal.say(f"gave up {entry.uid} after {tries} tries: {reason}", "dead")

    def _connect(self) -> Client:
        """Return a client of the server. Raises Down."""
        server, options = self.config.server, dict(self.config.options)
        try:
            client = Client(
                server.url,
                protocol=server.protocol,  # type: ignore[arg-type]
                wait=WAIT,
                timeout=server.timeout,
                tls=server.tls,
                ca=server.ca,
                token=self.config.token,
                priority=server.priority,  # type: ignore[arg-type]
            )
        except UpscaleError as error:
            raise Down("server", str(error)) from error
        try:
            client.check(options.pop("seed", 0), **options)
        except UpscaleError as error:  # its preset is not the one that these options are for
            client.close()
            raise Down("server", f"server {server.url} does not allow these options: {error}") from error
        self.journal.up("server")
        return client

    def _upscale(self, client: Client, uid: str) -> None:
        path = self.storage.received(uid)
        factor = self.config.output.downscale
        try:
            source = self.reader.read(path, Choice(original=True), factor if factor > 1 else None)
        except FileError as error:
            raise Fault(str(error).replace(f"'{path}' ", "")) from error
        try:
            result = client.upscale(source.image, pixel_mm=source.pixel_mm, **self.config.options)
        except BadRequest as error:
            raise Fault(str(error)) from error
        except ServerError as error:
            try:  # whose fault is it?
                client.upscale(np.zeros((8, 8), np.float32), steps=1)
            except UpscaleError:
                raise Down("server", str(error)) from error
            raise Fault(str(error)) from error
        except UpscaleError as error:
            raise Down("server", str(error)) from error
        self._write(uid, source, result)
        self.queue.move(uid, "upscaled")
        self.journal.say(f"upscaled {uid} in {result.seconds:.1f} s", "upscaled")

    def _write(self, uid: str, source: Source, result: Upscaled) -> None:
        output = self.config.output
        assert source.original is not None
        derived = derive(source, result, marked=output.burn_in)
        if output.uncertainty:
            if result.spread is None:
                raise Fault("the server gives no uncertainty with these options")
            save(self.storage.map(uid), map_uncertainty(derived, source.original, result))
        if output.compress is not None:
            compress(derived, output.compress)  # type: ignore[arg-type]
        save(self.storage.derived(uid), derived)


def save(path: Path, dataset: Dataset) -> None:
    """Write a DICOM file durably. Raises OSError."""
    write_durably(path, lambda partial: dataset.save_as(partial, enforce_file_format=True))
