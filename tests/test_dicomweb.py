"""The command fetches a study from a DICOMweb server, and stores the results there."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.orthanc import DICOMWEB, ORTHANC, Orthanc
from client.upscale import main
from pipeline import ROOT
from tests.conftest import RunningServer, wait_for
from tests.dicom_files import to_bytes
from tests.node import radiograph

needs_orthanc = pytest.mark.skipif(
    not (ORTHANC and DICOMWEB), reason="there is no Orthanc with DICOMweb: apt-get install orthanc orthanc-dicomweb"
)
STUDY = str(radiograph().StudyInstanceUID)


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    with Orthanc(tmp_path_factory.mktemp("orthanc")) as orthanc:
        orthanc.store(to_bytes(radiograph("1.1")))
        orthanc.store(to_bytes(radiograph("1.2", SeriesInstanceUID="5.5")))
        yield orthanc


@pytest.mark.slow
@needs_orthanc
def test_a_study_is_fetched_upscaled_and_stored(
    orthanc: Orthanc, server: RunningServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    at = ["--dicomweb", orthanc.dicomweb, "--study", STUDY, "--url", server.url("grpc"), "--steps", "2"]
    assert main([*at, "--series", "5.5", "-o", str(tmp_path / "out")]) == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["1.2_x4.dcm"]
    assert len(orthanc.instances()) == 2, "nothing was stored"
    for _ in range(2):
        assert main([*at, "--store"]) == 0
        assert f"2 of 2 results stored at {orthanc.dicomweb}" in capsys.readouterr().out
        assert len(orthanc.instances()) == 4, "results are no sources, and the same job gives the same instances"
    tags = [orthanc.tags(instance) for instance in orthanc.instances()]
    derived = [one for one in tags if one.get("SourceImageSequence")]
    sources = {one["SourceImageSequence"][0]["ReferencedSOPInstanceUID"] for one in derived}
    assert sources == {"1.1", "1.2"}
    assert {one["StudyInstanceUID"] for one in derived} == {STUDY}


@pytest.mark.slow
@needs_orthanc
def test_what_is_wrong_is_one_line(orthanc: Orthanc, capsys: pytest.CaptureFixture[str]) -> None:
    for url, study, message in (
        (orthanc.dicomweb, "9.9", f"{orthanc.dicomweb} has no CR, DX or Secondary Capture in study 9.9"),
        (f"http://127.0.0.1:{orthanc.http}/none", STUDY, "/none answers 404 Not Found"),
        ("http://127.0.0.1:1/dicom-web", STUDY, "http://127.0.0.1:1/dicom-web: cannot be reached"),
        ("ftp:1", STUDY, "'ftp:1' is no address of a DICOMweb server"),
        (orthanc.dicomweb.replace("http:", "https:"), STUDY, "TLS fails"),
    ):
        assert main(["--dicomweb", url, "--study", study, "--store"]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ") and message in line


@pytest.mark.slow
@needs_orthanc
def test_orthanc_does_it_by_itself(server: RunningServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXR_SUPERRES", str(ROOT))
    monkeypatch.setenv("CXR_PYTHON", sys.executable)
    monkeypatch.setenv("CXR_OPTIONS", f"--url {server.url('grpc')} --steps 2")
    orthanc = Orthanc(tmp_path, StableAge=1, LuaScripts=[str(ROOT / "deploy" / "orthanc.lua")])
    monkeypatch.setenv("CXR_DICOMWEB", orthanc.dicomweb)
    with orthanc:
        orthanc.store(to_bytes(radiograph("1.1")))
        wait_for(lambda: len(orthanc.instances()) == 2)
        (derived,) = [tags for tags in map(orthanc.tags, orthanc.instances()) if tags.get("SourceImageSequence")]
        assert derived["SourceImageSequence"][0]["ReferencedSOPInstanceUID"] == "1.1"


def test_the_extra_is_named_where_it_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "dicomweb_client", None)
    assert main(["--dicomweb", "http://localhost/dicom-web", "--study", "1.2", "--store"]) == 1
    assert "pip install '.[pacs]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--store", "a.dcm"], "--store: requires --dicomweb"),
        (["--dicomweb", "u", "--store"], "--dicomweb: requires --study"),
        (["--dicomweb", "u", "--study", "1"], "--dicomweb: requires -o DIR or --store"),
        (["--dicomweb", "u", "--study", "1/2", "--store"], "--study: must be a UID such as 1.2.840.10008, got '1/2'"),
        (["--dicomweb", "u", "--study", "1", "--store", "a.dcm"], "--dicomweb: takes no IMAGE|DIR, got 'a.dcm'"),
        (["--dicomweb", "u", "--study", "1", "-o", "a.dcm"], "-o: must be a folder for several inputs, got 'a.dcm'"),
        (["--dicomweb", "u", "--study", "1", "-o", "a/", "--format", "png"], "--format: must be dicom for --dicomweb"),
    ],
)
def test_options_that_do_not_go_together(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
