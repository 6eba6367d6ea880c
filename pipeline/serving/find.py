"""Select a tritonserver and the networks' CPU runtime."""

from __future__ import annotations

import ctypes
import filecmp
import hashlib
import importlib.metadata
import importlib.util
import os
import shlex
import shutil
import sys
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path

from pipeline import ROOT
from pipeline.atomic import atomic_write
from pipeline.presets import Preset
from pipeline.runtimes.processor import BFLOAT16, INT8, cpu_supports
from pipeline.serving import ServeError

INSTALLED = Path("/opt/tritonserver/bin/tritonserver")
OUR_BACKENDS = ("onnxruntime", "openvino", "tensorrt")
NVIDIA = Path("/dev/nvidiactl")
"""Device file that exists if a GPU driver is loaded."""
RUNTIMES = ("auto", "onnxruntime", "openvino")
PYTHON_VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"


@dataclass(frozen=True)
class Server:
    """A tritonserver with its flags and environment."""

    binary: Path
    flags: tuple[str, ...] = ()
    bundled: bool = False
    """Whether it is the wheel's server, which runs networks on this project's backends."""
    environment: dict[str, str] = field(default_factory=dict)


def find_server() -> Server:
    """Return an installed server (PATH, then /opt/tritonserver) with its own backends, else the wheel's.

    Raises:
        ServeError: there is no server, or the wheel's cannot run with this Python.
    """
    on_path = shutil.which("tritonserver")
    if on_path or INSTALLED.is_file():
        python_path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        return Server(Path(on_path or INSTALLED), environment={"PYTHONPATH": python_path})
    wheel = importlib.util.find_spec("pytriton")
    if wheel is None or wheel.origin is None:
        raise ServeError(
            "no tritonserver in PATH or /opt/tritonserver, and the wheel that contains one is not installed: "
            "pip install --no-deps nvidia-pytriton==0.7.0"
        )
    return embedded_server(Path(wheel.origin).parent)


def embedded_server(package: Path) -> Server:
    """Return the wheel's server with a backend directory for this Python.

    Raises:
        ServeError: the wheel has no stub for this Python, libpython is missing, or NumPy is incompatible.
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
            # the configurations are complete; querying each Python model for more would double the startup time
            "--disable-auto-complete-config",
        ),
        bundled=True,
        environment={
            "LD_LIBRARY_PATH": os.pathsep.join(libraries),
            # the stub uses the packages of the first `python3` in PATH, and in some versions those in PYTHONPATH
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        },
    )


def check_numpy() -> None:
    """Check that this Python's NumPy is compatible with the wheel's stub, which was built against NumPy 1.

    Raises:
        ServeError: NumPy is incompatible; every request would fail.
    """
    version = importlib.metadata.version("numpy")
    if int(version.partition(".")[0]) >= 2:
        project = ROOT if (ROOT / "pyproject.toml").is_file() else "cxr-superres"
        raise ServeError(
            f"NumPy {version} is installed, and the wheel's server needs NumPy 1: "
            + shlex.join([sys.executable, "-m", "pip", "install", f"{project}[server]"])
        )


def libpython_directory() -> list[str]:
    """Return the directory of this Python's shared library in a list, empty if the system's loader finds it.

    Raises:
        ServeError: the library is missing.
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
    """Whether Triton can start Python models there: a shell starts them unquoted, and Python reads paths as ASCII."""
    return shlex.quote(str(path)) == str(path)


def short_hash(*paths: Path) -> str:
    return hashlib.sha256("\n".join(map(str, paths)).encode()).hexdigest()[:12]


def cache_directory() -> Path:
    """Return this project's folder in the user's cache.

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
    """Return the repository's absolute path, or a link in the user's cache if Triton cannot start models there.

    Raises:
        ServeError: the cache cannot be written, or its path is not plain either.
    """
    target = repository.resolve()
    if is_plain(target):
        return target
    link = cache_directory() / f"repository-{short_hash(target)}"
    try:
        link.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(link) as partial:
            partial.symlink_to(target)
    except OSError as error:
        raise ServeError(f"cannot write the link '{link}' (set XDG_CACHE_HOME): {error}") from error
    return link


def prepare_backends(triton: Path, stub: Path) -> Path:
    """Create or update a backend directory with Triton's Python backend, this Python's stub and our backends.

    It is in the user's cache, one per installation, and updated on every start. Triton rejects links that lead out of
    it, so the files (4 MB) are copied.

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
            with atomic_write(target) as partial:
                shutil.copy2(source, partial)
    except OSError as error:
        raise ServeError(f"cannot write the backend directory '{directory}' (set XDG_CACHE_HOME): {error}") from error
    return directory


def runtime_flags(runtime: str, server: Server, preset: Preset) -> list[str]:
    """Return the flags that select the networks' runtime on the CPU.

    "auto" is OpenVINO where it is faster than onnxruntime (docs/results.md): in the wheel's server without a GPU, if
    the processor supports bfloat16, or INT8 if the preset has files for it.

    Raises:
        ServeError: OpenVINO is requested but not installed.
    """
    installed = importlib.util.find_spec("openvino") is not None
    if runtime == "auto":
        fast = cpu_supports(BFLOAT16) or (bool(preset.int8) and cpu_supports(INT8))
        runtime = "openvino" if server.bundled and installed and fast and not NVIDIA.exists() else "onnxruntime"
    if runtime == "openvino" and server.bundled and not installed:
        raise ServeError("--runtime is openvino, which is not installed: pip install --no-deps openvino==2026.4.1")
    return ["--model-config-name=openvino"] if runtime == "openvino" else []
