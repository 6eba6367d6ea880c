"""Known vulnerabilities of the pinned releases: what was not looked up is never taken for audited."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deploy.audit import main

SKIPPED = {"name": "a", "skip_reason": "Dependency not found on PyPI and could not be audited: a (1)"}
CLEAN = {"name": "b", "version": "2", "vulns": []}
FLAWED = {"name": "c", "version": "3", "vulns": [{"id": "PYSEC-1", "fix_versions": ["4"]}]}


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "pip-audit"
    path.write_text(f"#!/bin/sh\ncat {tmp_path}/answer\n")
    path.chmod(0o755)
    return path


def audit(program: Path, *releases: object, options: tuple[str, ...] = ()) -> int:
    (program.parent / "answer").write_text(json.dumps({"dependencies": releases}))
    return main(["--pip-audit", str(program), *options])


def test_releases_without_known_vulnerabilities(program: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert audit(program, CLEAN) == 0
    assert capsys.readouterr().out == "1 releases audited, 0 known vulnerabilities\n"


def test_vulnerabilities_are_listed(program: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert audit(program, CLEAN, FLAWED, options=("--if-reachable",)) == 1
    assert capsys.readouterr().out == "2 releases audited, 1 known vulnerabilities\nc 3: PYSEC-1, fixed in 4\n"


def test_releases_that_are_not_known_are_named(program: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert audit(program, CLEAN, SKIPPED) == 0
    assert capsys.readouterr().out.endswith("; not audited, as PyPI does not know them: a\n")


@pytest.mark.parametrize("answer", ['{"dependencies": []}', json.dumps({"dependencies": [SKIPPED]}), "", "[]", "null"])
def test_a_list_that_cannot_be_reached_is_said_and_no_success(
    program: Path, answer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (program.parent / "answer").write_text(answer)
    assert main(["--pip-audit", str(program)]) == 1
    assert main(["--pip-audit", str(program), "--if-reachable"]) == 0
    assert capsys.readouterr().out == 2 * "not audited: the list of vulnerabilities cannot be reached\n"


def test_a_program_that_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--pip-audit", str(tmp_path / "none"), "--if-reachable"]) == 1
    assert capsys.readouterr().err.startswith("error: cannot run")
