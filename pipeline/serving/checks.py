"""Checks before starting a server: repository, plans, addresses, ports, shared memory."""

from __future__ import annotations

import errno
import json
import math
import re
import shutil
import socket
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tritonclient.grpc import model_config_pb2 as pb

from pipeline import hashes
from pipeline.models import superres_model
from pipeline.presets import Preset
from pipeline.serving import ServeError
from pipeline.serving.probe import Address
from pipeline.serving.processes import SHARED_MEMORY
from pipeline.spec import MAX_SIDE
from pipeline.triton_config import MODEL_FILE, read_config

REGION_MB = 1.05
"""Initial shared memory of each Python process of the server: 1 MiB."""
LARGE_IMAGES_MB = 250
"""Additional shared memory for large images: four concurrent images of the largest size took 130 MB."""
PROTOCOLS = ("grpc", "http", "metrics")
"""Protocols in the order in which Triton opens their ports."""
ON, OFF = ("true", "1"), ("false", "0")
RESTORE = "restore it with git, or write it with `make export`"
REMEDY = {"tensorrt": "build it again with `make plan`, or remove the model's folder"}


def check_repository(repository: Path) -> list[pb.ModelConfig]:
    """Check that every model has its configuration and files, and that plans match the repository's networks.

    Returns:
        The models' configurations.

    Raises:
        ServeError: this is not a model repository, or a model's file is missing, damaged or outdated.
    """
    if not repository.is_dir():
        raise ServeError(f"model repository '{repository}' is not a directory: name one with --model-repository")
    for model in sorted(repository.glob("[!.]*/")):
        if model.is_dir() and not (model / "config.pbtxt").exists() and not any(model.glob("[0-9]*/*")):
            raise ServeError(
                f"'{model}' is unfinished: it has neither config.pbtxt nor a model file; remove or complete it"
            )
    models = sorted(path.parent for path in repository.glob("*/config.pbtxt"))
    if not models:
        raise ServeError(f"'{repository}' is not a model repository: it has no MODEL/config.pbtxt")
    return [check_model(repository, model) for model in models]


def check_model(repository: Path, model: Path) -> pb.ModelConfig:
    """Check a model's folder and return its configuration; raise ServeError like ``check_repository``."""
    try:
        config, *others = map(read_config, [model / "config.pbtxt", *model.glob("configs/*.pbtxt")])
    except ValueError as error:
        raise ServeError(str(error)) from error
    for file in model_files(model, config, others):
        if not file.is_file():
            raise ServeError(f"'{file}' is missing: {REMEDY.get(config.backend, RESTORE)}")
        if config.backend == "tensorrt":
            check_plan(repository, file)
    return config


def model_files(model: Path, config: pb.ModelConfig, others: Sequence[pb.ModelConfig]) -> Iterator[Path]:
    """Yield the files required in every version by a model's configuration and those in ``configs/``."""
    default = config.default_model_filename or MODEL_FILE.get(config.backend)
    names = list(config.cc_model_filenames.values()) or [default]
    names += [other.default_model_filename for other in others]
    versions = [folder for folder in model.iterdir() if folder.is_dir() and folder.name.isdecimal()]
    for version in versions or [model / "1"]:
        yield from (version / name for name in names if name)


def check_plan(repository: Path, plan: Path) -> None:
    """Check that a plan was built from the repository's network, if a JSON file records its source.

    Raises:
        ServeError: the JSON file is damaged, or the network differs.
    """
    path = plan.with_suffix(".json")
    if not path.is_file():
        return
    try:
        metadata = json.loads(path.read_text())
        onnx, expected = repository / metadata["onnx"], metadata["onnx_sha256"]
        found = hashes.file_hash(onnx)
    except FileNotFoundError:
        found = None
    # deeply nested JSON is a RecursionError; what is no name of a file is an OSError
    except (ValueError, KeyError, TypeError, RecursionError, OSError) as error:
        raise ServeError(f"'{path}' is damaged: {REMEDY['tensorrt']}") from error
    if found is None or found != expected:
        raise ServeError(f"'{plan}' was not built from the current {str(onnx)!r}: {REMEDY['tensorrt']}")


def check_hashes(repository: Path) -> str:
    """Check the ONNX files against the repository's SHA256SUMS; warn if it has none.

    Returns:
        The model hash; "" if there are no hashes.

    Raises:
        ServeError: a file differs, is missing or is not listed.
    """
    try:
        found = hashes.check_hashes(repository)
    except ValueError as error:
        raise ServeError(str(error)) from error
    if found is None:
        print(
            f"warning: '{repository}' has no {hashes.NAME}, so its files are not checked: write it with "
            f"`python -m pipeline.hashes --model-repository {repository}`",
            file=sys.stderr,
        )
    return found or ""


