"""Find a Triton Inference Server and start it in the foreground on a model repository.

python -m pipeline.serve
python -m pipeline.serve --http-port 9000 --grpc-port 9001 --metrics-port 9002
python -m pipeline.serve --host 0.0.0.0    # to every machine that reaches this one, which needs no password
python -m pipeline.serve --model-repository my/repository -- --log-verbose=1
python -m pipeline.serve --runtime onnxruntime
"""

from __future__ import annotations

import ctypes
import errno
import filecmp
import hashlib
import importlib.metadata
import importlib.util
import json
import math
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tritonclient.grpc import model_config_pb2 as pb

from pipeline import ROOT
from pipeline.command_line import make_parser
from pipeline.models import superres_model
from pipeline.presets import Preset
from pipeline.runtimes.processor import BFLOAT16, INT8, multiplies
from pipeline.serving.supervisor import Address, NotReady, supervise, upscale_one, wait_until_listening
from pipeline.spec import MAX_SIDE
from pipeline.triton_config import MODEL_FILE, preset_of, read_config
from pipeline.whole import whole_file

REPOSITORY = ROOT / "model_repository" if (ROOT / "model_repository").is_dir() else Path("model_repository")
"""This clone's; of an installed package, the one in the current directory."""
INSTALLED = Path("/opt/tritonserver/bin/tritonserver")
OUR_BACKENDS = ("onnxruntime", "openvino", "tensorrt")
TOLERANT = ("--exit-on-error=false", "--strict-readiness=false")
"""Flags with which a plan that does not load here leaves the rest of the repository served."""
SHARED_MEMORY = Path("/dev/shm")
NVIDIA = Path("/dev/nvidiactl")
"""What is there where a GPU's driver is."""
REGION_MB = 1.05
"""Shared memory with which a Python process of the server starts: 1 MiB."""
LARGE_IMAGES_MB = 250
"""Shared memory beyond that: four images of the largest size at once took 130 MB."""
RUNTIMES = ("auto", "onnxruntime", "openvino")
PYTHON_VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
PROTOCOLS = ("grpc", "http", "metrics")
"""In the order in which Triton opens them."""
ON, OFF = ("true", "1"), ("false", "0")

RESTORE = "restore it with git, or write it with `make export`"
REMEDY = {"tensorrt": "build it again with `make plan`, or remove the model's folder"}


class ServeError(Exception):
    """The server cannot be started; the message says what is wrong and what to do."""


@dataclass(frozen=True)
class Server:
    """A tritonserver and what it needs around it."""

    binary: Path
    flags: tuple[str, ...] = ()
    bundled: bool = False
    """Whether it is the wheel's, whose networks run on this project's own backends."""
    environment: dict[str, str] = field(default_factory=dict)


def find_server() -> Server:
    """An installed server (PATH, then /opt/tritonserver) with its own backends, else the wheel's.

    Raises:
        ServeError: there is none, or the wheel's cannot run with this Python.
    """
    on_path = shutil.which("tritonserver")
    if on_path or INSTALLED.is_file():
        python_path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        return Server(Path(on_path or INSTALLED), environment={"PYTHONPATH": python_path})
    wheel = importlib.util.find_spec("pytriton")
    if wheel is None or wheel.origin is None:
        raise ServeError(
            "no tritonserver in PATH or /opt/tritonserver, and the wheel that holds one is not installed: "
            "pip install --no-deps nvidia-pytriton==0.7.0"
        )
    return embedded_server(Path(wheel.origin).parent)


