"""What a server keeps of its results: a cache, metrics, an audit record, and nothing of images or names in its log."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc
from pydicom.data import get_testdata_file
from tritonclient.utils import InferenceServerException

from client import Client, ServerLost
from pipeline import ROOT
from pipeline.method.images import Image
from pipeline.remote import infer
from pipeline.serving.processes import children
from pipeline.spec import CALLER, INSTANCES, PROBE_VARIABLE
from tests.conftest import RunningServer, StartServer

IMAGE = np.random.default_rng(7).random((48, 40), dtype=np.float32)


@dataclass(frozen=True)
class Kept:
    server: RunningServer
    audit: Path

    def metric(self, name: str, label: str = "") -> float:
        """Return the value of a metric, summed over its labels that contain ``label``."""
        with urllib.request.urlopen(f"http://localhost:{self.server.metrics}/metrics") as answer:
            text = answer.read().decode()
        found = re.findall(rf"^cxr_superres_{name}(\{{.*\}})? (\S+)$", text, re.MULTILINE)
        return sum(float(value) for labels, value in found if label in labels)

    def records(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.audit.read_text().splitlines()] if self.audit.exists() else []


@pytest.fixture(scope="module")
def kept(start_server: StartServer, tmp_path_factory: pytest.TempPathFactory) -> Kept:
    audit = tmp_path_factory.mktemp("audit") / "audit.jsonl"
    options = ["--cache=50", f"--audit={audit}", "--no-check"]
    return Kept(start_server(ROOT / "model_repository", options=options), audit)


def probe_of(server: RunningServer) -> str:
    """Return the secret ID of the supervisor's requests, which its log does not tell."""
    (triton,) = children(server.process.pid)
    (found,) = re.findall(rf"{PROBE_VARIABLE}=(\w+)", Path(f"/proc/{triton}/environ").read_text())
    assert found not in server.log.read_text()
    return str(found)


def hash_of(image: Image) -> str:
    return hashlib.sha256(repr(image.shape).encode() + image.tobytes()).hexdigest()


def test_the_same_request_gets_the_same_result_from_the_cache_and_others_do_not(kept: Kept) -> None:
    with Client(kept.server.url("grpc")) as client:
        first = client.upscale(IMAGE, seed=1)
        hits = kept.metric("cache_hits_total")
        for _ in range(8):  # two instances have a cache each
            again = client.upscale(IMAGE, seed=1)
            np.testing.assert_array_equal(again.image, first.image)
            np.testing.assert_array_equal(again.spread, first.spread)  # type: ignore[arg-type]
        assert kept.metric("cache_hits_total") >= hits + 7
        hits = kept.metric("cache_hits_total")
        for options in ({"seed": 2}, {"steps": 2}, {"samples": 2}, {"faithful": False}, {"degradation": "area"}):
            client.upscale(IMAGE, **({"seed": 1} | options))
        client.upscale(IMAGE * np.float32(0.5), seed=1)
        client.upscale(IMAGE, seed=1, pixel_mm=0.5)
        assert kept.metric("cache_hits_total") == hits


def test_a_known_result_has_every_output_that_is_asked_for(kept: Kept) -> None:
    image = IMAGE[None, :32]
    with tritonclient.grpc.InferenceServerClient(kept.server.url("grpc")) as client:
        for _ in range(3):
            infer(client, "superres", {"image": image}, ["upscaled"])
            upscaled, spread, error = infer(client, "superres", {"image": image}, ["upscaled", "spread", "lr_error"])
            assert (upscaled.shape, spread.shape, error.shape) == ((1, 128, 160), (1, 128, 160), (1, 1))


def test_images_are_counted_by_their_lr_error(kept: Kept) -> None:
    images, below, total = (kept.metric("images_total"), kept.metric("lr_error_bucket", '"1"'), 0.0)
    with Client(kept.server.url("grpc")) as client:
        total = sum(client.upscale(np.full((24, 24), 0.1 * k), seed=k).lr_error for k in range(1, 5))
    assert kept.metric("images_total") == images + 4
    assert kept.metric("lr_error_bucket", "+Inf") == kept.metric("images_total")
    assert kept.metric("lr_error_bucket", '"1"') == below + 4
    assert total < 4 / 255


