"""Build the U-Net's TensorRT plan on the GPU that will run it, check it against ONNX, and put it into the repository.

python -m pipeline.plan
python -m pipeline.plan --precision fp32 --model-repository my/repository
python -m pipeline.plan --builder trtexec --timing-cache timing.cache

A plan belongs to one kind of GPU and one version of TensorRT, so none is in git. trtexec builds it where there is one,
else the Python package tensorrt. A JSON file beside the plan says what it was built from and on.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args

from pipeline.command_line import make_parser
from pipeline.local_server import ServerError, running_server
from pipeline.onnx_networks import onnx_networks
from pipeline.parity import ParityError, judge, measure_parity, report
from pipeline.spec import MAX_BATCH, MAX_SIDE, Model, Preset, network_models, unet_trt_model
from pipeline.triton_config import MODEL_FILE, config_text, preset_of

Precision = Literal["fp32", "fp16", "bf16"]
Shape = tuple[int, ...]

TRTEXEC = ("trtexec", "/usr/src/tensorrt/bin/trtexec")
"""Where it lies: on PATH, or where NVIDIA's container has it."""
STRONGLY_TYPED_SINCE = 11
"""From this version of TensorRT on, precision is what the ONNX file says, not a flag of the builder."""


class PlanError(Exception):
    """The plan cannot be built; the message says why and what to do."""


@dataclass(frozen=True)
class Gpu:
    """The GPU that a plan is built on and for."""

    name: str
    driver: str
    compute_capability: str


@dataclass(frozen=True)
class Profile:
    """The shapes that an input of a plan may have, batch axis first."""

    smallest: Shape
    usual: Shape
    largest: Shape


def find_gpu() -> Gpu:
    """The first GPU that the driver shows.

    Raises:
        PlanError: there is none.
    """
    query = ["nvidia-smi", "--query-gpu=name,driver_version,compute_cap", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, check=True, timeout=60).stdout
    except FileNotFoundError:
        raise PlanError(
            "no NVIDIA GPU here (there is no nvidia-smi): build the plan on the GPU that will run it"
        ) from None
    except (subprocess.SubprocessError, OSError) as error:
        said = (getattr(error, "stderr", "") or getattr(error, "stdout", "") or str(error)).strip().splitlines()
        raise PlanError(f"no NVIDIA GPU can be used: nvidia-smi says '{said[-1] if said else error}'") from error
    fields = [field.strip() for field in answer.partition("\n")[0].split(",")]
    if len(fields) != 3:
        raise PlanError(f"no NVIDIA GPU can be used: nvidia-smi says '{answer.strip()}'")
    return Gpu(*fields)


