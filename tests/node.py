"""Parts of a DICOM node for tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset
from pydicom.config import disable_value_validation
from pydicom.uid import (
    AllTransferSyntaxes,
    ComputedRadiographyImageStorage,
    ExplicitVRLittleEndian,
    ParametricMapStorage,
)
from pynetdicom import AE, evt

from client.formats.dicom_original import CLASSES
from client.node.config import Config, read_config
from client.node.journal import Journal
from client.node.queue import Queue
from client.node.receive import Receiver
from client.node.storage import Storage
from pipeline.serving.local_server import free_ports
from tests.dicom_files import make_radiograph

AE_TITLE = "NODE"

LEAVES_SOCKETS = [
    pytest.mark.usefixtures("collected"),
    pytest.mark.filterwarnings(
        "ignore:Exception ignored in. <(socket.socket|ssl.SSLSocket):pytest.PytestUnraisableExceptionWarning"
    ),
]
"""For tests of connections that fail: pynetdicom leaves their sockets to the garbage collector."""


def make_config(folder: Path, listen: str = "", server: str = "", destination: str = "", more: str = "") -> Config:
    """A configuration with more keys in its sections, and more sections."""
    dicom, pacs, status = free_ports(3)
    path = folder / "node.toml"
    path.write_text(
        f'[listen]\nae_title = "{AE_TITLE}"\nfolder = "{folder / "node"}"\nport = {dicom}\n{listen}\n'
        f"[server]\n{server}\n[status]\nport = {status}\n"
        f'[destination]\nae_title = "PACS"\nhost = "127.0.0.1"\n'
        + (destination if "port" in destination else f"port = {pacs}\n{destination}")
        + f"\n{more}"
    )
    return read_config(path)


def radiograph(uid: str = "1.2.3", **tags: Any) -> Dataset:
    """A chest radiograph with a UID of its own; tags that are None are removed."""
    made = {name: tags.pop(name) for name in ("bits", "shape") if name in tags}
    dataset = make_radiograph(tags.pop("kind", ComputedRadiographyImageStorage), **made)
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = uid
    with disable_value_validation():
        for name, value in tags.items():
            if name in dataset:  # an element remembers how to validate its value
                delattr(dataset, name)
            if value is not None:
                setattr(dataset, name, value)
    return dataset


@dataclass
class Parts:
    """What a running receiver writes to."""

    config: Config
    storage: Storage
    queue: Queue
    journal: Journal


@contextmanager
def opened(config: Config) -> Iterator[Parts]:
    """Open what a node writes to for the duration of the block."""
    with ExitStack() as stack:
        storage = Storage(config.listen.folder)
        stack.callback(storage.close)
        queue = Queue(storage.folder / "queue.db")
        stack.callback(queue.close)
        yield Parts(config, storage, queue, Journal())


@contextmanager
def receiving(config: Config) -> Iterator[Parts]:
    """Receive for the duration of the block, and do nothing with what is received."""
    with opened(config) as parts, Receiver(config, parts.storage, parts.queue, parts.journal).running():
        yield parts


def send(
    port: int,
    *datasets: Dataset,
    ae_title: str = AE_TITLE,
    caller: str = "XRAY",
    kinds: tuple[Any, ...] = (*CLASSES, ParametricMapStorage),
    tls: Any = None,
) -> list[Dataset]:
    """Send images over one association; return the statuses. Raises ConnectionError without an association."""
    ae = AE(ae_title=caller)
    for kind in kinds:
        ae.add_requested_context(kind, str(ExplicitVRLittleEndian))
    association = ae.associate("127.0.0.1", port, ae_title=ae_title, tls_args=tls)
    if not association.is_established:
        raise ConnectionError("rejected" if association.is_rejected else "aborted")
    try:
        return [association.send_c_store(dataset) for dataset in datasets]
    finally:
        association.release()


class Pacs:
    """A PACS that keeps what it gets, or answers with a status."""

    def __init__(self, port: int, kinds: tuple[Any, ...] = (*CLASSES, ParametricMapStorage)) -> None:
        self.port, self.status, self.kinds = port, 0x0000, kinds
        self.images: list[Dataset] = []

    def on_store(self, event: evt.Event) -> int:
        if self.status == 0:
            self.images.append(event.dataset)
        return self.status

    @contextmanager
    def running(self, tls: Any = None) -> Iterator[None]:
        ae = AE(ae_title="PACS")
        ae.require_called_aet = True
        for kind in self.kinds:
            ae.add_supported_context(kind, [str(syntax) for syntax in AllTransferSyntaxes])
        handlers: list[Any] = [(evt.EVT_C_STORE, self.on_store)]
        server = ae.start_server(("127.0.0.1", self.port), block=False, evt_handlers=handlers, ssl_context=tls)
        assert server is not None
        try:
            yield
        finally:
            ae.shutdown()