def test_every_result_is_recorded_without_its_image(kept: Kept) -> None:
    before = len(kept.records())
    with tritonclient.grpc.InferenceServerClient(kept.server.url("grpc")) as client:
        inputs = {"image": IMAGE[None], "seed": np.array([[5]])}
        headers = {CALLER: "ward 7"}
        (upscaled,) = infer(client, "superres", inputs, ["upscaled"], headers=headers, request_id="study 3")
        infer(client, "superres", inputs, ["upscaled"], request_id=probe_of(kept.server))
    (record,) = kept.records()[before:]
    assert record["input_sha256"] == hash_of(IMAGE)
    assert record["output_sha256"] == hash_of(upscaled[0])
    assert (record["seed"], record["steps"], record["sampler"]) == (5, 1, "ddim")
    assert (record["request"], record["caller"]) == ("study 3", "ward 7")
    assert record["model"] == hashlib.sha256((ROOT / "model_repository" / "SHA256SUMS").read_bytes()).hexdigest()
    assert kept.audit.stat().st_mode & 0o077 == 0


def test_without_its_record_a_result_is_withheld_and_the_log_says_why_once(
    start_server: StartServer, tmp_path: Path
) -> None:
    audit, image = tmp_path / "audit", IMAGE[:16, :16]
    audit.symlink_to("/dev/full")
    server = start_server(ROOT / "model_repository", options=[f"--audit={audit}", "--no-check"])
    with Client(server.url("grpc"), wait=0) as client:
        for _ in range(6):
            with pytest.raises(ServerLost, match=r"audit record cannot be written \(No space left on device\)"):
                client.upscale(image)
        audit.unlink()
        for _ in range(6):
            client.upscale(image)
    assert len(audit.read_text().splitlines()) == 6
    log = server.log.read_text()
    for said in (f"'{audit}' cannot be written (No space left on device)", f"'{audit}' can be written again"):
        assert 1 <= log.count(said) <= INSTANCES


def test_the_supervisors_images_are_not_counted(kept: Kept) -> None:
    images = kept.metric("images_total")
    with tritonclient.grpc.InferenceServerClient(kept.server.url("grpc")) as client:
        infer(client, "superres", {"image": IMAGE[None]}, ["upscaled"], request_id=probe_of(kept.server))
    assert kept.metric("images_total") == images


def test_no_name_reaches_the_log_or_the_record(kept: Kept, tmp_path: Path) -> None:
    """Of a file, and of the patient in it."""
    source = get_testdata_file("RG1_UNCR.dcm")
    assert source is not None
    from pydicom import dcmread

    dataset = dcmread(source)
    dataset.PatientName = "Mustermann^Erika"
    path = tmp_path / "Erika Mustermann.dcm"
    dataset.save_as(path)
    command = [sys.executable, "client/upscale.py", str(path), "--downscale=8", "--url", kept.server.url("grpc")]
    result = subprocess.run([*command, "-o", str(tmp_path / "out.png")], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    for text in (kept.server.log.read_text(), kept.audit.read_text()):
        assert "ustermann" not in text and "Erika" not in text


def test_a_refusal_is_logged_with_its_reason_and_without_what_was_sent(kept: Kept) -> None:
    inputs = {"image": IMAGE[None], "sampler": np.array([["Mustermann"]], np.object_)}
    with tritonclient.grpc.InferenceServerClient(kept.server.url("grpc")) as client:
        with pytest.raises(InferenceServerException, match="'sampler' must be one of ddpm, ddim, got 'Mustermann'"):
            infer(client, "superres", inputs, ["upscaled"], request_id=f"study 4{'x' * 100}")
    log = kept.server.log.read_text()
    assert f"superres: request 'study 4{'x' * 57}' is not allowed: 'sampler' must be one of ddpm, ddim\"" in log
    assert "Mustermann" not in log
