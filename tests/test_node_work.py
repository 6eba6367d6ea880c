"""The node's worker: results arrive once, what is down is waited for, what is wrong with an image ends in a folder."""

from __future__ import annotations

import re
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom.uid import ComputedRadiographyImageStorage, SecondaryCaptureImageStorage

from client import ServerError
from client.node.config import Config
from client.node.journal import Journal
from client.node.queue import Queue
from client.node.receive import digest_of
from client.node.storage import Storage
from client.node.work import Down, Fault, Worker
from client.reader import Reader
from tests.certificates import make_ca, make_certificate
from tests.conftest import RunningServer, wait_for
from tests.dicom_files import to_bytes
from tests.node import LEAVES_SOCKETS, Pacs, Parts, make_config, opened, radiograph

pytestmark = LEAVES_SOCKETS

FAST = "[retry]\ntries = 3\nfirst = 0.05\nlongest = 0.1\n[options]\nsteps = 2\n"


@contextmanager
def working(config: Config, *uids: str, damaged: bool = False, **tags: object) -> Iterator[Parts]:
    """A worker with images in its queue."""
    with opened(config) as parts:
        for uid in uids:
            file = to_bytes(radiograph(uid, **tags))
            parts.storage.received(uid).write_bytes(file[:3000] if damaged else file)
            parts.queue.add(uid, digest_of(file))
        worker = Worker(config, parts.storage, parts.queue, parts.journal)
        with worker.running():
            try:
                yield parts
            finally:
                worker.stop()
                for thread in worker.threads:
                    thread.join(30)


def wait_until_sent(node: Parts, count: int = 1) -> None:
    wait_for(lambda: node.queue.counts()["sent"] == count or node.queue.counts()["dead"])
    assert (node.queue.problems(), node.queue.counts()["sent"]) == ([], count)


def to(server: RunningServer) -> str:
    return f'url = "{server.url("grpc")}"\nrequests = 2'


def test_results_arrive_once_and_files_are_removed(server: RunningServer, tmp_path: Path) -> None:
    config = make_config(tmp_path, server=to(server), more=FAST)
    pacs = Pacs(config.destination.port)
    with pacs.running(), working(config, "1.1", "1.2", "1.3") as node:
        wait_until_sent(node, 3)
        sources = [image.SourceImageSequence[0].ReferencedSOPInstanceUID for image in pacs.images]
        assert sorted(sources) == ["1.1", "1.2", "1.3"]
        assert {(image.Rows, image.Columns) for image in pacs.images} == {(192, 256)}
        wait_for(lambda: not node.storage.uids() and not list((node.storage.folder / "derived").iterdir()))


@pytest.mark.slow
def test_an_image_above_512_pixels_is_upscaled_in_tiles(server: RunningServer, tmp_path: Path) -> None:
    config = make_config(tmp_path, server=to(server), more=FAST.replace("steps = 2", "degradation = 'area'"))
    pacs = Pacs(config.destination.port)
    with pacs.running(), working(config, "1.1", shape=(24, 600)) as node:
        wait_until_sent(node)
    (image,) = pacs.images
    assert (image.Rows, image.Columns) == (96, 2400)
    stored, source = (np.frombuffer(d.PixelData, "<u2").astype(int) for d in (image, radiograph(shape=(24, 600))))
    np.testing.assert_allclose(stored.reshape(24, 4, 600, 4).mean((1, 3)), source.reshape(24, 600), atol=1)


def test_the_uncertainty_goes_with_the_image(server: RunningServer, tmp_path: Path) -> None:
    output = "[output]\nuncertainty = true\nburn_in = true\ndownscale = 2\ncompress = 'jpeg-ls'\n"
    config = make_config(tmp_path, server=to(server), more=output + FAST)
    pacs = Pacs(config.destination.port)
    with pacs.running(), working(config, "1.1") as node:
        wait_until_sent(node)
    image, band = pacs.images
    assert band.SOPClassUID.name == "Parametric Map Storage"
    assert (image.Rows, image.BurnedInAnnotation) == (96, "YES")
    assert band.ReferencedSeriesSequence[0].SeriesInstanceUID == image.SeriesInstanceUID


def test_a_damaged_image_ends_with_a_reason(server: RunningServer, tmp_path: Path) -> None:
    config = make_config(tmp_path, server=to(server), more=FAST)
    with working(config, "1.1", damaged=True) as node:
        wait_for(lambda: node.queue.counts()["dead"])
        assert node.journal.counts["retries"] == 2, "the third try is the last"
        (problem,) = node.queue.problems()
        assert "is cut off" in str(problem["problem"])
        dead = node.storage.folder / "dead"
        wait_for(lambda: not node.storage.received("1.1").exists())
        assert {path.name for path in dead.iterdir()} == {"1.1.dcm", "1.1.txt"}
        assert (dead / "1.1.txt").read_text() == f"{problem['problem']}\n"


def test_a_server_that_is_down_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.node.work.WAIT", 0.1)
    config = make_config(tmp_path, server='url = "localhost:1"\nrequests = 1', more=FAST)
    with working(config, "1.1") as node:
        wait_for(lambda: "server" in node.journal.problems)
        assert "no server ready at localhost:1" in node.journal.problems["server"]
        assert node.queue.next("received") is not None and node.queue.problems() == []


@dataclass
class Failing:
    """A client of a server that fails for some images, or for all."""

    everything: bool

    def upscale(self, image: NDArray[np.float32], **_: object) -> None:
        if self.everything or image.shape != (8, 8):
            raise ServerError("no answer within 1 s")


