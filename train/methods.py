"""Methods compared by ``train.evaluate``: bicubic, the autoencoder alone, and the system on each runtime."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from client import Client
from pipeline.method.images import Image, to_network, upsample
from pipeline.method.options import InvalidRequest, Options
from pipeline.method.sampled import Generate, Sampled, as_sampled
from pipeline.method.sampler import Seed
from pipeline.method.upscale import Array, generator, upscale
from pipeline.networks.eager import Eager
from pipeline.presets import Preset
from pipeline.runtimes.onnx import onnx_networks
from pipeline.spec import HISTORY, REDUCTIONS, Output, SamplerName, Start

RUNTIMES = {"bicubic": "bicubic", "torch": "PyTorch", "onnx": "ONNX", "server": "Triton", "trt": "TensorRT"}
BICUBIC = RUNTIMES["bicubic"]
CEILING = "autoencoder alone (ceiling)"

Method = Callable[[list[Image], list[Image], list[int]], list[Image]]
"""Upscaler, (LR images, HR images, seeds) ⇒ images to compare with HR."""


@dataclass(frozen=True)
class Sampling:
    """Settings of a run of the system."""

    sampler: SamplerName
    steps: int
    start: Start
    samples: int = 1
    output: Output = "sample"
    faithful: bool | None = None
    degradation: str = "auto"

    def __str__(self) -> str:
        start = "pure noise" if self.start == "noise" else "the LR latent"
        steps = f"{self.steps} step{'s' if self.steps > 1 else ''}"
        parts = [self.sampler.upper(), steps, f"from {start}"]
        if self.output == "mean":
            parts.append(f"mean of {self.samples}")
        if self.faithful is not None:
            parts.append("faithful" if self.faithful else "not projected")
        if self.degradation != "auto":
            parts.append(f"degradation {self.degradation} stated")
        return ", ".join(parts)


def default_run(preset: Preset) -> Sampling:
    d = preset.diffusion
    return Sampling(d.sampler, d.default_steps(d.sampler), d.start)


def name_of(runtime: str, run: Sampling) -> str:
    """Return the title of a row."""
    return f"{RUNTIMES[runtime]}: {run}"


def parse_run(text: str) -> Sampling:
    """Parse ``SAMPLER:STEPS:START`` and any of ``meanN``, ``faithful``, ``free`` and a reduction."""
    error = argparse.ArgumentTypeError(
        f"must be ddpm|ddim:STEPS:noise|lr, such as ddim:4:noise, followed by any of :mean16, :faithful, :free and "
        f"a reduction, :{', :'.join(REDUCTIONS)}, got '{text}'"
    )
    sampler, steps, start, *more = [*text.split(":"), "", "", ""][: max(3, text.count(":") + 1)]
    if sampler not in ("ddpm", "ddim") or start not in ("noise", "lr") or not steps.isdecimal():
        raise error
    options: dict[str, object] = {}
    for word in more:
        if word in ("faithful", "free"):
            options["faithful"] = word == "faithful"
        elif word in REDUCTIONS:
            options["degradation"] = word
        elif word.startswith("mean") and word[4:].isdecimal():
            options |= {"samples": int(word[4:]), "output": "mean"}
        else:
            raise error
    return Sampling(sampler, int(steps), start, **options)  # type: ignore[arg-type]


def options_of(run: Sampling, preset: Preset) -> Options:
    """Return the run's options.

    Raises:
        ValueError: the preset does not support them.
    """
    try:
        return Options.of(preset, **asdict(run))
    except InvalidRequest as error:
        raise ValueError(f"preset '{preset.name}': {error}") from error


def parse_runtimes(text: str) -> tuple[str, ...]:
    """Parse a selection of ``bicubic,torch,onnx,server,trt``, in any order; bicubic is always measured."""
    names = tuple(text.split(","))
    if unknown := set(names) - set(RUNTIMES):
        raise argparse.ArgumentTypeError(f"must be among {', '.join(RUNTIMES)}, got '{', '.join(sorted(unknown))}'")
    return names


def bicubic(lr: list[Image], _hr: list[Image], _seeds: list[int]) -> list[Image]:
    """Upscale with OpenCV, equal to the paper's ``F.interpolate``."""
    return [np.clip(upsample(image), 0, 1) for image in lr]


def reconstruct(system: Eager, lr: list[Image], hr: list[Image], _seeds: list[int]) -> list[Image]:
    """Encode and decode HR: the upper bound for any denoiser."""
    high = np.stack([to_network(image, system.preset.data.channels) for image in hr])

    def generate(images: Array, which: Sequence[Seed]) -> Sampled:
        low = to_network(images, system.preset.data.channels)
        latent = torch.from_numpy(system.encode(high[list(which)], low)).to(system.device)
        history = system.restore(low)[1]
        if history is not None:
            history[:, HISTORY:] = 0  # HR would have to be rotated with LR
        return as_sampled(system.decode(latent, low), history)

    return [result.upscaled for result in upscale(lr, range(len(lr)), generate, system.preset)]


def run_generator(
    generate: Generate, preset: Preset, options: Options, lr: list[Image], _hr: list[Image], seeds: list[int]
) -> list[Image]:
    """Upscale with a generator made with the same options."""
    return [result.upscaled for result in upscale(lr, seeds, generate, preset, options)]


def run_on_server(
    client: Client, denoiser: str, options: Options, lr: list[Image], _hr: list[Image], seeds: list[int]
) -> list[Image]:
    asked = asdict(options) | {"denoiser": denoiser}
    return [client.upscale(image, seed=seed, **asked).image for image, seed in zip(lr, seeds, strict=True)]


def make_methods(
    runtimes: Sequence[str], runs: Sequence[Sampling], system: Eager, repository: Path, url: str
) -> dict[str, Method]:
    """Return bicubic, the autoencoder alone, and each run on each runtime, by title.

    Raises:
        ValueError: the preset does not support a run, the repository's ONNX files are missing or from another preset,
            or the server runs another preset.
        UpscaleError: a server is needed, and there is none at ``url``.
    """
    preset = system.preset
    options = {run: options_of(run, preset) for run in runs}
    systems: dict[str, Callable[[Options], Method]] = {}
    if "torch" in runtimes:
        systems["torch"] = lambda o: partial(run_generator, system.generator(o), preset, o)
    if "onnx" in runtimes:
        networks = onnx_networks(repository, preset)
        systems["onnx"] = lambda o: partial(run_generator, generator(networks, preset, o), preset, o)
    if {"server", "trt"} & set(runtimes):
        client = Client(url)
        if client.preset != preset:
            raise ValueError(f"the server at {url} must run preset '{preset.name}', got '{client.preset.name}'")
        for runtime, denoiser in (("server", "auto"), ("trt", "trt")):
            if runtime in runtimes:
                systems[runtime] = partial(partial, run_on_server, client, denoiser)
    methods: dict[str, Method] = {BICUBIC: bicubic, CEILING: partial(reconstruct, system)}
    return methods | {name_of(runtime, run): make(options[run]) for run in runs for runtime, make in systems.items()}