def flag_value(extra: Sequence[str], flag: str) -> str | None:
    """Return the value of ``flag`` in tritonserver flags, the last one as in Triton; None if absent."""
    found = None
    for i, word in enumerate(extra):
        name, equals, value = word.partition("=")
        if name == flag:
            found = value if equals else "".join(extra[i + 1 : i + 2])
    return found


def find_host(host: str) -> str:
    """Resolve a name or address of this machine to an IPv4 address, as Triton does not accept names.

    Raises:
        ServeError: it is not an IPv4 address or name of this machine.
    """
    try:
        address = str(socket.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_STREAM)[0][4][0])
        with socket.socket() as probe:
            probe.bind((address, 0))
    except (OSError, UnicodeError):
        raise ServeError(
            f"--host must be an IPv4 address or name of this machine, such as 127.0.0.1, or 0.0.0.0 for all its "
            f"addresses, got '{host}'"
        ) from None
    return address


def listen_addresses(hosts: dict[str, str], ports: dict[str, int], extra: Sequence[str]) -> dict[str, Address]:
    """Return protocol ⇒ address that the server will bind; ``extra`` overrides ``hosts`` and ``ports``.

    Raises:
        ServeError: a port is out of range or given twice.
    """
    found: dict[str, Address] = {}
    for protocol in PROTOCOLS:
        if (flag_value(extra, f"--allow-{protocol}") or "").lower() in OFF:
            continue
        flag = f"--{protocol}-port"
        port = flag_value(extra, flag) or str(ports[protocol])
        if not (port.isdecimal() and 1 <= int(port) <= 65535):
            raise ServeError(f"{flag} must be 1–65535, got {port}")
        for other, (_, taken) in found.items():
            if taken == int(port):
                raise ServeError(f"port {port} is given twice: --{other}-port, {flag}")
        found[protocol] = (flag_value(extra, f"--{protocol}-address") or hosts[protocol], int(port))
    return found


def check_ports(addresses: dict[str, Address]) -> None:
    """Check that every port is available.

    Raises:
        ServeError: a port is taken or cannot be opened.
    """
    for protocol, (host, port) in addresses.items():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                reason = "is taken" if error.errno == errno.EADDRINUSE else f"cannot be opened: {error.strerror}"
                raise ServeError(f"port {port} {reason}: choose another with --{protocol}-port") from error


def why_unchecked(models: Sequence[pb.ModelConfig], preset: Preset, extra: Sequence[str]) -> str | None:
    """Return why the server cannot be checked with a test image; None if it can."""
    if superres_model(preset).name not in [model.name for model in models]:
        return f"the repository has no model '{superres_model(preset).name}'"
    obstacles = (
        ("--allow-grpc", OFF),
        ("--grpc-use-ssl", ON),
        ("--grpc-use-ssl-mutual", ON),
        ("--model-control-mode", ("explicit",)),
    )
    for flag, values in obstacles:
        if (value := flag_value(extra, flag)) and value.lower() in values:
            return f"{flag} is {value}"
    return "--grpc-restricted-protocol is given" if flag_value(extra, "--grpc-restricted-protocol") else None


def free_shared_memory() -> float:
    """Return the free space of /dev/shm in MB (10⁶ bytes); infinity if there is no /dev/shm."""
    return shutil.disk_usage(SHARED_MEMORY).free / 1e6 if SHARED_MEMORY.is_dir() else math.inf


def check_shared_memory(models: Sequence[pb.ModelConfig], extra: Sequence[str]) -> None:
    """Check the shared memory for the start of the models' Python processes; warn if too little for large images.

    Every instance allocates a region for its tensors, of ``REGION_MB`` unless set in ``extra``, which grows on demand
    and never shrinks. ONNX models count too: in the wheel's server they are Python processes, two unless configured.

    Raises:
        ServeError: there is too little to start the server.
    """
    size = next(
        (float(m[1]) / 1e6 for flag in extra if (m := re.search(r"shm-default-byte-size=(\d+)", flag))), REGION_MB
    )
    instances = sum(sum(group.count for group in model.instance_group) or 2 for model in models)
    free, start = free_shared_memory(), instances * size
    advice = "give it more (docker run --shm-size=1g, or mount -o remount,size=1g /dev/shm)"
    if free < start:
        raise ServeError(f"/dev/shm has {free:.0f} MB free, the models need {start:.0f} MB to start: {advice}")
    if free < start + LARGE_IMAGES_MB:
        print(
            f"warning: /dev/shm has {free:.0f} MB free, images of {MAX_SIDE}×{MAX_SIDE} may need "
            f"{start + LARGE_IMAGES_MB:.0f} MB and otherwise fail: {advice}",
            file=sys.stderr,
        )
