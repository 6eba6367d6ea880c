"""Common setup of all training commands: options, split, accelerator, and metadata of the weights."""

from __future__ import annotations

import datetime
import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from torch import nn
from tqdm import tqdm

from pipeline.networks.detail_vae import DetailVAE
from pipeline.networks.unet import UNet
from pipeline.networks.vae import load_detail_vae, vae_path
from pipeline.networks.weights import check_pair, digest, load_unet, save_unet, save_vae
from pipeline.presets import DEFAULT, PRESETS, DetailVAESpec, Preset
from pipeline.runtimes.processor import BFLOAT16, CPUINFO, cpu_supports
from train.checkpoint import files_digest
from train.config import DEVICES, choose_device, option, settings
from train.data import SHARES, list_pairs, parse_split, patient_of, read_index, split_by_patient

CHECKPOINT = "checkpoint.pt"
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
SWITCH = ("auto", "on", "off")
MAX_WORKERS = 12
MAX_WAIT = datetime.timedelta(hours=12)
"""Maximum time that processes wait for the first one's encoding or validation."""


@dataclass(frozen=True)
class Training:
    """Options of all training commands."""

    data: Path = option(Path("data/nih"), "folder written by train.pairs")
    index: Path | None = option(None, "CSV file with the columns file and patient, for file names without a patient ID")
    split: str = option(SHARES, "shares of the patients in training, validation and test, in percent")
    preset: str = option(DEFAULT.name, "the system to train", choices=PRESETS)
    run_dir: Path = option(Path("runs"), "folder for the checkpoint, logs and samples")
    resume: bool = option(False, "continue the run in --run-dir if there is one", affects_result=False)
    device: str = option("auto", "auto uses a GPU if there is one", choices=DEVICES, affects_result=False)
    precision: str = option(
        "auto", "precision of training; auto: bf16 if the device has it, otherwise fp32", choices=PRECISIONS
    )
    workers: int = option(
        -1, "processes that prepare batches ahead; -1: up to 12 with a GPU, else none", affects_result=False
    )
    compile: str = option(
        "auto", "compile the networks, which takes a minute; auto: on a GPU", choices=SWITCH, affects_result=False
    )
    minutes: float = option(
        0.0, "minutes to run before stopping with a checkpoint, for --resume; 0: no limit", affects_result=False
    )
    steps: int = option(1000, "optimiser steps")
    batch: int = option(16, "samples per step, over all processes")
    accumulate: int = option(1, "parts to split each process's samples into, to save memory")
    rate: float = option(1e-3, "peak learning rate of AdamW; cosine to 0")
    warmup: int = option(50, "steps of linear warm-up")
    clip: float = option(1.0, "maximum gradient norm")
    ema: float = option(0.999, "decay of the averaged weights, which are validated and saved; 0: no averaging")
    validate_every: int = option(500, "steps between validations, samples and checkpoints; the best weights are kept")
    seed: int = option(0, "random seed; does not affect the split")

    def __post_init__(self) -> None:
        """Replace "auto": a CPU without bfloat16 emulates it at a quarter of float32's speed."""
        if self.precision == "auto":
            fast = (self.device != "cpu" and torch.cuda.is_available()) or cpu_supports(BFLOAT16)
            object.__setattr__(self, "precision", "bf16" if fast else "fp32")


def preset_of(config: Training) -> Preset:
    return PRESETS[config.preset]


def weights_of(config: Training, folder: Path | None) -> Path:
    """Return the weights folder given by an option, or the preset's."""
    return folder or Path("weights") / config.preset


def check_shares(**shares: float) -> None:
    """Raise ValueError for options outside 0–1."""
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise ValueError(f"--{name.replace('_', '-')} must be 0–1, got {share:g}")


def split_files(config: Training) -> tuple[dict[str, list[Path]], str]:
    """Return the HR files of each side of the split by patient, and a one-line description.

    Raises:
        ValueError: training or validation gets no patients.
    """
    index = read_index(config.index)
    files = split_by_patient(list_pairs(config.data), parse_split(config.split), index)
    if empty := [side for side in ("train", "val") if not files[side]]:
        raise ValueError(f"the split {config.split} gives {' and '.join(empty)} no patients")
    counts = (
        f"{side} {len(paths)} images of {len({patient_of(path, index) for path in paths})} patients"
        for side, paths in files.items()
    )
    return files, f"'{config.data.resolve().name}': " + ", ".join(counts)


def step_generator(config: Training, step: int) -> torch.Generator:
    """Return the random number generator of a step."""
    return torch.Generator().manual_seed(config.seed * 1_000_003 + step)


def workers_of(config: Training, processes: int) -> int:
    """Return the number of workers per process, given the number of training processes."""
    if config.workers >= 0:
        return config.workers
    free = len(os.sched_getaffinity(0)) // processes - 2
    return max(0, min(MAX_WORKERS, free)) if choose_device(config.device) == "cuda" else 0


def compiles(config: Training) -> bool:
    """Return whether to compile networks: with "auto", on a GPU if Triton and a C compiler are installed."""
    if config.compile != "auto":
        return config.compile == "on"
    able = importlib.util.find_spec("triton") is not None and any(map(shutil.which, ("cc", "gcc", "clang")))
    return able and choose_device(config.device) == "cuda"


