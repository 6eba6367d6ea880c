"""Receive images by C-STORE: success is answered only for what is on disk and in the queue."""

from __future__ import annotations

import hashlib
import io
import re
import sqlite3
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pydicom import Dataset
from pydicom.filereader import _read_file_meta_info, read_preamble
from pydicom.uid import AllTransferSyntaxes
from pynetdicom import AE, evt
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]
from pynetdicom.transport import ThreadedAssociationServer

from client.dicom import UID_PATTERN
from client.dicom.derive import NAME
from client.formats.dicom import check_length, parse
from client.formats.dicom_original import CLASSES
from client.formats.source import Choice, FormatError
from client.node.config import Config
from client.node.journal import Journal
from client.node.queue import Queue
from client.node.storage import Storage, write_durably
from pipeline.spec import MAX_TILED_SIDE, MIN_SIDE

SUCCESS, DUPLICATE, NO_SPACE, WRONG, FAILED = 0x0000, 0x0111, 0xA700, 0xA900, 0xC000
"""Statuses (PS3.4 B.2.3, PS3.7 C): stored; the UID is another image's; the disk is full; not taken; not understood."""
COMMENT = 64
"""Maximum characters of a status's comment."""
END_LIMIT = 1.0
"""Maximum seconds for associations to end when the node stops."""
HANDSHAKE = 10.0
"""Maximum seconds for TLS to begin."""
FLAGS = re.compile(r"( for|: give) --format \w+$")
"""Ends of messages that name options of the command."""


class Refused(Exception):
    """An image is not taken; the message says why."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def digest_of(file: bytes) -> str:
    """Return the SHA-256 of a file's data set, in its transfer syntax."""
    stream = io.BytesIO(file)
    read_preamble(stream, force=True)
    _read_file_meta_info(stream)
    return hashlib.sha256(stream.read()).hexdigest()


def check(file: bytes, config: Config) -> str:
    """Return the SOP Instance UID of an image that the node takes; its pixels are not decoded.

    Raises:
        Refused: it does not.
    """
    listen, factor = config.listen, config.output.downscale
    try:
        dataset, keyword = parse(file, Choice(original=True), [])
        if not dataset.file_meta.TransferSyntaxUID.is_encapsulated:
            check_length(dataset, keyword, [])
    except FormatError as error:
        raise Refused(WRONG, FLAGS.sub("", " ".join(str(error).split()))) from None
    except Exception as error:  # damage can make a parser fail in any way, with messages that quote the data
        raise Refused(FAILED, f"is not a readable DICOM image ({type(error).__name__})") from None
    uid = str(dataset.SOPInstanceUID)
    if any(item.get("Manufacturer") == NAME for item in dataset.get("ContributingEquipmentSequence") or ()):
        raise Refused(WRONG, "is a result already")
    modality = str(dataset.get("Modality") or "")
    if listen.modalities and modality not in listen.modalities:
        raise Refused(WRONG, f"is modality '{code(modality)}', must be {', '.join(listen.modalities)}")
    part = str(dataset.get("BodyPartExamined") or "").strip().upper()
    if listen.body_parts and part not in listen.body_parts and not (not part and listen.missing_body_part):
        raise Refused(WRONG, f"is body part '{code(part)}', must be {', '.join(listen.body_parts)}")
    height, width = dataset.Rows // factor, dataset.Columns // factor
    if not MIN_SIDE <= min(height, width) <= max(height, width) <= MAX_TILED_SIDE:
        raise Refused(WRONG, f"is {dataset.Columns}×{dataset.Rows}, must be {MIN_SIDE}–{MAX_TILED_SIDE} per side")
    return uid


def code(value: str) -> str:
    """Return a coded value as it may be logged: whatever else was typed there, it names no patient."""
    return value if re.fullmatch(r"[A-Z0-9 _]{1,16}", value) else "?" * bool(value)