def profiles(model: Model, preset: Preset) -> dict[str, Profile]:
    """By input: from one image of the smallest size to a full batch of the largest, best for one of the usual size.

    Sizes of inputs follow the LR image's side, as the model's warm-up says for the usual one.
    """

    def shape(batch: int, side: int, dims: Shape, usual: Shape) -> Shape:
        return (batch, *(u * side // preset.data.lr_size if d == -1 else u for d, u in zip(dims, usual, strict=True)))

    return {
        tensor.name: Profile(
            shape(1, preset.lr_multiple, tensor.dims, usual),
            shape(1, preset.data.lr_size, tensor.dims, usual),
            shape(MAX_BATCH, MAX_SIDE, tensor.dims, usual),
        )
        for tensor, usual in zip(model.inputs, model.warmup, strict=True)
    }


def trtexec_command(
    trtexec: str,
    onnx: Path,
    plan: Path,
    shapes: dict[str, Profile],
    precision: Precision,
    timing_cache: Path | None,
    *,
    flags: bool,
) -> list[str]:
    """The command line; ``flags``: whether this version takes the precision as a flag."""

    def option(name: str, which: str) -> str:
        return f"--{name}=" + ",".join(
            f"{tensor}:{'x'.join(map(str, getattr(profile, which)))}" for tensor, profile in shapes.items()
        )

    return [
        trtexec,
        f"--onnx={onnx}",
        f"--saveEngine={plan}",
        option("minShapes", "smallest"),
        option("optShapes", "usual"),
        option("maxShapes", "largest"),
        *([f"--{precision}"] if flags and precision != "fp32" else []),
        *(["--noTF32"] if precision == "fp32" else []),
        *([f"--timingCacheFile={timing_cache}"] if timing_cache else []),
        "--skipInference",
    ]


def find_trtexec() -> str | None:
    return next((found for found in map(shutil.which, TRTEXEC) if found), None)


def telling_line(printed: str) -> str:
    """The first line that tells of an error, else the last one."""
    lines = [line.strip() for line in printed.splitlines() if line.strip()] or ["nothing"]
    return next((line for line in lines if "[E]" in line or "rror" in line), lines[-1])


def run_trtexec(command: list[str]) -> str:
    """What it prints.

    Raises:
        PlanError: it cannot be run, or fails.
    """
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    except OSError as error:
        raise PlanError(f"cannot run '{command[0]}': {error.strerror}") from error
    if done.returncode != 0:
        raise PlanError(f"trtexec failed with status {done.returncode}: {telling_line(done.stdout)}")
    return done.stdout


def trtexec_version(printed: str) -> tuple[int, int, int]:
    """From the head of what every run prints: [TensorRT v8601] is 8.6.1, [TensorRT v100800] is 10.8.0.

    Raises:
        PlanError: it is not there.
    """
    found = re.search(r"\[TensorRT v(\d{4,6})\]", printed)
    if not found:
        raise PlanError(f"trtexec does not say which TensorRT it is: '{telling_line(printed)}'")
    rest, patch = divmod(int(found[1]), 100)
    return (*divmod(rest, 100 if rest >= 1000 else 10), patch)


def build_by_trtexec(
    trtexec: str, onnx: Path, plan: Path, shapes: dict[str, Profile], precision: Precision, timing_cache: Path | None
) -> str:
    """Write ``plan``; returns the version of TensorRT.

    Raises:
        PlanError: it fails; the message holds trtexec's own.
    """
    version = trtexec_version(run_trtexec([trtexec, "--help"]))
    flags = version[0] < STRONGLY_TYPED_SINCE
    source = onnx if flags or precision == "fp32" else cast(onnx, plan.with_suffix(".onnx"), precision)
    run_trtexec(trtexec_command(trtexec, source, plan, shapes, precision, timing_cache, flags=flags))
    return ".".join(map(str, version))


def cast(onnx: Path, target: Path, precision: Precision) -> Path:
    """Write the network in mixed precision, with inputs and outputs as they were, by NVIDIA's AutoCast.

    Raises:
        PlanError: it is not installed, or fails.
    """
    try:
        autocast = importlib.import_module("modelopt.onnx.autocast")
        writer = importlib.import_module("onnx")
    except ImportError as error:
        raise PlanError(
            f"TensorRT {STRONGLY_TYPED_SINCE} and newer take the precision from the ONNX file, and AutoCast, which "
            f"puts it there, is not installed ({error}): pip install nvidia-modelopt[onnx], or use --precision fp32"
        ) from error
    try:
        mixed = autocast.convert_to_mixed_precision(
            onnx_path=str(onnx), low_precision_type=precision, keep_io_types=True
        )
    except Exception as error:  # whatever another package raises is the reason
        raise PlanError(f"AutoCast failed on '{onnx}': {error}") from error
    writer.save(mixed, str(target))
    return target


def load_tensorrt() -> ModuleType:
    """The package tensorrt.

    Raises:
        PlanError: it is not installed, or does not load.
    """
    try:
        return importlib.import_module("tensorrt")
    except (ImportError, OSError) as error:
        raise PlanError(
            f"neither trtexec nor the Python package tensorrt is here ({error}): use NVIDIA's container, or pip "
            "install tensorrt"
        ) from error


def build_by_api(
    trt: Any, onnx: Path, plan: Path, shapes: dict[str, Profile], precision: Precision, timing_cache: Path | None
) -> str:
    """Write ``plan`` with the Python package ``trt``; returns its version.

    Raises:
        PlanError: it fails; the message holds the parser's or the builder's own.
    """
    said: list[str] = []

    class Log(trt.ILogger):  # type: ignore[misc]
        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                said.append(message)

    log = Log()
    strongly = int(trt.__version__.split(".")[0]) >= STRONGLY_TYPED_SINCE or not hasattr(trt.BuilderFlag, "FP16")
    source = cast(onnx, plan.with_suffix(".onnx"), precision) if strongly and precision != "fp32" else onnx
    builder = trt.Builder(log)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(source)):
        raise PlanError(f"TensorRT cannot read '{source}': {parser.get_error(0).desc()}")
    config = builder.create_builder_config()
    if precision == "fp32":
        config.clear_flag(trt.BuilderFlag.TF32)
    elif not strongly:
        config.set_flag(getattr(trt.BuilderFlag, precision.upper()))
    cache = config.create_timing_cache(timing_cache.read_bytes() if timing_cache and timing_cache.is_file() else b"")
    config.set_timing_cache(cache, ignore_mismatch=False)
    profile = builder.create_optimization_profile()
    for name, shape in shapes.items():
        profile.set_shape(name, shape.smallest, shape.usual, shape.largest)
    config.add_optimization_profile(profile)
    built = builder.build_serialized_network(network, config)
    if built is None:
        raise PlanError(f"TensorRT cannot build '{source}': {said[0] if said else 'it does not say why'}")
    plan.write_bytes(built)
    if timing_cache:
        timing_cache.write_bytes(config.get_timing_cache().serialize())
    return str(trt.__version__)


def make_staging(repository: Path, staging: Path, preset: Preset, build: Callable[[Path], str]) -> str:
    """Copy ``repository`` without its old plan to ``staging``, build the new one there; returns TensorRT's version.

    A server on the copy can then be asked what the plan makes of images, before anything is replaced.
    """
    shutil.copytree(repository, staging, ignore=shutil.ignore_patterns("unet_trt", "__pycache__", ".*"))
    model = unet_trt_model(preset)
    folder = staging / model.name
    (folder / "1").mkdir(parents=True)
    (folder / "config.pbtxt").write_text(config_text(model))
    return build(folder / "1" / MODEL_FILE[model.backend])


def install(staged: Path, target: Path) -> None:
    """Put a model's folder in the place of the old one, which stays until the new one is there whole."""
    old = target.with_name(f".{target.name}.{os.getpid()}.old")
    if target.exists():
        os.replace(target, old)
    os.replace(staged, target)
    shutil.rmtree(old, ignore_errors=True)


def make_plan(repository: Path, precision: Precision, builder: str, timing_cache: Path | None) -> None:
    """Build, check and install ``unet_trt`` with a JSON file on where it comes from.

    Raises:
        PlanError: it cannot be built here.
        ParityError: it is built, but not the network that the ONNX file is; nothing is replaced.
    """
    gpu = find_gpu()
    preset = preset_of(repository)
    model = unet_trt_model(preset)
    onnx = repository / network_models(preset)[0].name / "1" / "model.onnx"
    if not onnx.is_file():
        raise PlanError(f"'{onnx}' is missing: restore it with git, or write it with `make export`")
    trtexec = find_trtexec() if builder != "api" else None
    if builder == "trtexec" and trtexec is None:
        raise PlanError(f"there is no trtexec: neither {' nor '.join(TRTEXEC)}")
    shapes = profiles(model, preset)
    trt = None if trtexec else load_tensorrt()

    def build(plan: Path) -> str:
        if trtexec:
            return build_by_trtexec(trtexec, onnx, plan, shapes, precision, timing_cache)
        return build_by_api(trt, onnx, plan, shapes, precision, timing_cache)

    with tempfile.TemporaryDirectory(dir=repository.parent, prefix=".plan-") as folder:
        staging = Path(folder) / "repository"
        version = make_staging(repository, staging, preset, build)
        print(f"built by TensorRT {version} for {gpu.name}; comparing with ONNX on a server", flush=True)
        log = Path(folder) / "server.log"
        try:
            with running_server(log, staging) as url:
                parity = measure_parity(url, preset, onnx_networks(repository, preset))
        except ServerError as error:
            raise PlanError(f"no server takes the plan: {error}") from error
        print(report(parity))
        judge(parity)
        about = {
            **{"tensorrt": version, "gpu": asdict(gpu), "precision": precision, "preset": preset.name},
            **{"onnx_sha256": hashlib.sha256(onnx.read_bytes()).hexdigest()},
            **{"profile": {name: asdict(profile) for name, profile in shapes.items()}, "parity": asdict(parity)},
        }
        staged = staging / model.name
        (staged / "1" / "model.json").write_text(json.dumps(about, indent=2) + "\n")
        install(staged, repository / model.name)
    print(f"wrote '{repository / model.name / '1' / MODEL_FILE[model.backend]}'")


def main(argv: list[str] | None = None) -> int:
    parser = make_parser(__doc__, "python -m pipeline.plan")
    add = parser.add_argument
    add("--model-repository", type=Path, default=Path("model_repository"), help="default: %(default)s")
    add("--precision", choices=get_args(Precision), default="fp16", help="default: %(default)s")
    add(
        "--builder",
        choices=("auto", "trtexec", "api"),
        default="auto",
        help="default: trtexec where it is, else the API",
    )
    add("--timing-cache", type=Path, help="file that makes the next build faster; read and written")
    args = parser.parse_args(argv)
    try:
        make_plan(args.model_repository, args.precision, args.builder, args.timing_cache)
    except (PlanError, ParityError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; nothing was replaced", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
