"""Variants of upscaling for ``benchmarks.gpu``, all starting from the same noise."""

from __future__ import annotations

import functools
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.gpu_networks import (
    Network,
    Unavailable,
    graphed,
    load,
    onnxruntime_network,
    pytorch_networks,
    tensorrt_network,
)
from pipeline.method.images import Image
from pipeline.method.options import Options
from pipeline.method.sampled import Sampled, as_sampled
from pipeline.method.sampler import ETA, Seed, Step, image_noise, rows, trajectory
from pipeline.method.schedule import add_noise, make_schedule
from pipeline.method.upscale import Array, network_lr, repeat_rows, upsample_all, upscale
from pipeline.models import onnx_models
from pipeline.networks import eager
from pipeline.presets import PAPER, Preset
from pipeline.spec import UNROLLED_STEPS, Model, SamplerName
from pipeline.tensorrt.builder import Precision

ROOT = Path(__file__).resolve().parents[1]
VARIANTS = {
    "eager": "PyTorch eager",
    "graph": "PyTorch, one CUDA graph",
    "graph-bf16": "PyTorch, one CUDA graph, bfloat16 autocast",
    "graph-fp16": "PyTorch, one CUDA graph, float16 autocast",
    "onnxruntime": "onnxruntime",
    "tensorrt-fp32": "TensorRT, fp32",
    "tensorrt-fp16": "TensorRT, fp16",
    "tensorrt-rtx-fp32": "TensorRT-RTX, fp32",
    "tensorrt-rtx-fp16": "TensorRT-RTX, fp16",
    "triton": "Triton",
}
HALVES = {"graph-bf16": torch.bfloat16, "graph-fp16": torch.float16}
PRECISIONS: dict[str, Precision] = {"fp32": "fp32", "fp16": "fp16"}
PACKAGES = {
    "onnxruntime": ["onnxruntime"],
    "tensorrt": ["tensorrt"],
    "tensorrt-rtx": ["tensorrt_rtx", "tensorrt_rtx_bindings"],
}
Variant = Callable[[], list[Image]]
"""Function that upscales a batch and returns the images in host memory."""
T = TypeVar("T")


@dataclass(frozen=True)
class Job:
    """Batch of LR images of the preset's size, and the noise that all variants start from."""

    preset: Preset
    steps: int
    sampler: SamplerName
    path: list[Step]
    device: torch.device
    images: list[Image]
    noise: list[Array]
    """arrays [B, 4, h, w], in the order in which the sampler draws them"""
    drawing: float
    """seconds taken to draw the noise"""


def make_job(preset: Preset, steps: int, device: torch.device, batch: int) -> Job:
    """Make a batch that repeats one real LR image, with seeds 0, 1, …"""
    lr = json.loads((ROOT / "benchmarks" / "superres.json").read_text())["data"][0]["image"]
    image = np.array(lr["content"], np.float32).reshape(lr["shape"])
    # the paper's sampler for models that accept any
    sampler: SamplerName = "ddpm" if preset.fused == "denoise" else preset.diffusion.sampler
    path = trajectory(make_schedule(preset.diffusion), steps, ETA[sampler], preset.diffusion.prediction)
    side = preset.data.hr_size // preset.vae.factor
    draw = image_noise(range(batch), (preset.vae.latent_channels, side, side))
    began = time.perf_counter()
    noise = [draw() for _ in range(1 + sum(step.sigma > 0 for step in path))]
    return Job(preset, steps, sampler, path, device, [image] * batch, noise, time.perf_counter() - began)


def used_models(preset: Preset) -> list[Model]:
    """Return the repository's models used here."""
    whole = preset.fused == "superres_onnx"
    return [m for m in onnx_models(preset) if (m.name == "superres_onnx" if whole else m.name != "unet_onnx")]


def image_input(job: Job) -> Tensor:
    """Return the image input of the first model: the images, or their bicubic upsampling."""
    if job.preset.fused == "superres_onnx":
        return torch.from_numpy(np.stack(job.images))
    return torch.from_numpy(upsample_all(network_lr(job.images, job.preset)))