class Receiver:
    """Answers C-ECHO and C-STORE."""

    def __init__(self, config: Config, storage: Storage, queue: Queue, journal: Journal) -> None:
        self.config, self.storage, self.queue, self.journal = config, storage, queue, journal
        self._one_at_a_time = threading.Lock()

    def store(self, file: bytes, uid: str, caller: str) -> int:
        """Keep an image; return the status.

        Raises:
            Refused: the image is not taken.
            OSError: the disk is full, or fails.
            sqlite3.Error: the same.
        """
        if check(file, self.config) != uid:
            raise Refused(WRONG, "has another SOPInstanceUID than the request")
        digest = digest_of(file)
        with self._one_at_a_time:
            found = self.queue.find(uid, digest)
            if found == "other":
                raise Refused(DUPLICATE, "has the SOPInstanceUID of another image")
            if found == "same":
                self.journal.say(f"received {uid} again from {caller}", "duplicates")
                return SUCCESS
            write_durably(self.storage.received(uid), lambda path: path.write_bytes(file))
            self.queue.add(uid, digest)
            if found == "dead":
                self.storage.forget_dead(uid)
        self.journal.say(f"accepted {uid} from {caller}", "accepted")
        return SUCCESS

    def on_store(self, event: evt.Event) -> Dataset:
        """Answer a C-STORE request."""
        caller = ae_title_of(event)
        uid = str(event.request.AffectedSOPInstanceUID or "")  # type: ignore[union-attr]
        uid = uid if re.fullmatch(UID_PATTERN, uid) else ""
        try:
            if not uid:
                raise Refused(WRONG, "has no valid SOPInstanceUID")
            return answer(self.store(event.encoded_dataset(), uid, caller))
        except Refused as error:
            status, reason = error.status, str(error)
        except (OSError, sqlite3.Error) as error:
            status, reason = NO_SPACE, f"cannot be kept: {getattr(error, 'strerror', None) or error}"
        except Exception as error:  # whose message may quote the data
            status, reason = FAILED, f"cannot be taken ({type(error).__name__})"
        self.journal.refuse(uid, caller, f"{reason} (status {status:04X})")
        return answer(status, reason)

    def on_echo(self, event: evt.Event) -> int:
        self.journal.say(f"echo from {ae_title_of(event)}", "echoes")
        return SUCCESS

    def on_rejected(self, event: evt.Event) -> None:
        called = str(event.assoc.requestor.primitive.called_ae_title or "").strip()  # type: ignore[union-attr]
        self.journal.say(
            f"rejected an association of {ae_title_of(event)} with {called or '?'}: the node is "
            f"{self.config.listen.ae_title}, callers are {', '.join(self.config.listen.calling_ae_titles) or 'all'}",
            "rejected_associations",
        )

    def on_accepted(self, event: evt.Event) -> None:
        """Name what a caller wants to send if it is nothing that the node takes; many callers offer all they know."""
        if not event.assoc.accepted_contexts:
            names = {getattr(context.abstract_syntax, "name", "?") for context in event.assoc.rejected_contexts}
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            what = ", ".join(sorted(names)[:3]) + more
            self.journal.refuse("", ae_title_of(event), f"{what}: this class, or its compression, is not taken")

    @contextmanager
    def running(self) -> Iterator[ThreadedAssociationServer]:
        """Listen for the duration of the block. Raises OSError if the port is taken."""
        listen = self.config.listen
        ae = AE(ae_title=listen.ae_title)
        ae.require_called_aet = True
        ae.require_calling_aet = list(listen.calling_ae_titles)
        ae.maximum_associations = listen.associations
        ae.maximum_pdu_size = 0
        ae.add_supported_context(Verification)
        for kind in CLASSES:
            ae.add_supported_context(kind, [str(syntax) for syntax in AllTransferSyntaxes])
        handlers: list[Any] = [
            (evt.EVT_C_STORE, self.on_store),
            (evt.EVT_C_ECHO, self.on_echo),
            (evt.EVT_REJECTED, self.on_rejected),
            (evt.EVT_ACCEPTED, self.on_accepted),
        ]
        server = ae.make_server(
            (listen.host, listen.port),
            evt_handlers=handlers,
            server_class=Listener,
            tls=self.config.listen_tls,
            journal=self.journal,
        )
        ae._servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True, name="listen").start()
        try:
            yield server
        finally:
            # pynetdicom aborts those in progress, and one that is just ending fails by that
            deadline = time.monotonic() + END_LIMIT
            while ae.active_associations and time.monotonic() < deadline:
                time.sleep(0.01)
            ae.shutdown()


class Listener(ThreadedAssociationServer):
    """pynetdicom's server, which begins TLS in a thread of each connection: a silent caller holds up no other."""

    daemon_threads = True

    def __init__(self, *args: Any, tls: ssl.SSLContext | None, journal: Journal, **options: Any) -> None:
        self.tls, self.journal = tls, journal
        super().__init__(*args, **options)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        if self.tls is not None:
            try:
                request.settimeout(HANDSHAKE)
                request = self.tls.wrap_socket(request, server_side=True)
                request.settimeout(None)
            except OSError as error:
                why = getattr(error, "reason", None) or error.strerror or "no answer"
                self.journal.say(f"rejected a connection from {client_address[0]}: TLS: {why}", "rejected_connections")
                self.shutdown_request(request)
                return
        super().process_request_thread(request, client_address)


def ae_title_of(event: evt.Event) -> str:
    """Return the AE title of the caller."""
    primitive = event.assoc.requestor.primitive
    return str(primitive.calling_ae_title if primitive else "").strip() or "?"


def answer(status: int, reason: str = "") -> Dataset:
    """Return the status of a response, with a comment."""
    dataset = Dataset()
    dataset.Status = status
    if reason:
        dataset.ErrorComment = reason.encode("ascii", "replace").decode()[:COMMENT]
    return dataset
