"""The container's recipe: pins written once, and files for every package. Building it needs NVIDIA's image."""

from __future__ import annotations

import json
import re
import shlex

from pipeline import ROOT, serve

PROJECT = (ROOT / "pyproject.toml").read_text()
LINES = (ROOT / "deploy" / "Dockerfile").read_text().splitlines()


def instructions(name: str) -> list[str]:
    return [line.removeprefix(f"{name} ") for line in LINES if line.startswith(f"{name} ")]


def test_the_projects_own_pins_are_installed() -> None:
    (run,) = instructions("RUN")
    words = shlex.split(run)
    assert words[-1] == ".[server]"
    assert words[words.index("--constraint") + 1] == "constraints.txt"
    assert not [word for word in words if "numpy" in word or "opencv" in word], "they stand in pyproject.toml"
    assert re.search(r'^server = \["numpy<2"', PROJECT, re.MULTILINE)


def test_everything_that_pip_needs_is_copied() -> None:
    (run,) = instructions("RUN")
    source = shlex.split(run)[1]
    copied = {
        name for line in instructions("COPY") for name in line.split()[:-1] if line.split()[-1].startswith(source)
    }
    packages = re.findall(r'"(\w+)[\w.]*"', PROJECT.partition("packages = [")[2].partition("]")[0])
    readme = re.findall(r'^readme = "(.*)"', PROJECT, re.MULTILINE)
    assert len(set(packages)) == 4
    assert copied == {"pyproject.toml", "constraints.txt", *readme, *packages}


def test_what_is_copied_is_sent_to_the_builder() -> None:
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert {name for line in instructions("COPY") for name in line.split()[:-1]} == sent
    assert all((ROOT / name).exists() for name in sent)


def test_no_python_is_named() -> None:
    assert "python3." not in "\n".join(LINES)


def test_the_server_is_started_on_the_repository_it_holds() -> None:
    (command,) = map(json.loads, instructions("CMD"))
    assert command[:3] == ["python3", "-m", serve.__name__]
    assert f"--model-repository={instructions('COPY')[-1].split()[-1]}" in command
    assert "--host=0.0.0.0" in command, "or no port could be published"