def other_inputs(job: Job) -> dict[str, Tensor]:
    """Return the inputs that do not depend on the images."""
    coefficients = torch.from_numpy(repeat_rows(rows(job.path), len(job.images)))
    first, *others = job.noise
    if job.preset.fused == "superres_onnx":
        return {"noise": torch.from_numpy(first), "coefficients": coefficients}
    noise = np.stack([*others, np.zeros_like(first)], axis=1)  # the last step draws no noise
    return {"start": torch.from_numpy(first), "noise": torch.from_numpy(noise), "coefficients": coefficients}


def run_models(networks: dict[str, Network], x: dict[str, Tensor], preset: Preset) -> tuple[Tensor, ...]:
    """Run all models on the device; ``x`` has the tensors of ``image_input`` and ``other_inputs``."""
    if preset.fused == "superres_onnx":
        return networks["superres_onnx"](**x)
    diffusion = preset.diffusion
    c, z = networks["vae_encoder"](image=x["image"])[0], x["start"]
    if diffusion.start == "lr":
        z = add_noise(c, z, make_schedule(diffusion), diffusion.T - 1)
    for k in range(0, x["coefficients"].shape[1], UNROLLED_STEPS):
        coefficients, noise = (x[name][:, k : k + UNROLLED_STEPS] for name in ("coefficients", "noise"))
        z = networks["denoise"](z=z, condition=c, coefficients=coefficients, noise=noise)[0]
    return networks["vae_decoder"](latent=z)


Wrap = Callable[[Callable[[], tuple[Tensor, ...]]], Callable[[], tuple[Tensor, ...]]]


def on_device(job: Job, networks: dict[str, Network], wrap: Wrap = lambda run: run) -> Variant:
    """Return a variant with networks on the device and inputs at fixed addresses; ``wrap`` may record a graph."""
    cuda = job.device.type == "cuda"
    host = {name: tensor.pin_memory() if cuda else tensor for name, tensor in other_inputs(job).items()}
    x = {name: tensor.to(job.device, copy=True) for name, tensor in ({"image": image_input(job)} | host).items()}
    run = wrap(lambda: run_models(networks, x, job.preset))

    def generate(_images: Array, _seeds: Sequence[Seed]) -> Sampled:
        for name, tensor in ({"image": image_input(job)} | host).items():
            x[name].copy_(tensor, non_blocking=True)
        outputs = tuple(output.float().cpu().numpy() for output in run())
        return Sampled(*outputs) if job.preset.fused == "superres_onnx" else as_sampled(outputs, None)

    def variant() -> list[Image]:
        return [result.upscaled for result in upscale(job.images, range(len(job.images)), generate, job.preset)]

    return variant


def with_fallback(first: Callable[[], T], otherwise: Callable[[], T], note: str) -> T:
    """Return the result of ``first``, or of ``otherwise`` with a message if it fails."""
    try:
        return first()
    except Unavailable:
        raise
    except Exception as error:  # other packages may raise anything
        tqdm.write(f"note: {note}: {one_line(error)}", file=sys.stdout)
        return otherwise()


def one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:300]} …"


def eager_variant(system: eager.Eager, job: Job) -> Variant:
    def source(*_: object) -> Callable[[], Array]:
        return iter(job.noise).__next__

    generate = system.generator(Options.of(job.preset, steps=job.steps, sampler=job.sampler), source=source)
    seeds = range(len(job.images))
    return lambda: [result.upscaled for result in upscale(job.images, seeds, generate, job.preset)]


def graph_variant(system: eager.Eager, job: Job, half: torch.dtype | None) -> Variant:
    def wrap(run: Callable[[], tuple[Tensor, ...]]) -> Callable[[], tuple[Tensor, ...]]:
        def cast() -> tuple[Tensor, ...]:
            with torch.autocast(job.device.type, half, enabled=half is not None):
                return run()

        return graphed(cast)

    return on_device(job, pytorch_networks(system), wrap)


def onnx_variant(job: Job, repository: Path) -> Variant:
    def variant(graph: bool) -> Variant:
        def network(model: Model) -> Network:
            path = repository / model.name / "1" / "model.onnx"
            return onnxruntime_network(path, model, job.preset, len(job.images), job.device, graph)

        return on_device(job, {model.name: network(model) for model in used_models(job.preset)})

    if job.device.type == "cpu":
        return variant(False)
    return with_fallback(lambda: variant(True), lambda: variant(False), "onnxruntime runs without a CUDA graph")