def embedded_server(package: Path) -> Server:
    """The server inside the wheel, with a backend directory made for this Python.

    Raises:
        ServeError: the wheel has no stub for this Python, its libpython is missing, or NumPy is not one it can use.
    """
    check_numpy()
    triton = package / "tritonserver"
    stub = triton / "python_backend_stubs" / PYTHON_VERSION / "triton_python_backend_stub"
    if not stub.is_file():
        have = sorted(
            (p.parent.name for p in stub.parents[1].glob("*/" + stub.name)), key=lambda v: int(v.split(".")[1])
        )
        raise ServeError(
            f"the server's Python backend has no stub for Python {PYTHON_VERSION}, only for {', '.join(have)}"
        )
    backends = prepare_backends(triton, stub)
    inherited = os.environ.get("LD_LIBRARY_PATH")
    libraries = [
        str(package.parent / "nvidia_pytriton.libs"),
        *libpython_directory(),
        *([inherited] if inherited else []),
    ]
    return Server(
        triton / "bin" / "tritonserver",
        flags=(
            f"--backend-directory={backends}",
            f"--cache-directory={triton / 'caches'}",
            # the configurations are complete; to ask each Python model for more would double the time to ready
            "--disable-auto-complete-config",
        ),
        bundled=True,
        environment={
            "LD_LIBRARY_PATH": os.pathsep.join(libraries),
            # the stub takes the packages of the `python3` that it finds in PATH, some versions' those of PYTHONPATH too
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        },
    )


def check_numpy() -> None:
    """See that the wheel's stub can use this Python's NumPy: it was built against NumPy 1.

    Raises:
        ServeError: it cannot; every request would fail.
    """
    version = importlib.metadata.version("numpy")
    if int(version.partition(".")[0]) >= 2:
        project = ROOT if (ROOT / "pyproject.toml").is_file() else "cxr-superres"
        raise ServeError(
            f"NumPy {version} is installed, and the wheel's server needs NumPy 1: "
            + shlex.join([sys.executable, "-m", "pip", "install", f"{project}[server]"])
        )


def libpython_directory() -> list[str]:
    """Where the stub finds this Python's shared library: one directory, or none where the system's loader knows it.

    Raises:
        ServeError: there is no such library.
    """
    name = f"libpython{PYTHON_VERSION}.so.1.0"
    for directory in (sysconfig.get_config_var("LIBDIR"), os.path.join(sys.base_prefix, "lib")):
        if directory and os.path.isfile(os.path.join(directory, name)):
            return [directory]
    try:
        ctypes.CDLL(name)
    except OSError:
        raise ServeError(
            f"the server's Python backend needs {name}, which this Python lacks: install the package "
            f"libpython{PYTHON_VERSION} (Debian, Ubuntu) or python{PYTHON_VERSION}-libs (Fedora, RHEL)"
        ) from None
    return []


def is_plain(path: Path) -> bool:
    """Whether Triton's Python models can lie there: a shell starts them, unquoted, and Python reads paths as ASCII."""
    return shlex.quote(str(path)) == str(path)


def short_hash(*paths: Path) -> str:
    return hashlib.sha256("\n".join(map(str, paths)).encode()).hexdigest()[:12]


def cache_directory() -> Path:
    """This project's folder in the user's cache.

    Raises:
        ServeError: Triton cannot start Python models from there.
    """
    directory = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "cxr-superres"
    if not is_plain(directory):
        raise ServeError(
            f"Triton's Python backend cannot be started from '{directory}': set XDG_CACHE_HOME to a path of plain "
            "letters, without spaces"
        )
    return directory


def plain_path(repository: Path) -> Path:
    """The repository's absolute path, or that of a link in the user's cache where Triton could not start its models.

    Raises:
        ServeError: the cache cannot be written, or is no better.
    """
    target = repository.resolve()
    if is_plain(target):
        return target
    link = cache_directory() / f"repository-{short_hash(target)}"
    try:
        link.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(link) as partial:
            partial.symlink_to(target)
    except OSError as error:
        raise ServeError(f"cannot write the link '{link}' (set XDG_CACHE_HOME): {error}") from error
    return link