def test_a_server_that_fails_for_one_image_only_is_not_down(tmp_path: Path) -> None:
    config = make_config(tmp_path, more=FAST)
    storage = Storage(config.listen.folder)
    queue = Queue(storage.folder / "queue.db")
    storage.received("1.1").write_bytes(to_bytes(radiograph("1.1")))
    worker = Worker(config, storage, queue, Journal())
    with Reader() as worker.reader:
        for everything, kind in ((False, Fault), (True, Down)):
            with pytest.raises(kind, match="no answer within 1 s"):
                worker._upscale(Failing(everything), "1.1")  # type: ignore[arg-type]
    queue.close()
    storage.close()


def test_options_that_the_servers_preset_does_not_allow_are_no_fault_of_images(
    server: RunningServer, tmp_path: Path
) -> None:
    config = make_config(tmp_path, server=to(server), more=FAST + 'start = "lr"\n')  # of preset paper only
    with working(config, "1.1") as node:
        wait_for(lambda: "server" in node.journal.problems)
        assert "does not allow these options: 'start'" in node.journal.problems["server"]
        assert node.queue.counts()["received"] == 1


def test_a_pacs_that_is_down_is_waited_for(server: RunningServer, tmp_path: Path) -> None:
    config = make_config(tmp_path, server=to(server), more=FAST)
    pacs = Pacs(config.destination.port)
    with working(config, "1.1") as node:
        wait_for(lambda: "destination" in node.journal.problems)
        problem = node.journal.problems["destination"]
        assert problem == f"PACS at 127.0.0.1:{pacs.port} cannot be reached: Connection refused"
        began = time.monotonic()
        while time.monotonic() < began + 1:  # many more tries than an image has
            assert node.queue.counts() == {"received": 0, "upscaled": 1, "sent": 0, "dead": 0}
        with pacs.running():
            wait_until_sent(node)
            assert node.journal.problems == {}


def test_a_pacs_without_space_is_waited_for_and_one_that_refuses_is_not(server: RunningServer, tmp_path: Path) -> None:
    config = make_config(tmp_path, server=to(server), more=FAST)
    pacs = Pacs(config.destination.port)
    pacs.status = 0xA700
    with pacs.running(), working(config, "1.1") as node:
        wait_for(lambda: "destination" in node.journal.problems)
        assert "out of resources (status A700)" in node.journal.problems["destination"]
        pacs.status = 0xC123
        wait_for(lambda: node.queue.counts()["dead"])
        assert (node.storage.folder / "dead" / "1.1.txt").read_text() == "the destination refuses it (status C123)\n"
        assert (node.storage.folder / "dead" / "1.1.derived.dcm").exists()


def test_an_instance_that_is_there_already_was_sent(server: RunningServer, tmp_path: Path) -> None:
    config = make_config(tmp_path, server=to(server), more=FAST)
    pacs = Pacs(config.destination.port)
    pacs.status = 0x0111
    with pacs.running(), working(config, "1.1") as node:
        wait_until_sent(node)


def test_a_class_that_the_pacs_does_not_take_is_named(server: RunningServer, tmp_path: Path) -> None:
    config = make_config(tmp_path, server=to(server), more=FAST)
    pacs = Pacs(config.destination.port, (SecondaryCaptureImageStorage,))
    with pacs.running(), working(config, "1.1") as node:
        wait_for(lambda: node.queue.counts()["dead"])
        name = ComputedRadiographyImageStorage.name
        assert (
            node.queue.problems()[0]["problem"] == f"the destination does not take {name} as Explicit VR Little Endian"
        )


@pytest.mark.parametrize("case", ["wrong title", "plain to TLS", "TLS to plain", "wrong CA"])
def test_a_pacs_that_does_not_fit_is_named(server: RunningServer, tmp_path: Path, case: str) -> None:
    ca, stranger = make_ca(tmp_path, "ca"), make_ca(tmp_path, "stranger")
    own = make_certificate(ca, "own")
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(own.chain, own.key)
    keys, context, message = {
        "wrong title": ("", None, "rejects NODE: Called AE title not recognised"),
        "plain to TLS": ("", tls, "aborts the association; does it require TLS?"),
        "TLS to plain": (f"tls = true\ntls_ca = '{ca.chain}'", None, "TLS: "),
        "wrong CA": (f"tls = true\ntls_ca = '{stranger.chain}'", tls, "TLS: .*certificate"),
    }[case]
    config = make_config(tmp_path, server=to(server), destination=keys, more=FAST)
    if case == "wrong title":
        config = replace(config, destination=replace(config.destination, ae_title="OTHER"))
    pacs = Pacs(config.destination.port)
    with pacs.running(context), working(config, "1.1") as node:
        wait_for(lambda: "destination" in node.journal.problems)
        assert re.search(message, node.journal.problems["destination"])
        assert node.queue.counts()["upscaled"] == 1


def test_a_pacs_by_tls_gets_results(server: RunningServer, tmp_path: Path) -> None:
    ca = make_ca(tmp_path, "ca")
    own = make_certificate(ca, "own")
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(own.chain, own.key)
    config = make_config(tmp_path, server=to(server), destination=f"tls = true\ntls_ca = '{ca.chain}'", more=FAST)
    pacs = Pacs(config.destination.port)
    with pacs.running(tls), working(config, "1.1") as node:
        wait_until_sent(node)
