"""The recipes of the container and of the service: pins written once, files for every package, no rights to spare.

Building the container needs NVIDIA's image.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

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


def test_the_container_runs_as_a_user_without_rights() -> None:
    assert instructions("USER") == ["1000:1000"]
    order = [line.partition(" ")[0] for line in LINES]
    assert order.index("USER") > order.index("RUN"), "packages are installed for all users"


PROBE = ["python3", "-m", "pipeline.serve", "--probe", "--model-repository=/models"]


def test_the_containers_health_is_a_real_request() -> None:
    (check,) = instructions("HEALTHCHECK")
    assert json.loads(check.partition("CMD ")[2]) == PROBE


def test_compose_gives_the_container_what_it_needs_and_no_more() -> None:
    (service,) = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())["services"].values()
    assert (ROOT / "deploy" / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
    assert service["user"] == instructions("USER")[0]
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["shm_size"] == "1g"
    assert [mount.partition(":")[0] for mount in service["tmpfs"]] == ["/tmp"]
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert service["healthcheck"]["test"][1:] == PROBE


UNIT = (ROOT / "deploy" / "cxr-superres.service").read_text()


def test_the_service_has_no_rights_to_spare() -> None:
    lines = UNIT.splitlines()
    wanted = "DynamicUser=yes CapabilityBoundingSet= NoNewPrivileges=yes ProtectSystem=strict PrivateTmp=yes"
    assert {*wanted.split(), "Restart=on-failure", "KillMode=mixed"} <= set(lines)
    assert "Environment=XDG_CACHE_HOME=/var/cache/cxr-superres PYTHONDONTWRITEBYTECODE=1" in lines
    assert "CacheDirectory=cxr-superres" in lines


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
@pytest.mark.parametrize("name", ["cxr-superres", "cxr-superres-node"])
def test_systemd_understands_the_service(tmp_path: Path, name: str) -> None:
    path = tmp_path / f"{name}.service"
    python = "/opt/cxr-superres/.venv/bin/python"
    unit = (ROOT / "deploy" / path.name).read_text()
    path.write_text(unit.replace(f"ExecStart={python} ", "ExecStart=/bin/true "))
    result = subprocess.run(["systemd-analyze", "verify", str(path)], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")


def test_the_node_has_no_rights_to_spare_and_the_folder_of_its_example() -> None:
    unit = (ROOT / "deploy" / "cxr-superres-node.service").read_text().splitlines()
    wanted = "DynamicUser=yes CapabilityBoundingSet= NoNewPrivileges=yes ProtectSystem=strict PrivateTmp=yes"
    assert {*wanted.split(), "Restart=always", "StateDirectory=cxr-superres-node"} <= set(unit)
    assert 'folder = "/var/lib/cxr-superres-node"' in (ROOT / "deploy" / "node.toml").read_text()
