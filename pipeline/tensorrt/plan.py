"""Build TensorRT plans on the GPU that will run them, verify them against ONNX, and install them in the repository.

python -m pipeline.plan                     the U-Net and the fused model
python -m pipeline.plan --all               also the other networks
python -m pipeline.plan --precision fp32 --model-repository my/repository
python -m pipeline.plan --keep-others       keep the plans for other kinds of GPUs

A plan is specific to one kind of GPU and one version of TensorRT, so none is in git. trtexec builds it if available,
else the Python package tensorrt. A JSON file beside the plan records its source, GPU and versions.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

from pipeline.command_line import make_parser
from pipeline.export.parity import Parity, ParityError, judge, measure_parity, report
from pipeline.hashes import file_hash
from pipeline.models import onnx_models, plan_models
from pipeline.presets import Preset
from pipeline.runtimes.onnx import onnx_networks
from pipeline.serving.local_server import ServerError, not_ready, running_server
from pipeline.spec import Model
from pipeline.tensorrt.builder import Builder, BuilderName, PlanError, Precision, cast, find_builder, profiles
from pipeline.triton_config import MODEL_FILE, config_text, preset_of, read_config


@dataclass(frozen=True)
class Gpu:
    """The GPU on and for which a plan is built."""

    name: str
    driver: str
    compute_capability: str
    cuda: str | None
    """Newest CUDA version supported by the driver."""


@dataclass(frozen=True)
class Order:
    """The plans to build and how to build them."""

    repository: Path
    preset: Preset
    pairs: tuple[tuple[Model, Model], ...]
    """(network, its plan), the denoiser first."""
    precision: Precision
    timing_cache: Path | None
    keep_others: bool
    """Whether to keep plans for other kinds of GPUs, which Triton selects by compute capability."""

    def onnx(self, network: Model) -> Path:
        return self.repository / network.name / "1" / MODEL_FILE[network.backend]

    def file(self, gpu: Gpu) -> str:
        """Return the plan's file name."""
        return f"model_sm{gpu.compute_capability.replace('.', '')}.plan" if self.keep_others else "model.plan"


def ask_nvidia_smi(*arguments: str) -> str:
    """Run the driver's tool nvidia-smi and return its output.

    Raises:
        PlanError: nvidia-smi is not installed or finds no GPU.
    """
    try:
        return subprocess.run(
            ["nvidia-smi", *arguments], capture_output=True, text=True, check=True, timeout=60
        ).stdout.strip()
    except FileNotFoundError:
        raise PlanError(
            "no NVIDIA GPU here (nvidia-smi not found): build the plan on the GPU that will run it"
        ) from None
    except (subprocess.SubprocessError, OSError) as error:
        lines = (getattr(error, "stderr", "") or getattr(error, "stdout", "") or str(error)).strip().splitlines()
        raise PlanError(f"no NVIDIA GPU can be used: nvidia-smi says '{lines[-1] if lines else error}'") from error


