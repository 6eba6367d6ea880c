"""Find a Triton Inference Server and start it in the foreground on a model repository.

python -m pipeline.serve
python -m pipeline.serve --http-port 9000 --grpc-port 9001 --metrics-port 9002
python -m pipeline.serve --model-repository my/repository -- --log-verbose=1
python -m pipeline.serve --runtime onnxruntime
"""

from __future__ import annotations

import ctypes
import errno
import filecmp
import hashlib
import importlib.util
import json
import math
import os
import re
import shlex
import shutil
import socket
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tritonclient.grpc import model_config_pb2 as pb

from pipeline.command_line import make_parser
from pipeline.processor import BFLOAT16, INT8, multiplies
from pipeline.spec import MAX_SIDE, Preset
from pipeline.triton_config import MODEL_FILE, preset_of, read_config

ROOT = Path(__file__).resolve().parents[1]
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
        ServeError: the wheel has no stub for this Python, or its libpython is missing.
    """
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
            # the stub ignores PYTHONPATH and PYTHONHOME; it takes the packages of the `python3` that it finds in PATH
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        },
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


def prepare_backends(triton: Path, stub: Path) -> Path:
    """A backend directory: Triton's Python backend with this Python's stub beside it, and ours.

    It lies in the user's cache, one for each installation, and is brought up to date by every start. Triton takes
    no links that lead out of it, so the files (4 MB) are copied.

    Raises:
        ServeError: the cache cannot be written.
    """
    files = {
        "python/libtriton_python.so": triton / "backends" / "python" / "libtriton_python.so",
        "python/triton_python_backend_utils.py": triton / "backends" / "python" / "triton_python_backend_utils.py",
        "python/triton_python_backend_stub": stub,
        **{f"{name}/model.py": ROOT / "pipeline" / "backends" / name / "model.py" for name in OUR_BACKENDS},
    }
    key = hashlib.sha256("\n".join(map(str, files.values())).encode()).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    directory = cache / "cxr-superres" / f"backends-{key}"
    try:
        for name, source in files.items():
            target = directory / name
            if target.is_file() and filecmp.cmp(source, target):
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
            shutil.copy2(source, partial)
            os.replace(partial, target)
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
        raise ServeError(f"model repository '{repository}' is not a directory")
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


def check_ports(ports: dict[str, int]) -> None:
    """See that every port can be had.

    Raises:
        ServeError: one is out of range, given twice, or taken.
    """
    for flag, port in ports.items():
        if not 1 <= port <= 65535:
            raise ServeError(f"{flag} is {port}, allowed are 1 to 65535")
        if list(ports.values()).count(port) > 1:
            raise ServeError(f"port {port} is given twice: {', '.join(f for f, p in ports.items() if p == port)}")
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("0.0.0.0", port))
            except OSError as error:
                reason = "is taken" if error.errno == errno.EADDRINUSE else f"cannot be opened: {error.strerror}"
                raise ServeError(f"port {port} {reason}: choose another with {flag}") from error


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


def command_line(server: Server, repository: Path, ports: dict[str, int], extra: Sequence[str]) -> list[str]:
    """The server's command line."""
    return [
        str(server.binary),
        f"--model-repository={repository}",
        *(f"{flag}={port}" for flag, port in ports.items()),
        *server.flags,
        *extra,
    ]


def main(argv: list[str] | None = None) -> int:
    parser = make_parser(
        __doc__,
        "python -m pipeline.serve",
        "Start a Triton Inference Server in the foreground: an installed one, or else the one in the wheel "
        "nvidia-pytriton, which completes no configurations. Whatever stands behind -- goes to tritonserver as it is.",
    )
    parser.add_argument("--model-repository", type=Path, default=ROOT / "model_repository", help="default: %(default)s")
    parser.add_argument("--http-port", type=int, default=8000, help="default: %(default)s")
    parser.add_argument("--grpc-port", type=int, default=8001, help="default: %(default)s")
    parser.add_argument("--metrics-port", type=int, default=8002, help="default: %(default)s")
    parser.add_argument(
        "--runtime",
        choices=RUNTIMES,
        default="auto",
        help="of the networks on a CPU: openvino computes in INT8 and bfloat16 (default: openvino, in the wheel's "
        "server, where there is no GPU and the processor has what the preset uses of these)",
    )
    parser.add_argument("extra", nargs="*", metavar="-- FLAG", help="any tritonserver flag")
    args = parser.parse_args(argv)
    ports = {f"--{name}-port": getattr(args, f"{name}_port") for name in ("http", "grpc", "metrics")}
    try:
        models = check_repository(args.model_repository)
        server = find_server()
        flags = runtime_flags(args.runtime, server, preset_of(args.model_repository))
        check_ports(ports)
        check_shared_memory(args.model_repository, args.extra)
    except ServeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    tolerant = TOLERANT if any(model.backend == "tensorrt" for model in models) else ()
    command = command_line(server, args.model_repository.resolve(), ports, [*flags, *tolerant, *args.extra])
    settings = [f"{name}={value}" for name, value in server.environment.items()]
    print("starting: " + shlex.join(["env", *settings, *command]), flush=True)
    # the server takes this process's place, and with it the terminal, the signals and the exit status
    os.execve(server.binary, command, {**os.environ, **server.environment})
    return None


if __name__ == "__main__":
    sys.exit(main())
