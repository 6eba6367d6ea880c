"""ONNX ⇒ TensorRT plan, by trtexec or by the Python package tensorrt: shapes, precision, and what is refused."""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
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
"""Where it lies: on PATH, or where NVIDIA's container has it."""
STRONGLY_TYPED_SINCE = 11
"""From this version of TensorRT on, precision is what the ONNX file says, not a flag of the builder."""


class PlanError(Exception):
    """The plan cannot be built; the message says why and what to do."""


@dataclass(frozen=True)
class Profile:
    """The shapes that an input of a plan may have, batch axis first."""

    smallest: Shape
    usual: Shape
    largest: Shape


@dataclass(frozen=True)
class Builder:
    """A TensorRT that makes plans."""

    version: str
    flags: bool
    """Whether precision is a flag of this TensorRT; else it must stand in the ONNX file."""
    build: Callable[[Path, Path, dict[str, Profile], Precision, Path | None], None]
    """(ONNX file, plan to write, shapes, precision, timing cache to read and write); raises PlanError."""


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


def error_line(printed: str) -> str:
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
        raise PlanError(f"trtexec failed with status {done.returncode}: {error_line(done.stdout)}")
    return done.stdout


def trtexec_version(printed: str) -> tuple[int, int, int]:
    """From the head of what every run prints: [TensorRT v8601] is 8.6.1, [TensorRT v100800] is 10.8.0.

    Raises:
        PlanError: it is not there.
    """
    found = re.search(r"\[TensorRT v(\d{4,6})\]", printed)
    if not found:
        raise PlanError(f"trtexec does not say which TensorRT it is: '{error_line(printed)}'")
    rest, patch = divmod(int(found[1]), 100)
    return (*divmod(rest, 100 if rest >= 1000 else 10), patch)


def trtexec_builder(trtexec: str) -> Builder:
    """The TensorRT that trtexec belongs to.

    Raises:
        PlanError: it cannot be run.
    """
    version = trtexec_version(run_trtexec([trtexec, "--help"]))
    flags = version[0] < STRONGLY_TYPED_SINCE

    def build(
        onnx: Path, plan: Path, shapes: dict[str, Profile], precision: Precision, timing_cache: Path | None
    ) -> None:
        run_trtexec(trtexec_command(trtexec, onnx, plan, shapes, precision, timing_cache, flags=flags))
        if not plan.is_file():
            raise PlanError("trtexec reported success, but wrote no plan")

    return Builder(".".join(map(str, version)), flags, build)


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


def api_builder(trt: Any) -> Builder:
    """The TensorRT of the Python package ``trt``."""
    version = str(trt.__version__)
    flags = int(version.split(".")[0]) < STRONGLY_TYPED_SINCE and hasattr(trt.BuilderFlag, "FP16")

    def build(
        onnx: Path, plan: Path, shapes: dict[str, Profile], precision: Precision, timing_cache: Path | None
    ) -> None:
        said: list[str] = []

        class Log(trt.ILogger):  # type: ignore[misc]
            def log(self, severity: Any, message: str) -> None:
                if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                    said.append(message)

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
        if timing_cache:
            old = timing_cache.read_bytes() if timing_cache.is_file() else b""
            if not config.set_timing_cache(config.create_timing_cache(old), ignore_mismatch=False):
                raise PlanError(f"timing cache '{timing_cache}' is damaged, or of another GPU or TensorRT: remove it")
        profile = builder.create_optimization_profile()
        for name, shape in shapes.items():
            profile.set_shape(name, shape.smallest, shape.usual, shape.largest)
        added = config.add_optimization_profile(profile) >= 0
        built = builder.build_serialized_network(network, config) if added else None
        if built is None:
            raise PlanError(f"TensorRT cannot build '{onnx}': {said[0] if said else 'it does not say why'}")
        plan.write_bytes(built)
        if timing_cache:
            with atomic_write(timing_cache) as partial:
                partial.write_bytes(config.get_timing_cache().serialize())

    return Builder(version, flags, build)


def find_builder(name: BuilderName) -> Builder:
    """trtexec where it is, else the Python package; or the one that is asked for.

    Raises:
        PlanError: it is not here.
    """
    trtexec = next((found for found in map(shutil.which, TRTEXEC) if found), None)
    if name == "trtexec" and trtexec is None:
        raise PlanError(f"there is no trtexec: neither {' nor '.join(TRTEXEC)}")
    return trtexec_builder(trtexec) if trtexec and name != "api" else api_builder(load_tensorrt())


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