def find_gpu() -> Gpu:
    """Return the GPU that CUDA uses: the first of CUDA_VISIBLE_DEVICES, else the driver's first.

    Raises:
        PlanError: there is no GPU.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    if not visible:
        raise PlanError("no NVIDIA GPU here: CUDA_VISIBLE_DEVICES is empty")
    answer = ask_nvidia_smi(f"--id={visible}", "--query-gpu=name,driver_version,compute_cap", "--format=csv,noheader")
    found = re.fullmatch(r"(.+), *(.+), *(\d+\.\d+)", answer)
    if not found:
        raise PlanError(f"no NVIDIA GPU can be used: nvidia-smi says '{answer}'")
    cuda = re.search(r"CUDA(?: UMD)? Version: *([\d.]+)", ask_nvidia_smi())
    return Gpu(found[1], found[2], found[3], cuda[1] if cuda else None)


def stage(order: Order, gpu: Gpu, builder: Builder, staging: Path) -> None:
    """Copy the repository to ``staging`` with new plans replacing the old ones.

    A server on the copy allows the plans to be checked before anything is replaced.

    Raises:
        PlanError: a plan cannot be built.
    """
    old = [] if order.keep_others else [plan.name for plan in plan_models(order.preset)]
    shutil.copytree(order.repository, staging, ignore=shutil.ignore_patterns("__pycache__", ".*", *old))
    for network, model in order.pairs:
        onnx, folder = order.onnx(network), staging / model.name
        (folder / "1").mkdir(parents=True, exist_ok=True)
        config = folder / "config.pbtxt"
        others = read_config(config).cc_model_filenames if config.is_file() else {}
        mine = {gpu.compute_capability: order.file(gpu)} if order.keep_others else {}
        config.write_text(config_text(model, {**others, **mine}))
        if not builder.flags and order.precision != "fp32":
            onnx = cast(onnx, staging.with_name(f"{network.name}.onnx"), order.precision)
        shapes = profiles(model, order.preset)
        builder.build(onnx, folder / "1" / order.file(gpu), shapes, order.precision, order.timing_cache)


def check(order: Order, staging: Path, log: Path) -> Parity:
    """Compare the plans in ``staging`` with the ONNX files, on a server.

    Raises:
        PlanError: the server cannot run the plans.
        ParityError: the plans differ too much from the ONNX files.
    """
    try:
        # the plans' images are checked by the parity gate
        with running_server(log, staging, ["--runtime=onnxruntime"], check=False) as url:
            for _, model in order.pairs:
                if reason := not_ready(url, model.name):
                    raise PlanError(f"the server cannot load '{model.name}': {reason}")
            parity = measure_parity(url, order.preset, onnx_networks(order.repository, order.preset), order.pairs)
    except ServerError as error:
        raise PlanError(f"the server cannot run the plan: {' '.join(str(error).split())}") from error
    print(report(parity))
    judge(parity)
    return parity


def describe(order: Order, network: Model, model: Model, gpu: Gpu, version: str, parity: Parity) -> str:
    """Return the text of the JSON file beside a plan."""
    onnx = order.onnx(network)
    metadata = {
        "onnx": onnx.relative_to(order.repository).as_posix(),
        "onnx_sha256": file_hash(onnx),
        "preset": order.preset.name,
        "tensorrt": version,
        "gpu": asdict(gpu),
        "precision": order.precision,
        "profile": {name: asdict(profile) for name, profile in profiles(model, order.preset).items()},
        "parity": asdict(parity),
    }
    return json.dumps(metadata, indent=2) + "\n"


def install(staging: Path, repository: Path, names: list[str], shelter: str) -> None:
    """Replace models' folders, all or, on failure, none.

    They are first copied within the repository, which may be a mount point, to the folder of its model ``shelter``:
    there a server ignores folders that are not numbers, whereas it takes every folder of the repository for a model,
    even a hidden one.
    """
    with tempfile.TemporaryDirectory(dir=repository / shelter, prefix=".plan-") as folder:
        beside = Path(folder)
        for name in names:
            shutil.copytree(staging / name, beside / name)
        with contextlib.ExitStack() as undo:
            for name in names:
                new, target, old = beside / name, repository / name, beside / f"{name}.old"
                if target.exists():
                    os.replace(target, old)
                    undo.callback(os.replace, old, target)
                os.replace(new, target)
                undo.callback(os.replace, target, new)
            undo.pop_all()


def make_plans(order: Order, gpu: Gpu, builder: Builder) -> None:
    """Build, verify and install plans, each with a JSON file on its origin.

    Raises:
        PlanError: a plan cannot be built here.
        ParityError: a plan differs too much from its ONNX file; nothing is replaced.
    """
    with tempfile.TemporaryDirectory() as folder:
        staging = Path(folder) / "repository"
        stage(order, gpu, builder, staging)
        print(f"built by TensorRT {builder.version} for {gpu.name}; comparing with ONNX on a server", flush=True)
        parity = check(order, staging, Path(folder) / "server.log")
        for network, model in order.pairs:
            path = (staging / model.name / "1" / order.file(gpu)).with_suffix(".json")
            path.write_text(describe(order, network, model, gpu, builder.version, parity))
        install(staging, order.repository, [model.name for _, model in order.pairs], order.pairs[0][0].name)
    for _, model in order.pairs:
        print(f"wrote '{order.repository / model.name / '1' / order.file(gpu)}'")


def main(argv: list[str] | None = None) -> int:
    parser = make_parser(__doc__, "python -m pipeline.plan")
    add = parser.add_argument
    add("--model-repository", type=Path, default=Path("model_repository"), help="default: %(default)s")
    add("--all", action="store_true", help="also build plans for encoder, decoder and restorer")
    add("--precision", choices=get_args(Precision), default="fp16", help="default: %(default)s")
    add("--builder", choices=get_args(BuilderName), default="auto", help="default: trtexec if available, else the API")
    add("--timing-cache", type=Path, help="file that speeds up later builds; read and written")
    add("--keep-others", action="store_true", help="keep plans for other kinds of GPUs, for a shared repository")
    args = parser.parse_args(argv)
    # nvidia-smi's order, so that the GPU it describes is the one that CUDA uses
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    try:
        if not args.model_repository.is_dir():
            raise PlanError(f"'{args.model_repository}' is not a directory: set the repository with --model-repository")
        preset = preset_of(args.model_repository)
        models = onnx_models(preset)
        each = dict(zip(models, plan_models(preset), strict=True))
        wanted = dict.fromkeys((models.denoiser, models.fused, *(models if args.all else ())))
        pairs = tuple((network, each[network]) for network in wanted)
        order = Order(args.model_repository, preset, pairs, args.precision, args.timing_cache, args.keep_others)
        for network, _ in pairs:
            if not order.onnx(network).is_file():
                raise PlanError(
                    f"'{order.onnx(network)}' is missing: restore it with git, or write it with `make export`"
                )
        make_plans(order, find_gpu(), find_builder(args.builder))
    except (PlanError, ParityError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; nothing was replaced", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
