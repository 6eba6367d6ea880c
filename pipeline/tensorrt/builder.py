"""Build TensorRT plans from ONNX files, with trtexec or the Python package tensorrt."""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from pipeline.atomic import atomic_write
from pipeline.presets import Preset
from pipeline.spec import MAX_BATCH, MAX_SIDE, Model

Precision = Literal["fp32", "fp16", "bf16"]
BuilderName = Literal["auto", "trtexec", "api"]
Shape = tuple[int, ...]

TRTEXEC = ("trtexec", "/usr/src/tensorrt/bin/trtexec")
"""Candidates: on PATH, and the location in NVIDIA's container."""
STRONGLY_TYPED_SINCE = 11
"""First version of TensorRT that takes the precision from the ONNX file instead of a builder flag."""


class PlanError(Exception):
    """The plan cannot be built; the message states the problem and the remedy."""


@dataclass(frozen=True)
class Profile:
    """The range of shapes of a plan's input, batch axis first."""

    smallest: Shape
    usual: Shape
    largest: Shape


Profiles = dict[str, Profile]
"""Input ⇒ its range of shapes."""


@dataclass(frozen=True)
class Builder:
    """A TensorRT installation that builds plans."""

    version: str
    flags: bool
    """Whether this TensorRT takes the precision as a flag; otherwise it comes from the ONNX file."""
    build: Callable[[Path, Path, Profiles, Precision, Path | None], None]
    """(ONNX file, plan to write, shapes, precision, timing cache to read and write); raises PlanError."""


