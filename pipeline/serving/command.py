"""Find a Triton Inference Server and run it in the foreground with a model repository.

python -m pipeline.serve
python -m pipeline.serve --http-port 9000 --grpc-port 9001 --metrics-port 9002
python -m pipeline.serve --host 0.0.0.0 --tls-cert cert.pem --tls-key key.pem --token-file token
python -m pipeline.serve --model-repository my/repository -- --log-verbose=1
python -m pipeline.serve --runtime onnxruntime
"""

from __future__ import annotations

import ipaddress
import math
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline import ROOT
from pipeline.command_line import make_parser
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
from pipeline.serving.find import RUNTIMES, Server, find_server, plain_path, runtime_flags
from pipeline.serving.probe import OPEN, Address, NotReady, upscale_one, wait_until_listening
from pipeline.serving.processes import region_prefix, remove_leftovers
from pipeline.serving.supervisor import supervise
from pipeline.spec import AUDIT_VARIABLE, CACHE_VARIABLE, CALLER, MAX_WORK, MAX_WORK_VARIABLE, MODEL_VARIABLE
from pipeline.triton_config import preset_of

REPOSITORY = ROOT / "model_repository" if (ROOT / "model_repository").is_dir() else Path("model_repository")
"""Model repository of this clone or, when installed, of the current directory."""
LOCALHOST = "127.0.0.1"
PYTHON_BACKENDS = ("python", "onnxruntime", "openvino", "tensorrt")
"""Backends whose models are Python processes in the wheel's server."""
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
        f"--grpc-header-forward-pattern=(?i){CALLER}",
        f"--http-header-forward-pattern=(?i){CALLER}",
        *server.flags,
        *extra,
    ]


def printable(words: Sequence[str], secrets: Sequence[str]) -> str:
    """Return a command line without what must not be printed, such as tokens."""
    text = shlex.join(words)
    for secret in secrets:
        text = text.replace(secret, "***")
    return re.sub(rf"({KEY}=Bearer )[0-9a-f]{{64}}", r"\1***", text)


def when_ready(
    server: subprocess.Popen[bytes],
    addresses: dict[str, Address],
    preset: Preset,
    access: Access = OPEN,
    model: str = "",
) -> str:
    """Wait until the server is ready and return a message about it; ``model`` is the repository's model hash.

    Raises:
        NotReady: the server ends or cannot upscale.
    """
    wait_until_listening(server, list(addresses.values()))
    try:
        seconds = upscale_one(addresses["grpc"], preset, access)
    except NotReady as error:
        raise NotReady(f"the server is not ready: {error}") from error
    where = ", ".join(
        f"{protocol} {host}:{port}" for protocol, (host, port) in addresses.items() if protocol != "metrics"
    )
    side = preset.data.lr_size
    which = f", model {model[:SHOWN]}" if model else ""
    return f"ready: {where} (a {side}×{side} image took {seconds:.2f} s{which})"


def check_audit(path: Path) -> None:
    """Raise ServeError if nothing can be appended to the audit file."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600))
    except OSError as error:
        raise ServeError(f"--audit: cannot write '{path}': {error.strerror}") from error


def is_local(host: str) -> bool:
    return ipaddress.ip_address(host).is_loopback


def probe_running(host: str, port: int, preset: Preset, access: Access) -> int:
    """Upscale a test image on a running server and print the outcome; return the command's status."""
    where = LOCALHOST if ipaddress.ip_address(host).is_unspecified else host
    try:
        seconds = upscale_one((where, port), preset, access)
    except NotReady as error:
        print(f"error: the server at {where}:{port} is not ready: {error}", file=sys.stderr)
        return 1
    print(f"ready: a {preset.data.lr_size}×{preset.data.lr_size} image took {seconds:.2f} s")
    return 0