def prepare_backends(triton: Path, stub: Path) -> Path:
    """A backend directory: Triton's Python backend with this Python's stub beside it, and ours.

    It lies in the user's cache, one for each installation, and is brought up to date by every start. Triton takes
    no links that lead out of it, so the files (4 MB) are copied.

    Raises:
        ServeError: the cache cannot be written, or Triton cannot start models from there.
    """
    files = {
        "python/libtriton_python.so": triton / "backends" / "python" / "libtriton_python.so",
        "python/triton_python_backend_utils.py": triton / "backends" / "python" / "triton_python_backend_utils.py",
        "python/triton_python_backend_stub": stub,
        **{f"{name}/model.py": ROOT / "pipeline" / "backends" / name / "model.py" for name in OUR_BACKENDS},
    }
    directory = cache_directory() / f"backends-{short_hash(*files.values())}"
    try:
        for name, source in files.items():
            target = directory / name
            if target.is_file() and filecmp.cmp(source, target):
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(target) as partial:
                shutil.copy2(source, partial)
    except OSError as error:
        raise ServeError(f"cannot write the backend directory '{directory}' (set XDG_CACHE_HOME): {error}") from error
    return directory


def runtime_flags(runtime: str, server: Server, preset: Preset) -> list[str]:
    """The flags that choose what runs the networks on the CPU.

    "auto" is OpenVINO where that is faster than onnxruntime (docs/results.md): in the wheel's server, where there is no
    GPU, and the processor has bfloat16, or INT8 and the preset files for it.

    Raises:
        ServeError: OpenVINO is asked for and not here.
    """
    installed = importlib.util.find_spec("openvino") is not None
    if runtime == "auto":
        fast = multiplies(BFLOAT16) or (bool(preset.int8) and multiplies(INT8))
        runtime = "openvino" if server.bundled and installed and fast and not NVIDIA.exists() else "onnxruntime"
    if runtime == "openvino" and server.bundled and not installed:
        raise ServeError("--runtime is openvino, which is not installed: pip install --no-deps openvino==2026.4.1")
    return ["--model-config-name=openvino"] if runtime == "openvino" else []


def check_repository(repository: Path) -> list[pb.ModelConfig]:
    """See that every model has a configuration and its files, and that plans are of the networks beside them.

    Returns:
        The models' configurations.

    Raises:
        ServeError: it is no model repository, or a model's file is missing, damaged or out of date.
    """
    if not repository.is_dir():
        raise ServeError(f"model repository '{repository}' is not a directory: name one with --model-repository")
    configs = sorted(repository.glob("*/config.pbtxt"))
    for model in sorted(repository.glob("[!.]*/")):
        if model.is_dir() and not (model / "config.pbtxt").exists() and not any(model.glob("[0-9]*/*")):
            raise ServeError(
                f"'{model}' is unfinished: it holds no config.pbtxt and no model file; remove or complete it"
            )
    if not configs:
        raise ServeError(f"'{repository}' is no model repository: it holds no MODEL/config.pbtxt")
    found = []
    for path in configs:
        try:
            config, *others = map(read_config, [path, *path.parent.glob("configs/*.pbtxt")])
        except ValueError as error:
            raise ServeError(str(error)) from error
        found.append(config)
        default = config.default_model_filename or MODEL_FILE.get(config.backend)
        files = list(config.cc_model_filenames.values()) or [default]
        files += [other.default_model_filename for other in others]
        versions = [d for d in path.parent.iterdir() if d.is_dir() and d.name.isdecimal()]
        for file in (version / name for version in versions or [path.parent / "1"] for name in files if name):
            if not file.is_file():
                raise ServeError(f"'{file}' is missing: {REMEDY.get(config.backend, RESTORE)}")
            if config.backend == "tensorrt":
                check_plan(repository, file)
    return found


