"""Find a Triton Inference Server and run it in the foreground with a model repository.

python -m pipeline.serve
python -m pipeline.serve --http-port 9000 --grpc-port 9001 --metrics-port 9002
python -m pipeline.serve --host 0.0.0.0    # for all machines that can reach this one, without a password
python -m pipeline.serve --model-repository my/repository -- --log-verbose=1
python -m pipeline.serve --runtime onnxruntime
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline import ROOT
from pipeline.command_line import make_parser
from pipeline.hashes import SHOWN
from pipeline.presets import Preset
from pipeline.serving import ServeError
from pipeline.serving.checks import (
    PROTOCOLS,
    check_hashes,
    check_ports,
    check_repository,
    check_shared_memory,
    find_host,
    listen_addresses,
    why_unchecked,
)
from pipeline.serving.find import RUNTIMES, Server, find_server, plain_path, runtime_flags
from pipeline.serving.supervisor import Address, NotReady, supervise, upscale_one, wait_until_listening
from pipeline.spec import MODEL_VARIABLE
from pipeline.triton_config import preset_of

REPOSITORY = ROOT / "model_repository" if (ROOT / "model_repository").is_dir() else Path("model_repository")
"""Model repository of this clone or, when installed, of the current directory."""
TOLERANT = ("--exit-on-error=false", "--strict-readiness=false")
"""Flags that keep the rest of the repository available if a plan fails to load."""


def command_line(server: Server, repository: Path, host: str, ports: dict[str, int], extra: Sequence[str]) -> list[str]:
    """Return the server's command line."""
    return [
        str(server.binary),
        f"--model-repository={repository}",
        *(f"--{protocol}-address={host}" for protocol in ports),
        *(f"--{protocol}-port={port}" for protocol, port in ports.items()),
        *server.flags,
        *extra,
    ]


def when_ready(server: subprocess.Popen[bytes], addresses: dict[str, Address], preset: Preset, model: str = "") -> str:
    """Wait until the server is ready and return a message about it; ``model`` is the repository's model hash.

    Raises:
        NotReady: the server ends or cannot upscale.
    """
    wait_until_listening(server, list(addresses.values()))
    try:
        seconds = upscale_one(addresses["grpc"], preset)
    except NotReady as error:
        raise NotReady(f"the server is not ready: {error}") from error
    where = ", ".join(
        f"{protocol} {host}:{port}" for protocol, (host, port) in addresses.items() if protocol != "metrics"
    )
    side = preset.data.lr_size
    which = f", model {model[:SHOWN]}" if model else ""
    return f"ready: {where} (a {side}×{side} image took {seconds:.2f} s{which})"


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
        help="IPv4 address to listen on; there is no password, so 0.0.0.0 serves anyone who can reach this machine "
        "(default: %(default)s, this machine only)",
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
    add("extra", nargs="*", metavar="-- FLAG", help="any tritonserver flag")
    args = parser.parse_args(argv)
    ports = {protocol: getattr(args, f"{protocol}_port") for protocol in PROTOCOLS}
    try:
        models = check_repository(args.model_repository)
        model = check_hashes(args.model_repository)
        server = find_server()
        preset = preset_of(args.model_repository)
        flags = runtime_flags(args.runtime, server, preset)
        host = find_host(args.host)
        addresses = listen_addresses(host, ports, args.extra)
        check_ports(addresses)
        check_shared_memory(args.model_repository, args.extra)
        repository = plain_path(args.model_repository)
    except ServeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    tolerant = TOLERANT if any(model.backend == "tensorrt" for model in models) else ()
    command = command_line(server, repository, host, ports, [*flags, *tolerant, *args.extra])
    environment = {**server.environment, MODEL_VARIABLE: model}
    settings = [f"{name}={value}" for name, value in environment.items()]
    print("starting: " + shlex.join(["env", *settings, *command]), flush=True)
    unchecked = why_unchecked(models, preset, args.extra)

    def check(process: subprocess.Popen[bytes]) -> str | None:
        if not args.check:
            return None
        return f"not checked: {unchecked}" if unchecked else when_ready(process, addresses, preset, model)

    try:
        return supervise(command, environment, check)
    except OSError as error:
        print(f"error: cannot run '{server.binary}': {error.strerror}", file=sys.stderr)
        return 1
