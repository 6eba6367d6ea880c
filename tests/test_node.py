"""storescu → node → Triton → Orthanc: every accepted image arrives exactly once, whatever is killed meanwhile."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.node import radiograph, running_node, send_all, wait_for
from benchmarks.orthanc import ORTHANC, Orthanc
from pipeline import ROOT
from pipeline.serving.local_server import free_ports
from tests.conftest import RunningServer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not ORTHANC, reason="there is no Orthanc: apt-get install orthanc"),
    pytest.mark.skipif(not shutil.which("storescu"), reason="there is no storescu: apt-get install dcmtk"),
]


def test_every_accepted_image_arrives_exactly_once(server: RunningServer, tmp_path: Path) -> None:
    with Orthanc(tmp_path) as orthanc, running_node(tmp_path, server.url("grpc"), orthanc) as node:
        outcome = send_all(node, orthanc, None, tmp_path, images=22, kills=2, restarts=0)
    assert (len(outcome.accepted), len(outcome.refused)) == (21, 1)
    assert (outcome.lost, outcome.doubled, outcome.uncalled, outcome.unnamed) == (set(), set(), set(), set())
    said = node.log.read_text()
    assert "Testperson" not in said and "Traceback" not in said
    assert said.count("ready: SUPERRES") == 3
    assert not list((tmp_path / "node" / "received").iterdir()), "nothing is kept"


def test_it_ends_when_told_and_keeps_what_waits(server: RunningServer, tmp_path: Path) -> None:
    with Orthanc(tmp_path) as orthanc, running_node(tmp_path, server.url("grpc"), orthanc) as node:
        orthanc.stop()
        path = tmp_path / "a.dcm"
        radiograph(1).save_as(path, enforce_file_format=True)
        assert node.send(path) == "Success"
        assert node.process is not None
        began = time.monotonic()
        node.process.send_signal(signal.SIGTERM)
        assert node.process.wait(30) == 0
        assert time.monotonic() - began < 10
        assert node.log.read_text().rstrip().endswith("ended, 1 images waiting")
        assert node.send(path) is None
        node.start()
        orthanc.start()
        wait_for(lambda: not node.waiting(), "the end of the queue")
        assert len(orthanc.instances()) == 1
        found = json.loads(node.get("/queue") or "")
        assert (found["images"]["sent"], found["down"]) == (1, {})


def test_orthanc_sends_to_the_node(server: RunningServer, tmp_path: Path) -> None:
    """By the script of docs/how-to/pacs.md; what the node sends back is not sent to it again."""
    guide = (ROOT / "docs" / "how-to" / "pacs.md").read_text()
    script = tmp_path / "send.lua"
    script.write_text(guide.partition("```lua\n")[2].partition("```")[0])
    (port,) = free_ports(1)
    settings = {"LuaScripts": [str(script)], "DicomModalities": {"superres": ["SUPERRES", "127.0.0.1", port]}}
    with Orthanc(tmp_path, **settings) as orthanc:
        with running_node(tmp_path, server.url("grpc"), orthanc, dicom=port) as node:
            path = tmp_path / "a.dcm"
            radiograph(1).save_as(path, enforce_file_format=True)
            orthanc.store(path.read_bytes())
            wait_for(lambda: len(orthanc.instances()) == 2, "the result")
            wait_for(lambda: not node.waiting(), "the end of the queue")
            assert "refused" not in node.log.read_text()


def test_two_nodes_do_not_share_a_folder(server: RunningServer, tmp_path: Path) -> None:
    with Orthanc(tmp_path) as orthanc, running_node(tmp_path, server.url("grpc"), orthanc):
        command = [sys.executable, "-m", "client.node", str(tmp_path / "node.toml")]
        second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert second.returncode == 1
        assert second.stderr == f"error: another node uses the folder '{tmp_path / 'node'}'\n"
