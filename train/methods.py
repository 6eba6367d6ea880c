"""The ways to an HR image that ``train.evaluate`` compares: bicubic, the autoencoder alone, the system by runtime."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from client import Client
from pipeline.eager import Eager
from pipeline.images import Image, from_network, to_network, upsample
from pipeline.onnx_networks import onnx_networks
from pipeline.spec import PAPER, SamplerName, Start
from pipeline.superres import Networks, upscale

RUNTIMES = {"bicubic": "bicubic", "torch": "PyTorch", "onnx": "ONNX", "trt": "TensorRT"}
BICUBIC = RUNTIMES["bicubic"]
CEILING = "autoencoder alone (ceiling)"

Method = Callable[[list[Image], list[Image], list[int]], list[Image]]
"""(LR images, HR images, seeds) ⇒ images to compare with HR."""


@dataclass(frozen=True)
class Run:
    """A way to run the system."""

    sampler: SamplerName
    steps: int
    start: Start

    def __str__(self) -> str:
        start = "pure noise" if self.start == "noise" else "the LR latent"
        return f"{self.sampler.upper()}, {self.steps} steps, from {start}"


def name_of(runtime: str, run: Run) -> str:
    """The row's title."""
    return f"{RUNTIMES[runtime]}: {run}"


def parse_run(text: str) -> Run:
    """``SAMPLER:STEPS:START``, such as ``ddim:50:lr``."""
    match text.split(":"):
        case ["ddpm" | "ddim" as sampler, steps, "noise" | "lr" as start] if steps.isdecimal():
            if 1 <= int(steps) <= PAPER.diffusion.T:
                return Run(sampler, int(steps), start)
    raise argparse.ArgumentTypeError(f"'{text}', allowed are ddpm|ddim:1…{PAPER.diffusion.T}:noise|lr")


def parse_runtimes(text: str) -> tuple[str, ...]:
    """``bicubic,torch,onnx,trt``, in any order; bicubic is always measured."""
    names = tuple(text.split(","))
    if unknown := set(names) - set(RUNTIMES):
        raise argparse.ArgumentTypeError(f"'{', '.join(sorted(unknown))}', allowed are {', '.join(RUNTIMES)}")
    return names


def bicubic(lr: list[Image], _hr: list[Image], _seeds: list[int]) -> list[Image]:
    """OpenCV's, equal to the paper's ``F.interpolate``."""
    return [np.clip(upsample(image), 0, 1) for image in lr]


def reconstruct(system: Eager, _lr: list[Image], hr: list[Image], _seeds: list[int]) -> list[Image]:
    """Encode and decode HR: the best that any denoiser could reach."""
    with torch.inference_mode():
        x = torch.from_numpy(np.stack([to_network(image, PAPER.data.channels) for image in hr]))
        y = system.decoder(system.encoder(x.to(system.device)))
        return [from_network(image) for image in y.cpu().numpy()]


def by_torch(system: Eager, run: Run, lr: list[Image], _hr: list[Image], seeds: list[int]) -> list[Image]:
    return system.upscale(lr, seeds, **asdict(run))


def by_onnx(networks: Networks, run: Run, lr: list[Image], _hr: list[Image], seeds: list[int]) -> list[Image]:
    return upscale(lr, seeds, networks, PAPER, **asdict(run))


def by_trt(client: Client, run: Run, lr: list[Image], _hr: list[Image], seeds: list[int]) -> list[Image]:
    options = {"denoiser": "trt", **asdict(run)}
    return [client.upscale(image, seed=seed, **options).image for image, seed in zip(lr, seeds, strict=True)]


def make_methods(
    runtimes: Sequence[str], runs: Sequence[Run], system: Eager, repository: Path, url: str
) -> dict[str, Method]:
    """Bicubic, the autoencoder alone, and every run on every runtime.

    Raises:
        ValueError: the repository's ONNX files are missing or damaged.
        UpscaleError: TensorRT is wanted, which only a server has, and there is none at ``url``.
    """
    systems: dict[str, Callable[[Run], Method]] = {}
    if "torch" in runtimes:
        systems["torch"] = partial(partial, by_torch, system)
    if "onnx" in runtimes:
        systems["onnx"] = partial(partial, by_onnx, onnx_networks(repository))
    if "trt" in runtimes:
        systems["trt"] = partial(partial, by_trt, Client(url))
    methods: dict[str, Method] = {BICUBIC: bicubic, CEILING: partial(reconstruct, system)}
    return methods | {name_of(runtime, run): make(run) for run in runs for runtime, make in systems.items()}