def plan_variant(job: Job, package: str, precision: Precision, repository: Callable[[], Path]) -> Variant:
    trt = load(PACKAGES[package])
    networks = {}
    for model in used_models(job.preset):
        path = repository() / model.name / "1" / "model.onnx"
        networks[model.name] = tensorrt_network(trt, path, model, job.preset, len(job.images), precision, job.device)
    return with_fallback(
        lambda: on_device(job, networks, graphed),
        lambda: on_device(job, networks),
        f"{VARIANTS[f'{package}-{precision}']} runs without a CUDA graph",
    )


def server_variant(job: Job, client: Any, stack: ExitStack) -> Variant:
    """Return a variant that sends all images of the batch at once, in separate requests, to a ``client.Client``."""
    pool = stack.enter_context(ThreadPoolExecutor(len(job.images)))

    def ask(seed: int) -> Image:
        answer: Image = client.upscale(job.images[seed], seed=seed, steps=job.steps, sampler=job.sampler).image
        return answer

    return lambda: list(pool.map(ask, range(len(job.images))))


def find_repository(preset: Preset, given: Path | None, stack: ExitStack) -> Path:
    """Return the preset's model repository: given, this clone's, or exported into a folder removed by ``stack``.

    Raises:
        Unavailable: the repository cannot be exported here.
    """
    if preset != PAPER:
        return ROOT / "model_repository"
    if given:
        return given
    try:
        from pipeline.export.command import export
    except ImportError as error:
        raise Unavailable(f"preset paper cannot be exported ({error}): use --model-repository-paper") from error
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    export(ROOT / "weights" / preset.name, folder, preset)
    return folder


def connect(preset: Preset, repository: Path, stack: ExitStack) -> Any:
    """Start a server on a copy of the repository, completed if it has only networks, and return a client.

    Raises:
        Unavailable: the server or client is not installed.
        Exception: the server does not start.
    """
    try:
        from client import Client
        from pipeline.serving import ServeError
        from pipeline.serving.find import find_server
        from pipeline.serving.local_server import running_server
        from pipeline.triton_config import config_files
    except ImportError as error:
        raise Unavailable(str(error)) from error
    try:
        find_server()
    except ServeError as error:
        raise Unavailable(str(error)) from error
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    shutil.copytree(repository, folder / "models")
    for name, text in config_files(preset).items():
        (folder / "models" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "models" / name).write_text(text)
    method = Path("superres", "1", "model.py")
    (folder / "models" / method).parent.mkdir(exist_ok=True)
    shutil.copy(ROOT / "model_repository" / method, folder / "models" / method)
    return stack.enter_context(Client(stack.enter_context(running_server(folder / "log", folder / "models"))))


def make_variants(
    jobs: list[Job], wanted: Sequence[str], given: Path | None, stack: ExitStack
) -> list[dict[str, Variant]]:
    """Return each job's variants by name, eager first; unavailable ones are skipped with a message."""
    preset, device = jobs[0].preset, jobs[0].device
    system = eager.load(ROOT / "weights" / preset.name, preset, device=str(device))
    repository = functools.cache(lambda: find_repository(preset, given, stack))
    client = functools.cache(lambda: connect(preset, repository(), stack))

    def make(name: str, job: Job) -> Variant:
        if name == "onnxruntime":
            load(PACKAGES[name])
            return onnx_variant(job, repository())
        if device.type != "cuda":
            raise Unavailable("needs a CUDA device")
        if name == "triton":
            return server_variant(job, client(), stack)
        package, _, precision = name.rpartition("-")
        if name.startswith("graph"):
            return graph_variant(system, job, HALVES.get(name))
        return plan_variant(job, package, PRECISIONS[precision], repository)

    variants = [{"eager": eager_variant(system, job)} for job in jobs]
    for name in tqdm([name for name in VARIANTS if name in wanted and name != "eager"], desc=preset.name):
        try:
            made = [make(name, job) for job in jobs]
            for variant in made:
                variant()
        except Exception as error:  # other packages may raise anything
            tqdm.write(f"skipped: {VARIANTS[name]}, preset {preset.name}: {one_line(error)}", file=sys.stdout)
            continue
        for found, variant in zip(variants, made, strict=True):
            found[name] = variant
    return variants