def make_accelerator(config: Training) -> Accelerator:
    """Return the accelerator of this process.

    Raises:
        ValueError: the device or precision is not available, or the batch cannot be divided.
    """
    if min(config.batch, config.accumulate, config.validate_every) < 1 or config.clip <= 0:
        raise ValueError("--batch, --accumulate and --validate-every must be at least 1, and --clip above 0")
    if config.workers < -1 or config.minutes < 0:
        raise ValueError("--workers must be at least -1, and --minutes at least 0")
    cpu = choose_device(config.device) == "cpu"
    if not cpu:
        torch.set_float32_matmul_precision("high")  # TF32
        torch.backends.cudnn.benchmark = True
    if cpu and config.precision == "fp16":
        raise ValueError("--precision must be bf16 or fp32 on the CPU, got fp16")
    accelerator = Accelerator(
        cpu=cpu,
        mixed_precision="no" if config.precision == "fp32" else config.precision,
        gradient_accumulation_steps=config.accumulate,
        kwargs_handlers=[
            DistributedDataParallelKwargs(broadcast_buffers=False),
            InitProcessGroupKwargs(timeout=MAX_WAIT),
        ],
    )
    if config.batch % (accelerator.num_processes * config.accumulate):
        raise ValueError(
            f"--batch must be a multiple of {accelerator.num_processes} process(es) times --accumulate "
            f"{config.accumulate}, got {config.batch}"
        )
    return accelerator


def begin(config: Training) -> tuple[Preset, Accelerator, dict[str, list[Path]], str]:
    """Return the preset, this process's accelerator, and the files and their description of ``split_files``.

    Raises:
        ValueError: see ``make_accelerator`` and ``split_files``.
    """
    return preset_of(config), make_accelerator(config), *split_files(config)


def announce(config: Training, accelerator: Accelerator, description: str, network: nn.Module) -> None:
    """Print what is about to run and create the run's folder.

    Raises:
        ValueError: the folder already has a run, not every process sees it, or there are no steps.
        OSError: the folder cannot be created.
    """
    if config.steps < 1:
        raise ValueError(f"--steps must be at least 1, got {config.steps}")
    if (config.run_dir / CHECKPOINT).exists() and not config.resume:
        raise ValueError(f"'{config.run_dir}' already has a run: continue it with --resume, or use another --run-dir")
    if accelerator.is_main_process:
        config.run_dir.mkdir(parents=True, exist_ok=True)
        tqdm.write(
            f"{description}\n"
            f"parameters: {sum(p.numel() for p in network.parameters()):,}; {config.steps} steps of {config.batch} "
            f"samples on {accelerator.num_processes} x {accelerator.device.type}, {config.precision}"
        )
    accelerator.wait_for_everyone()
    if not config.run_dir.is_dir():
        raise ValueError(f"'{config.run_dir}' must be a folder shared by all machines")


def detail_networks(
    preset: Preset, weights: Path, files: Mapping[str, Sequence[Path]]
) -> tuple[DetailVAE, UNet, dict[str, Any]]:
    """Load both networks of a preset whose autoencoder sees the LR image, and their digests for further training.

    Raises:
        ValueError: the preset is of another kind, or weights are missing, damaged or do not belong together.
    """
    if not isinstance(preset.vae, DetailVAESpec):
        raise ValueError(f"--preset must be one whose networks see the LR image itself, got {preset.name}")
    vae = load_detail_vae(vae_path(weights, preset.vae), preset.vae)
    check_pair(weights, vae)
    unet = load_unet(weights, preset)
    return vae, unet, {"vae": digest(vae), "unet": digest(unet), "files": files_digest(files["train"])}


def save_networks(config: Training, vae: DetailVAE, unet: UNet, out: Path, description: str, **found: object) -> None:
    """Write both networks and their metadata; raise OSError on failure."""
    save_vae(vae, out, metadata(config, description, vae, **found))
    save_unet(unet, out, metadata(config, description, unet, vae=digest(vae), **found))
    tqdm.write(f"wrote both networks into '{out}'")


def metadata(config: Training, description: str, network: nn.Module, **more: object) -> dict[str, object]:
    """Return the weights' metadata."""
    return {
        "preset": config.preset,
        "data": description,
        "parameters": sum(p.numel() for p in network.parameters()),
        "config": settings(config),
        **more,
        **origin(config.device),
    }


def git(*args: str) -> str:
    """Return git's output for this repository, or "" without git or a repository."""
    try:
        done = subprocess.run(["git", *args], cwd=Path(__file__).parent, capture_output=True, text=True)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def commit() -> str:
    """Return the commit, with "-dirty" if files other than weights, which training writes, have changed."""
    head = git("rev-parse", "HEAD")
    return (
        f"{head}-dirty" if head and git("status", "--porcelain", "-uno", "--", ":/", ":(exclude,top)weights") else head
    )


def command() -> str:
    """Return the command line, without absolute paths."""
    spec = sys.modules["__main__"].__spec__
    name = f"-m {spec.name}" if spec is not None else Path(sys.argv[0]).name

    def shorter(path: re.Match[str]) -> str:
        full = Path(path[0])
        return str(full.relative_to(Path.cwd()) if full.is_relative_to(Path.cwd()) else full.name)

    return f"python {name} " + shlex.join(re.sub(r"(?<![^=])/.*", shorter, argument) for argument in sys.argv[1:])


def machine(device: str) -> str:
    """Describe the hardware and PyTorch version for ``device``, without the host name."""
    if choose_device(device) == "cuda":
        model = torch.cuda.get_device_name()
    else:
        cpuinfo = CPUINFO.read_text() if CPUINFO.exists() else ""
        found = re.search(r"^model name\s*: (.+)$", cpuinfo, re.MULTILINE)
        model = found[1] if found else platform.machine()
    return f"{model}, {len(os.sched_getaffinity(0))} cores, torch {torch.__version__}"


def origin(device: str) -> dict[str, object]:
    """Return the commit, command, machine and date, for the weights' metadata."""
    made: dict[str, object] = {
        "command": command(),
        "machine": machine(device),
        "date": datetime.date.today().isoformat(),
    }
    return ({"commit": found} if (found := commit()) else {}) | made