def check_plan(repository: Path, plan: Path) -> None:
    """See that a plan was built from the network beside it, where a JSON file says what it was built from.

    Raises:
        ServeError: that file is damaged, or the network is another one.
    """
    path = plan.with_suffix(".json")
    if not path.is_file():
        return
    try:
        about = json.loads(path.read_text())
        onnx, expected = repository / about["onnx"], about["onnx_sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise ServeError(f"'{path}' is damaged: {REMEDY['tensorrt']}") from error
    if not onnx.is_file() or hashlib.sha256(onnx.read_bytes()).hexdigest() != expected:
        raise ServeError(f"'{plan}' was built from another '{onnx}': {REMEDY['tensorrt']}")


def given(extra: Sequence[str], flag: str) -> str | None:
    """The value that flags for tritonserver give ``flag``, the last one as for Triton; None where they do not."""
    found = None
    for i, word in enumerate(extra):
        name, equals, value = word.partition("=")
        if name == flag:
            found = value if equals else "".join(extra[i + 1 : i + 2])
    return found


def find_host(host: str) -> str:
    """The IPv4 address of a name or address of this machine; Triton takes no names.

    Raises:
        ServeError: there is none.
    """
    try:
        address = str(socket.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_STREAM)[0][4][0])
        with socket.socket() as probe:
            probe.bind((address, 0))
    except (OSError, UnicodeError):
        raise ServeError(
            f"--host is '{host}', needed is an IPv4 address or name of this machine, such as 127.0.0.1, or 0.0.0.0 "
            "for all its addresses"
        ) from None
    return address


def listening_at(host: str, ports: dict[str, int], extra: Sequence[str]) -> dict[str, Address]:
    """By protocol, the address that the server will bind: what ``extra`` says goes before ``host`` and ``ports``.

    Raises:
        ServeError: a port is out of range or given twice.
    """
    found: dict[str, Address] = {}
    for protocol in PROTOCOLS:
        if (given(extra, f"--allow-{protocol}") or "").lower() in OFF:
            continue
        flag = f"--{protocol}-port"
        port = given(extra, flag) or str(ports[protocol])
        if not (port.isdecimal() and 1 <= int(port) <= 65535):
            raise ServeError(f"{flag} is {port}, allowed are 1 to 65535")
        for other, (_, taken) in found.items():
            if taken == int(port):
                raise ServeError(f"port {port} is given twice: --{other}-port, {flag}")
        found[protocol] = (given(extra, f"--{protocol}-address") or host, int(port))
    return found


def check_ports(addresses: dict[str, Address]) -> None:
    """See that every port can be had.

    Raises:
        ServeError: one is taken, or not to be had.
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
    """Why the server cannot be asked for an image to see whether it serves; None where it can."""
    if superres_model(preset).name not in [model.name for model in models]:
        return f"the repository holds no model '{superres_model(preset).name}'"
    hindrances = (
        ("--allow-grpc", OFF),
        ("--grpc-use-ssl", ON),
        ("--grpc-use-ssl-mutual", ON),
        ("--model-control-mode", ("explicit",)),
    )
    for flag, values in hindrances:
        if (value := given(extra, flag)) and value.lower() in values:
            return f"{flag} is {value}"
    return "--grpc-restricted-protocol is given" if given(extra, "--grpc-restricted-protocol") else None


def free_shared_memory() -> float:
    """MB (10⁶ bytes) free in /dev/shm; infinite where there is none to run out of."""
    if not SHARED_MEMORY.is_dir():
        return math.inf
    space = os.statvfs(SHARED_MEMORY)
    return space.f_bavail * space.f_frsize / 1e6


def check_shared_memory(repository: Path, extra: Sequence[str]) -> None:
    """See that the models' Python processes get the shared memory they start with; warn where large images lack it.

    Every instance takes one region for its tensors, of ``REGION_MB`` unless ``extra`` says otherwise, which grows when
    needed and never shrinks. ONNX models count too: in the wheel's server they are Python processes, two a model.

    Raises:
        ServeError: there is less than the server starts with.
    """
    size = next(
        (float(m[1]) / 1e6 for flag in extra if (m := re.search(r"shm-default-byte-size=(\d+)", flag))), REGION_MB
    )
    configs = [read_config(path) for path in repository.glob("*/config.pbtxt")]
    instances = sum(sum(group.count for group in config.instance_group) or 2 for config in configs)
    free, start = free_shared_memory(), instances * size
    advice = "give it more (docker run --shm-size=1g, or mount -o remount,size=1g /dev/shm)"
    if free < start:
        raise ServeError(f"/dev/shm has {free:.0f} MB free, the models need {start:.0f} MB to start: {advice}")
    if free < start + LARGE_IMAGES_MB:
        print(
            f"warning: /dev/shm has {free:.0f} MB free, images of {MAX_SIDE}×{MAX_SIDE} may need "
            f"{start + LARGE_IMAGES_MB:.0f} MB and fail without: {advice}",
            file=sys.stderr,
        )


def command_line(server: Server, repository: Path, host: str, ports: dict[str, int], extra: Sequence[str]) -> list[str]:
    """The server's command line."""
    return [
        str(server.binary),
        f"--model-repository={repository}",
        *(f"--{protocol}-address={host}" for protocol in ports),
        *(f"--{protocol}-port={port}" for protocol, port in ports.items()),
        *server.flags,
        *extra,
    ]


