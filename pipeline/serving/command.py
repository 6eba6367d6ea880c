"""Check everything that a server needs, start it, and supervise it."""

from __future__ import annotations

import argparse
import contextlib
import ipaddress
import math
import os
import re
import secrets
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.hashes import SHOWN
from pipeline.presets import Preset
from pipeline.serving import ServeError
from pipeline.serving.access import KEY, Access, find_access
from pipeline.serving.checks import (
    PROTOCOLS,
    check_hashes,
    check_ports,
    check_repository,
    check_shared_memory,
    find_host,
    flag_value,
    listen_addresses,
    why_unchecked,
)
from pipeline.serving.find import Server, find_server, plain_path, runtime_flags
from pipeline.serving.gone import reports
from pipeline.serving.log import as_json
from pipeline.serving.parser import make_serve_parser
from pipeline.serving.probe import Address, NotReady, release_messages, upscale_one, wait_until_listening
from pipeline.serving.processes import region_prefix, remove_leftovers
from pipeline.serving.supervisor import supervise
from pipeline.spec import (
    AUDIT_VARIABLE,
    CACHE_VARIABLE,
    CALLER,
    MAX_WORK_VARIABLE,
    MODEL_VARIABLE,
    PROBE_VARIABLE,
    QUEUE_TIMEOUT,
    REQUEST,
)
from pipeline.triton_config import preset_of

LOCALHOST = "127.0.0.1"
PYTHON_BACKENDS = ("python", "onnxruntime", "openvino", "tensorrt")
"""Backends whose models are Python processes in the wheel's server."""
KEEPALIVE = 10
"""Seconds without a sign of life from a caller with calls in progress until it is asked for one, and to answer: then
its work ends. By default, gRPC asks after two hours."""
EXIT_TIMEOUT = 2
"""Seconds that Triton waits for requests in progress when it stops; the supervisor has done so before."""
TOLERANT = ("--exit-on-error=false", "--strict-readiness=false")
"""Flags that keep the rest of the repository available if a plan fails to load."""


def command_line(
    server: Server, repository: Path, hosts: Mapping[str, str], ports: Mapping[str, int], extra: Sequence[str]
) -> list[str]:
    """Return the server's command line."""
    return [
        str(server.binary),
        f"--model-repository={repository}",
        *(f"--{protocol}-address={hosts[protocol]}" for protocol in ports),
        *(f"--{protocol}-port={port}" for protocol, port in ports.items()),
        *(f"--backend-config={backend},shm-region-prefix-name={region_prefix()}" for backend in PYTHON_BACKENDS),
        f"--exit-timeout-secs={EXIT_TIMEOUT}",
        f"--grpc-keepalive-time={1000 * KEEPALIVE}",
        f"--grpc-keepalive-timeout={1000 * KEEPALIVE}",
        "--grpc-http2-max-pings-without-data=0",
        f"--grpc-header-forward-pattern=(?i){CALLER}",
        f"--http-header-forward-pattern=(?i)({CALLER}|{REQUEST})",
        *server.flags,
        *extra,
    ]


def printable(words: Sequence[str], hidden: Sequence[str]) -> str:
    """Return a command line without what must not be printed, such as tokens."""
    text = shlex.join(words)
    for secret in hidden:
        text = text.replace(secret, "***")
    return re.sub(rf"({KEY}=Bearer )[0-9a-f]{{64}}", r"\1***", text)


def check_audit(path: Path) -> None:
    """Raise ServeError if nothing can be appended to the audit file."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600))
    except OSError as error:
        raise ServeError(f"--audit: cannot write '{path}': {error.strerror}") from error


def probe_running(args: argparse.Namespace) -> int:
    """Upscale a test image on a running server and print the outcome; return the command's status.

    Raises:
        ServeError: an option is not allowed.
    """
    access = find_access(args.tls_cert, args.tls_key, args.token_file, None, administration=False)
    host, preset = find_host(args.host), preset_of(args.model_repository)
    where = LOCALHOST if ipaddress.ip_address(host).is_unspecified else host
    try:
        seconds = upscale_one((where, args.grpc_port), preset, access)
    except NotReady as error:
        print(f"error: the server at {where}:{args.grpc_port} is not ready: {error}", file=sys.stderr)
        return 1
    print(f"ready: a {preset.data.lr_size}×{preset.data.lr_size} image took {seconds:.2f} s")
    return 0


@dataclass(frozen=True)
class Launch:
    """A server that is ready to be started, with what its supervisor needs to know."""

    command: list[str]
    environment: dict[str, str]
    addresses: dict[str, Address]
    preset: Preset
    access: Access
    model: str
    """The repository's model hash; "" if unknown."""
    request_id: str
    """ID of the supervisor's requests, a secret."""
    unchecked: str | None
    """Why the server cannot be checked with a test image; None if it can."""

    def probe(self) -> float:
        """Upscale a test image as clients do; see ``upscale_one``."""
        return upscale_one(self.addresses["grpc"], self.preset, self.access, self.request_id)

    def probe_quickly(self) -> float:
        """Upscale a small test image in one step, however long it must wait for others' requests; release messages."""
        address = self.addresses["grpc"]
        release_messages(address, self.access)
        return upscale_one(address, self.preset, self.access, self.request_id, side=16, limit=QUEUE_TIMEOUT, steps=1)