def profiles(model: Model, preset: Preset) -> Profiles:
    """Return input ⇒ profile, from one smallest image to a full batch of largest ones, optimised for one usual image.

    Input sizes scale with the LR image's side, relative to the model's warm-up for the usual one.
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


def error_line(printed: str) -> str:
    """Return the first line that reports an error, else the last one."""
    lines = [line.strip() for line in printed.splitlines() if line.strip()] or ["nothing"]
    return next((line for line in lines if "[E]" in line or "rror" in line), lines[-1])


def run_trtexec(command: list[str]) -> str:
    """Run trtexec and return its output.

    Raises:
        PlanError: trtexec cannot be run or fails.
    """
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    except OSError as error:
        raise PlanError(f"cannot run '{command[0]}': {error.strerror}") from error
    if done.returncode != 0:
        raise PlanError(f"trtexec failed with status {done.returncode}: {error_line(done.stdout)}")
    return done.stdout


def trtexec_version(printed: str) -> tuple[int, int, int]:
    """Parse the version in the header of trtexec's output: [TensorRT v8601] is 8.6.1, [TensorRT v100800] is 10.8.0.

    Raises:
        PlanError: the output has no version.
    """
    found = re.search(r"\[TensorRT v(\d{4,6})\]", printed)
    if not found:
        raise PlanError(f"trtexec does not report its TensorRT version: '{error_line(printed)}'")
    rest, patch = divmod(int(found[1]), 100)
    return (*divmod(rest, 100 if rest >= 1000 else 10), patch)


def trtexec_builder(trtexec: str) -> Builder:
    """Return the TensorRT installation of trtexec.

    Raises:
        PlanError: trtexec cannot be run.
    """
    version = trtexec_version(run_trtexec([trtexec, "--help"]))
    flags = version[0] < STRONGLY_TYPED_SINCE
    return Builder(".".join(map(str, version)), flags, partial(build_by_trtexec, trtexec, flags))


def build_by_trtexec(
    trtexec: str, flags: bool, onnx: Path, plan: Path, shapes: Profiles, precision: Precision, timing_cache: Path | None
) -> None:
    """Build a plan; see ``Builder``."""

    def option(name: str, which: str) -> str:
        return f"--{name}=" + ",".join(
            f"{tensor}:{'x'.join(map(str, getattr(profile, which)))}" for tensor, profile in shapes.items()
        )

    command = [
        *(trtexec, f"--onnx={onnx}", f"--saveEngine={plan}"),
        *(option("minShapes", "smallest"), option("optShapes", "usual"), option("maxShapes", "largest")),
        *([f"--{precision}"] if flags and precision != "fp32" else []),
        *(["--noTF32"] if precision == "fp32" else []),
        *([f"--timingCacheFile={timing_cache}"] if timing_cache else []),
        "--skipInference",
    ]
    run_trtexec(command)
    if not plan.is_file():
        raise PlanError("trtexec reported success, but wrote no plan")


def load_tensorrt() -> ModuleType:
    """Import the package tensorrt.

    Raises:
        PlanError: the package is not installed or cannot be loaded.
    """
    try:
        return importlib.import_module("tensorrt")
    except (ImportError, OSError) as error:
        raise PlanError(
            f"neither trtexec nor the Python package tensorrt is installed ({error}): use NVIDIA's container, or pip "
            "install tensorrt"
        ) from error


def api_builder(trt: Any) -> Builder:
    """Return the TensorRT installation of the Python package ``trt``."""
    version = str(trt.__version__)
    flags = int(version.split(".")[0]) < STRONGLY_TYPED_SINCE and hasattr(trt.BuilderFlag, "FP16")
    return Builder(version, flags, partial(build_by_api, trt, flags))


def build_by_api(
    trt: Any, flags: bool, onnx: Path, plan: Path, shapes: Profiles, precision: Precision, timing_cache: Path | None
) -> None:
    """Build a plan; see ``Builder``."""
    errors: list[str] = []

    class Log(trt.ILogger):  # type: ignore[misc]
        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                errors.append(message)

    log = Log()
    builder = trt.Builder(log)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(onnx)):
        error = parser.get_error(0)
        what = " ".join(filter(None, (error.node_operator(), error.code().name)))
        raise PlanError(f"TensorRT cannot read '{onnx}': {what}: {error.desc()}")
    config = builder.create_builder_config()
    if precision == "fp32":
        config.clear_flag(trt.BuilderFlag.TF32)
    elif flags:
        config.set_flag(getattr(trt.BuilderFlag, precision.upper()))
    profile = builder.create_optimization_profile()
    for name, shape in shapes.items():
        profile.set_shape(name, shape.smallest, shape.usual, shape.largest)
    added = config.add_optimization_profile(profile) >= 0
    with timed_by(config, timing_cache):
        built = builder.build_serialized_network(network, config) if added else None
        if built is None:
            raise PlanError(f"TensorRT cannot build '{onnx}': {errors[0] if errors else 'no reason given'}")
        plan.write_bytes(built)


@contextmanager
def timed_by(config: Any, cache: Path | None) -> Iterator[None]:
    """Have a build read the file of timings and, if it succeeds, add to it."""
    if cache is None:
        yield
        return
    old = cache.read_bytes() if cache.is_file() else b""
    if not config.set_timing_cache(config.create_timing_cache(old), ignore_mismatch=False):
        raise PlanError(f"timing cache '{cache}' is damaged, or of another GPU or TensorRT: remove it")
    yield
    with atomic_write(cache) as file:
        file.write_bytes(config.get_timing_cache().serialize())


def find_builder(name: BuilderName) -> Builder:
    """Return the requested builder; "auto": trtexec if available, else the Python package.

    Raises:
        PlanError: the builder is not available.
    """
    trtexec = next((found for found in map(shutil.which, TRTEXEC) if found), None)
    if name == "trtexec" and trtexec is None:
        raise PlanError(f"trtexec was not found: neither {' nor '.join(TRTEXEC)}")
    return trtexec_builder(trtexec) if trtexec and name != "api" else api_builder(load_tensorrt())


def cast(onnx: Path, target: Path, precision: Precision) -> Path:
    """Convert the network to mixed precision with NVIDIA's AutoCast, keeping the types of inputs and outputs.

    Raises:
        PlanError: AutoCast is not installed or fails.
    """
    try:
        autocast = importlib.import_module("modelopt.onnx.autocast")
        writer = importlib.import_module("onnx")
    except ImportError as error:
        raise PlanError(
            f"TensorRT {STRONGLY_TYPED_SINCE} and newer take the precision from the ONNX file, and AutoCast, which "
            f"sets it there, is not installed ({error}): pip install nvidia-modelopt[onnx], or use --precision fp32"
        ) from error
    try:
        mixed = autocast.convert_to_mixed_precision(
            onnx_path=str(onnx), low_precision_type=precision, keep_io_types=True
        )
    except Exception as error:  # another package may raise anything
        raise PlanError(f"AutoCast failed on '{onnx}': {error}") from error
    writer.save(mixed, str(target))
    return target