def when_ready(server: subprocess.Popen[bytes], addresses: dict[str, Address], preset: Preset) -> str:
    """Wait until the server serves, and say so.

    Raises:
        NotReady: it ends, or does not upscale.
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
    return f"ready: {where} (a {side}×{side} image took {seconds:.2f} s)"


def main(argv: list[str] | None = None) -> int:
    parser = make_parser(
        __doc__,
        "python -m pipeline.serve",
        "Start a Triton Inference Server in the foreground: an installed one, or else the one in the wheel "
        "nvidia-pytriton, which completes no configurations. Whatever stands behind -- goes to tritonserver as it is.",
    )
    add = parser.add_argument
    add("--model-repository", type=Path, default=REPOSITORY, help="default: %(default)s")
    add(
        "--host",
        default="127.0.0.1",
        help="IPv4 address to listen at; there is no password, so 0.0.0.0 serves whoever reaches this machine "
        "(default: %(default)s, this machine alone)",
    )
    add("--http-port", type=int, default=8000, help="default: %(default)s")
    add("--grpc-port", type=int, default=8001, help="default: %(default)s")
    add("--metrics-port", type=int, default=8002, help="default: %(default)s")
    add(
        "--runtime",
        choices=RUNTIMES,
        default="auto",
        help="of the networks on a CPU: openvino computes in INT8 and bfloat16 (default: openvino, in the wheel's "
        "server, where there is no GPU and the processor has what the preset uses of these)",
    )
    add(
        "--no-check",
        dest="check",
        action="store_false",
        help="do not ask the server for an image before calling it ready",
    )
    add("extra", nargs="*", metavar="-- FLAG", help="any tritonserver flag")
    args = parser.parse_args(argv)
    ports = {protocol: getattr(args, f"{protocol}_port") for protocol in PROTOCOLS}
    try:
        models = check_repository(args.model_repository)
        server = find_server()
        preset = preset_of(args.model_repository)
        flags = runtime_flags(args.runtime, server, preset)
        host = find_host(args.host)
        addresses = listening_at(host, ports, args.extra)
        check_ports(addresses)
        check_shared_memory(args.model_repository, args.extra)
        repository = plain_path(args.model_repository)
    except ServeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    tolerant = TOLERANT if any(model.backend == "tensorrt" for model in models) else ()
    command = command_line(server, repository, host, ports, [*flags, *tolerant, *args.extra])
    settings = [f"{name}={value}" for name, value in server.environment.items()]
    print("starting: " + shlex.join(["env", *settings, *command]), flush=True)
    unchecked = why_unchecked(models, preset, args.extra)

    def check(process: subprocess.Popen[bytes]) -> str | None:
        if not args.check:
            return None
        return f"not checked: {unchecked}" if unchecked else when_ready(process, addresses, preset)

    try:
        return supervise(command, server.environment, check)
    except OSError as error:
        print(f"error: cannot run '{server.binary}': {error.strerror}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