def prepare(args: argparse.Namespace) -> Launch:
    """Check everything that a server needs.

    Raises:
        ServeError: something is missing, damaged or not allowed.
    """
    access = find_access(args.tls_cert, args.tls_key, args.token_file, args.admin_token_file, args.open_administration)
    if args.max_work < 1:
        raise ServeError(f"--max-work must be at least 1, got {args.max_work}")
    if not 0 <= args.cache < math.inf:
        raise ServeError(f"--cache must be 0 or more MB, got {args.cache:g}")
    if args.audit:
        check_audit(args.audit)
    models = check_repository(args.model_repository)
    model = check_hashes(args.model_repository)
    server = find_server()
    preset = preset_of(args.model_repository)
    flags = runtime_flags(args.runtime, server, preset)
    hosts = {"grpc": find_host(args.host), "http": LOCALHOST, "metrics": LOCALHOST}
    ports = {protocol: getattr(args, f"{protocol}_port") for protocol in PROTOCOLS}
    addresses = listen_addresses(hosts, ports, args.extra)
    check_ports(addresses)
    check_shared_memory(models, args.extra)
    repository = plain_path(args.model_repository)
    tolerant = TOLERANT if any(model.backend == "tensorrt" for model in models) else ()
    request_id = secrets.token_hex(16)
    environment = {
        **server.environment,
        MAX_WORK_VARIABLE: str(args.max_work),
        MODEL_VARIABLE: model,
        PROBE_VARIABLE: request_id,
        CACHE_VARIABLE: f"{args.cache:g}",
        **({AUDIT_VARIABLE: str(args.audit.absolute())} if args.audit else {}),
    }
    return Launch(
        command_line(server, repository, hosts, ports, [*flags, *access.flags(), *tolerant, *args.extra]),
        environment,
        addresses,
        preset,
        access,
        model,
        request_id,
        why_unchecked(models, preset, args.extra),
    )


def announce(launch: Launch) -> None:
    """Print what is about to start, who may use it, and what was removed before."""
    settings = [f"{name}={value}" for name, value in launch.environment.items()]
    hidden = [*launch.access.secrets(), launch.request_id]
    print("starting: " + printable(["env", *settings, *launch.command], hidden), flush=True)
    access = launch.access
    protection = (("--token-file", access.token), ("--tls-cert", access.certificate))
    host, port = launch.addresses.get("grpc", (LOCALHOST, 0))
    missing = " and ".join(name for name, found in protection if found is None)
    if missing and not ipaddress.ip_address(host).is_loopback:
        line = f"anyone who reaches {host}:{port} may upscale or listen in: give {missing}, or put a proxy in front"
        print(f"warning: {line}", file=sys.stderr, flush=True)
    processes, regions = remove_leftovers()
    if processes or regions:
        print(
            f"removed what killed servers left: {processes} processes, {regions} regions of shared memory", flush=True
        )


def when_ready(server: subprocess.Popen[bytes], launch: Launch) -> str:
    """Wait until the server is ready and return a message about it.

    Raises:
        NotReady: the server ends or cannot upscale.
    """
    wait_until_listening(server, list(launch.addresses.values()))
    if launch.unchecked:
        return f"not checked: {launch.unchecked}"
    try:
        seconds = launch.probe()
    except NotReady as error:
        raise NotReady(f"the server is not ready: {error}") from error
    where = ", ".join(
        f"{protocol} {host}:{port}" for protocol, (host, port) in launch.addresses.items() if protocol != "metrics"
    )
    side = launch.preset.data.lr_size
    which = f", model {launch.model[:SHOWN]}" if launch.model else ""
    return f"ready: {where} (a {side}×{side} image took {seconds:.2f} s{which})"


def main(argv: list[str] | None = None) -> int:
    args = make_serve_parser().parse_args(argv)
    with as_json() if args.log_format == "json" else contextlib.nullcontext():
        return run(args)


def run(args: argparse.Namespace) -> int:
    """Run the command and return its status."""
    with contextlib.ExitStack() as stack:
        try:
            if args.probe:
                return probe_running(args)
            launch = prepare(args)
            gone = {} if args.proxy_reports is None else stack.enter_context(reports(args.proxy_reports))
        except ServeError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        announce(launch)

        def check(process: subprocess.Popen[bytes]) -> str | None:
            return when_ready(process, launch) if args.check else None

        try:
            return supervise(
                launch.command,
                {**launch.environment, **gone},
                check,
                restart=args.check,
                probe=launch.probe_quickly if args.check and not launch.unchecked else None,
                keeps_models=args.check and (flag_value(args.extra, "--model-control-mode") or "none") == "none",
            )
        except OSError as error:
            print(f"error: cannot run '{launch.command[0]}': {error.strerror}", file=sys.stderr)
            return 1