def main(argv: list[str] | None = None) -> int:
    parser = make_parser(
        __doc__,
        "python -m pipeline.serve",
        "Start a Triton Inference Server in the foreground: an installed one, or else the one in the wheel "
        "nvidia-pytriton, without auto-completion of configurations. Flags after -- are passed to tritonserver.",
    )
    add = parser.add_argument
    add("--model-repository", type=Path, default=REPOSITORY, help="default: %(default)s")
    add(
        "--host",
        default="127.0.0.1",
        help="IPv4 address on which gRPC listens, such as 0.0.0.0 for all of this machine's; HTTP and metrics listen "
        "on 127.0.0.1, for a proxy in front (default: %(default)s, this machine only)",
    )
    add("--http-port", type=int, default=8000, help="default: %(default)s")
    add("--grpc-port", type=int, default=8001, help="default: %(default)s")
    add("--metrics-port", type=int, default=8002, help="default: %(default)s")
    add(
        "--runtime",
        choices=RUNTIMES,
        default="auto",
        help="runtime of the networks on a CPU; openvino uses INT8 and bfloat16 (default: openvino in the wheel's "
        "server without a GPU if the processor supports those that the preset uses, else onnxruntime)",
    )
    add(
        "--no-check",
        dest="check",
        action="store_false",
        help="do not upscale a test image before reporting the server ready",
    )
    add("--tls-cert", type=Path, metavar="PEM", help="certificate of this server, for gRPC by TLS")
    add("--tls-key", type=Path, metavar="PEM", help="unencrypted key of the certificate")
    add(
        "--token-file",
        type=Path,
        metavar="FILE",
        help="file with a token that callers must send (default: anyone who reaches the server may upscale)",
    )
    add(
        "--admin-token-file",
        type=Path,
        metavar="FILE",
        help="file with a token for model control, shared memory, statistics, trace and logging (default: closed)",
    )
    add(
        "--open-administration",
        action="store_true",
        help="leave administration open to every caller: for measurements on this machine",
    )
    add(
        "--probe",
        action="store_true",
        help="start nothing: upscale a test image on the server that listens at these ports; status 0 if it is right",
    )
    add(
        "--max-work",
        type=int,
        default=MAX_WORK,
        metavar="N",
        help="maximum images × LR pixels × samples × steps per request (default: %(default)s, minutes on two cores)",
    )
    add(
        "--cache",
        type=float,
        default=0,
        metavar="MB",
        help="memory for results of earlier requests, which the same request gets again (default: none)",
    )
    add(
        "--audit",
        type=Path,
        metavar="FILE",
        help="append a JSON line per result: hashes of input, output and model, options, seed, time, caller",
    )
    add("extra", nargs="*", metavar="-- FLAG", help="any tritonserver flag")
    args = parser.parse_args(argv)
    ports = {protocol: getattr(args, f"{protocol}_port") for protocol in PROTOCOLS}
    try:
        access = find_access(
            args.tls_cert, args.tls_key, args.token_file, args.admin_token_file, args.open_administration
        )
        if args.probe:
            return probe_running(find_host(args.host), args.grpc_port, preset_of(args.model_repository), access)
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
        host = find_host(args.host)
        hosts = {"grpc": host, "http": LOCALHOST, "metrics": LOCALHOST}
        addresses = listen_addresses(hosts, ports, args.extra)
        check_ports(addresses)
        check_shared_memory(args.model_repository, args.extra)
        repository = plain_path(args.model_repository)
    except ServeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    tolerant = TOLERANT if any(model.backend == "tensorrt" for model in models) else ()
    command = command_line(server, repository, hosts, ports, [*flags, *access.flags(), *tolerant, *args.extra])
    server.environment[MAX_WORK_VARIABLE] = str(args.max_work)
    server.environment[MODEL_VARIABLE] = model
    server.environment[CACHE_VARIABLE] = f"{args.cache:g}"
    if args.audit:
        server.environment[AUDIT_VARIABLE] = str(args.audit.absolute())
    settings = [f"{name}={value}" for name, value in server.environment.items()]
    print("starting: " + printable(["env", *settings, *command], access.secrets()), flush=True)
    if not is_local(host) and (access.token is None or access.certificate is None):
        missing = " and ".join(
            name for name, found in (("--token-file", access.token), ("--tls-cert", access.certificate)) if not found
        )
        print(
            f"warning: anyone who reaches {host}:{addresses['grpc'][1]} may upscale or listen in: give {missing}, or "
            "put a proxy in front",
            file=sys.stderr,
            flush=True,
        )
    if any(left := remove_leftovers()):
        print(
            f"removed {left[0]} processes and {left[1]} shared memory regions of servers that were killed", flush=True
        )
    unchecked = why_unchecked(models, preset, args.extra)

    def check(process: subprocess.Popen[bytes]) -> str | None:
        if not args.check:
            return None
        return f"not checked: {unchecked}" if unchecked else when_ready(process, addresses, preset, access, model)

    def probe() -> None:
        upscale_one(addresses["grpc"], preset, access)

    try:
        return supervise(
            command,
            server.environment,
            check,
            restart=args.check,
            probe=probe if args.check and not unchecked else None,
            keeps_models=args.check and (flag_value(args.extra, "--model-control-mode") or "none") == "none",
        )
    except OSError as error:
        print(f"error: cannot run '{server.binary}': {error.strerror}", file=sys.stderr)
        return 1
