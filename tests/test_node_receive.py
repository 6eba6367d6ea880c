"""The node's receiver: what it takes is on disk, what it refuses has a status and a line that names no patient."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.uid import ParametricMapStorage, SecondaryCaptureImageStorage

from client.node.receive import DUPLICATE, FAILED, NO_SPACE, WRONG
from tests.certificates import make_ca, make_certificate
from tests.conftest import wait_for
from tests.dicom_files import make_result, read_original, to_bytes
from tests.node import LEAVES_SOCKETS, make_config, radiograph, receiving, send

pytestmark = LEAVES_SOCKETS

needs_dcmtk = pytest.mark.skipif(not shutil.which("storescu"), reason="there is no storescu: apt-get install dcmtk")


def test_success_means_on_disk_and_in_the_queue(tmp_path: Path) -> None:
    with receiving(make_config(tmp_path)) as node:
        (status,) = send(node.config.listen.port, radiograph())
        assert status.Status == 0
        assert node.queue.uids("received") == {"1.2.3"}
        kept = pydicom.dcmread(node.storage.received("1.2.3"))
        assert kept.PixelData == radiograph().PixelData and kept.PatientName == "Röntgen^Anna"


def test_the_same_image_again_is_one_image(tmp_path: Path) -> None:
    with receiving(make_config(tmp_path)) as node:
        again, other = radiograph(), radiograph(StudyID="another")
        statuses = send(node.config.listen.port, radiograph(), again, other)
        assert [status.Status for status in statuses] == [0, 0, DUPLICATE]
        assert node.journal.counts["duplicates"] == 1
        assert node.queue.counts()["received"] == 1
        assert pydicom.dcmread(node.storage.received("1.2.3")).StudyID == "1"
        assert "has the SOPInstanceUID of another image" in node.journal.refused[0]["reason"]


def test_what_was_given_up_may_be_sent_again(tmp_path: Path) -> None:
    with receiving(make_config(tmp_path)) as node:
        send(node.config.listen.port, radiograph())
        node.storage.bury("1.2.3", "reason")
        node.queue.move("1.2.3", "dead", "reason")
        node.storage.remove("1.2.3")
        assert send(node.config.listen.port, radiograph())[0].Status == 0
        assert node.queue.uids("received") == {"1.2.3"} and node.storage.received("1.2.3").exists()
        assert list((node.storage.folder / "dead").iterdir()) == []


def colour() -> Any:
    dataset = radiograph(kind=SecondaryCaptureImageStorage, bits=8)
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "RGB", 0
    dataset.PixelData = 3 * dataset.PixelData
    return dataset


def result_of_ours() -> Any:
    from client.dicom.derive import derive

    source = read_original(to_bytes(radiograph()))
    return derive(source, make_result(source))


BAD = {
    "colour": (colour, WRONG, "is RGB, must be MONOCHROME1 or 2"),
    "half": (lambda: radiograph(PixelData=bytes(1000)), WRONG, "is cut off: 1000 of 6144 bytes of pixels"),
    "no pixels": (lambda: radiograph(PixelData=None), WRONG, "is DICOM without pixels"),
    "no study": (lambda: radiograph(StudyInstanceUID=None), WRONG, "has no StudyInstanceUID, which a derived image"),
    "modality": (lambda: radiograph(Modality="MG"), WRONG, "is modality 'MG', must be CR, DX, OT"),
    "free text": (lambda: radiograph(Modality="Anna"), WRONG, "is modality '?', must be CR, DX, OT"),
    "body part": (lambda: radiograph(BodyPartExamined="FOOT"), WRONG, "is body part 'FOOT', must be CHEST, THORAX"),
    "no rows": (lambda: radiograph(Rows=None), WRONG, "it has no Rows"),
    "a result": (result_of_ours, WRONG, "is a result already"),
    "size": (lambda: radiograph(Rows=1, Columns=3072), WRONG, "is 3072×1, must be 2–2048 per side"),
    "frames": (lambda: radiograph(NumberOfFrames=2), WRONG, "has 2 frames, must have one"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_images_are_refused_with_a_reason(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    make, status, reason = BAD[name]
    with receiving(make_config(tmp_path)) as node, caplog.at_level("INFO", "client.node"):
        found, fine = send(node.config.listen.port, make(), radiograph("9.9"))
        assert (found.Status, fine.Status) == (status, 0), "one bad image does not stop the others"
        assert reason in node.journal.refused[0]["reason"]
        assert found.ErrorComment and len(found.ErrorComment) <= 64
        assert node.storage.uids() == {"9.9"}
    said = caplog.text
    assert reason in said and "Anna" not in said and "ntgen" not in said
    assert f"refused {make().SOPInstanceUID} from XRAY: " in said


def test_what_is_not_dicom_is_refused(tmp_path: Path) -> None:
    from client.node.receive import Refused, check

    with pytest.raises(Refused, match="DICOM") as caught:
        check(b"\0" * 128 + b"DICM" + b"\xff" * 1000, make_config(tmp_path))
    assert caught.value.status in (FAILED, WRONG)


def test_filters_are_the_configurations(tmp_path: Path) -> None:
    config = make_config(tmp_path, 'modalities = []\nbody_parts = ["FOOT"]\nmissing_body_part = false')
    images = [radiograph("1.1", BodyPartExamined="FOOT", Modality="MG"), radiograph("1.2", BodyPartExamined=None)]
    with receiving(config) as node:
        statuses = send(config.listen.port, *images, radiograph("1.3"))
        assert [status.Status for status in statuses] == [0, WRONG, WRONG]
        assert node.storage.uids() == {"1.1"}


@pytest.mark.parametrize(("ae_title", "caller"), [("OTHER", "XRAY"), ("NODE", "STRANGER")])
def test_other_ae_titles_are_rejected(
    tmp_path: Path, ae_title: str, caller: str, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        receiving(make_config(tmp_path, 'calling_ae_titles = ["XRAY"]')) as node,
        caplog.at_level("INFO", "client.node"),
    ):
        with pytest.raises(ConnectionError, match="rejected"):
            send(node.config.listen.port, radiograph(), ae_title=ae_title, caller=caller)
        assert f"rejected an association of {caller} with {ae_title}: the node is NODE, callers are XRAY" in caplog.text
        assert send(node.config.listen.port, radiograph())[0].Status == 0


def test_a_class_that_is_not_taken_is_named(tmp_path: Path) -> None:
    with receiving(make_config(tmp_path)) as node:
        send(node.config.listen.port, radiograph())
        assert not node.journal.refused, "callers offer more than they send"
        with pytest.raises(ConnectionError, match="aborted"):
            send(node.config.listen.port, kinds=(ParametricMapStorage,))
        assert node.journal.refused[0]["reason"].startswith("Parametric Map Storage: this class")


def test_a_full_disk_is_told_and_nothing_is_half_kept(small_disk: Path, tmp_path: Path) -> None:
    folder = small_disk / "node"
    config = make_config(tmp_path)
    config = replace(config, listen=replace(config.listen, folder=folder))
    with receiving(config) as node:
        filler = small_disk / "filler"
        with pytest.raises(OSError, match="No space"):
            filler.write_bytes(bytes(2**21))
        (status,) = send(config.listen.port, radiograph())
        assert status.Status == NO_SPACE and "No space left" in status.ErrorComment
        assert node.storage.uids() == set()
        filler.unlink()
        assert send(config.listen.port, radiograph())[0].Status == 0


def test_tls(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ca, stranger = make_ca(tmp_path, "ca"), make_ca(tmp_path, "stranger")
    own, caller, false = (make_certificate(by, name) for by, name in ((ca, "own"), (ca, "caller"), (stranger, "false")))
    keys = f"tls_cert = '{own.chain}'\ntls_key = '{own.key}'\ntls_ca = '{ca.chain}'"
    with receiving(make_config(tmp_path, keys)) as node, caplog.at_level("INFO", "client.node"):
        port = node.config.listen.port

        def context(certificate: Any) -> tuple[ssl.SSLContext, str]:
            made = ssl.create_default_context(cafile=ca.chain)
            if certificate is not None:
                made.load_cert_chain(certificate.chain, certificate.key)
            return made, "localhost"

        with socket.create_connection(("127.0.0.1", port)):  # one that says nothing holds up no other
            assert send(port, radiograph(), tls=context(caller))[0].Status == 0
            for count, bad in enumerate((context(None), context(false), None), 1):
                with pytest.raises(ConnectionError, match="aborted"):
                    send(port, radiograph("9.9"), tls=bad)
                wait_for(lambda count=count: node.journal.counts["rejected_connections"] == count)  # type: ignore[misc]
        assert "rejected a connection from 127.0.0.1: TLS: " in caplog.text
        assert node.storage.uids() == {"1.2.3"}


@needs_dcmtk
def test_dcmtk_echoes_and_stores(tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    path.write_bytes(to_bytes(radiograph()))
    with receiving(make_config(tmp_path)) as node:
        where = ["-aec", "NODE", "127.0.0.1", str(node.config.listen.port)]
        subprocess.run(["echoscu", *where], check=True)
        subprocess.run(["storescu", *where, path], check=True)
        assert node.journal.counts == {"echoes": 1, "accepted": 1}
        path.write_bytes(to_bytes(radiograph("9.9", BodyPartExamined="FOOT")))
        said = subprocess.run(["storescu", "-v", *where, path], capture_output=True, text=True, check=False)
        assert "Error: DataSetDoesNotMatchSOPClass" in said.stdout + said.stderr
        wrong = subprocess.run(
            ["storescu", "-aec", "OTHER", *where[2:], path], capture_output=True, text=True, check=False
        )
        assert wrong.returncode != 0 and "Called AE Title Not Recognized" in wrong.stdout + wrong.stderr
