"""Compare our server with other implementations of the same image and weights, taking turns.

python -m benchmarks.alternatives
python -m benchmarks.alternatives --rounds 9 --steps 4
python -m benchmarks.alternatives --way diffusers in_process
python -m benchmarks.alternatives --model-repository models-paper --steps 300 --way diffusers in_process

Variants: `diffusers`, its scheduler's loop in eager PyTorch; `compiled`, the same with torch.compile; `in_process`, a
Triton model that runs PyTorch itself, like public examples of Stable Diffusion; `esrgan`, another method, Real-ESRGAN
x4plus on ncnn, with files fetched by `benchmarks/peers.py`. All but the last start from the same noise, so the maximum
difference to our image should be small. Read the ratios, not the seconds. The last line is JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import tritonclient.grpc
from diffusers import DDIMScheduler
from google.protobuf import text_format
from tqdm import tqdm
from tritonclient.grpc import model_config_pb2 as pb
from tritonclient.utils import InferenceServerException

from benchmarks.interleave import interleave, median_ratio
from benchmarks.peers import CACHE, PeerError, real_esrgan
from client import Client, UpscaleError
from pipeline import ROOT
from pipeline.command_line import count, make_parser, one_line_errors
from pipeline.method.images import Image, to_network
from pipeline.method.sampled import Generate, Sampled, as_sampled
from pipeline.method.sampler import Seed, image_noise
from pipeline.method.schedule import make_schedule
from pipeline.method.upscale import Array, condition, upscale
from pipeline.networks import eager
from pipeline.presets import Preset
from pipeline.remote import infer
from pipeline.serving.local_server import ServerError, running_server
from pipeline.triton_config import preset_of
from train.report import markdown

VARIANTS = {
    "diffusers": "diffusers, PyTorch eager",
    "compiled": "diffusers, torch.compile",
    "in_process": "PyTorch in a Triton model",
    "esrgan": "Real-ESRGAN x4plus, ncnn",
}
CONCURRENCY = 8
PREDICTIONS = {"eps": "epsilon", "v": "v_prediction"}

Variant = Callable[[Image], Image]
"""Upscaler, [H, W] ⇒ [4H, 4W], both in [0, 1]."""


class Unavailable(Exception):
    """This variant is not available here; the message says why."""


def make_scheduler(preset: Preset, steps: int) -> DDIMScheduler:
    """Return diffusers' DDIM scheduler with the preset's noise schedule and our timesteps."""
    scheduler = DDIMScheduler(
        preset.diffusion.T,
        prediction_type=PREDICTIONS[preset.diffusion.prediction],
        timestep_spacing="trailing",
        clip_sample=False,
    )
    scheduler.alphas_cumprod = torch.from_numpy(make_schedule(preset.diffusion).alpha_bar)
    scheduler.set_timesteps(steps)
    return scheduler


def diffusers_loop(system: eager.Eager, steps: int) -> Generate:
    """Return a generator with eager networks in the loop from diffusers' documentation."""
    preset = system.preset
    scheduler = make_scheduler(preset, steps)

    @torch.inference_mode()
    def generate(images: Array, seeds: Sequence[Seed]) -> Sampled:
        lr = to_network(images, preset.data.channels)
        restored, history = system.restore(lr)
        c = system.tensor(condition(restored, preset, system.encode))
        z = system.tensor(image_noise(seeds, (preset.vae.latent_channels, *c.shape[2:]))())
        if preset.diffusion.start == "lr":
            z = scheduler.add_noise(c, z, scheduler.timesteps[:1])
        for t in scheduler.timesteps.tolist():
            predicted = system.unet(torch.cat([z, c], dim=1), z.new_full((len(z), 1), t))
            z = scheduler.step(predicted, t, z).prev_sample
        return as_sampled(system.decode(z, lr), history)

    return generate


def compiled(system: eager.Eager) -> eager.Eager:
    """Compile U-Net and decoder with torch.compile, which needs a C++ compiler.

    Raises:
        Unavailable: there is no compiler.
    """
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise Unavailable(f"torch.compile needs a C++ compiler, '{compiler}' not found: install g++ or set CXX")
    unet, decoder = torch.compile(system.unet), torch.compile(system.decoder)
    return replace(system, unet=unet, decoder=decoder)  # type: ignore[arg-type]


def loop_variant(system: eager.Eager, steps: int) -> Variant:
    generate = diffusers_loop(system, steps)
    return lambda image: upscale([image], [0], generate, system.preset)[0].upscaled


def write_in_process(repository: Path, preset: Preset, steps: int) -> None:
    """Add the model ``in_process`` to a model repository."""
    config = pb.ModelConfig(name="in_process", backend="python")
    config.input.add(name="image", data_type=pb.TYPE_FP32, dims=[-1, -1])
    config.output.add(name="upscaled", data_type=pb.TYPE_FP32, dims=[-1, -1])
    config.instance_group.add(kind=pb.ModelInstanceGroup.KIND_CPU, count=1)
    for key, value in (("preset", preset.name), ("weights", ROOT / "weights" / preset.name), ("steps", steps)):
        config.parameters[key].string_value = str(value)
    folder = repository / "in_process"
    (folder / "1").mkdir(parents=True)
    (folder / "config.pbtxt").write_text(text_format.MessageToString(config))
    shutil.copy(ROOT / "benchmarks" / "in_process.py", folder / "1" / "model.py")


@dataclass(frozen=True)
class Compared:
    """One variant compared with our server."""

    seconds: float
    """median seconds per image"""
    ratio: float
    """ratio of the seconds to our server's, median over the rounds"""
    difference: float
    """maximum difference to the server's image, in gray levels"""


def compare(variants: dict[str, Variant], image: Image, rounds: int, concurrency: int = 1) -> dict[str, Compared]:
    """Time the variants in turn, ``concurrency`` images at a time, relative to the first variant.

    Returns:
        results by variant, with seconds and ratios per image.
    """
    results = {name: variant(image) for name, variant in tqdm(variants.items(), desc="first images", leave=False)}
    first = next(iter(variants))
    with ThreadPoolExecutor(concurrency) as pool:

        def at_once(variant: Variant) -> Callable[[], object]:
            return lambda: list(pool.map(variant, [image] * concurrency))

        runs = {name: at_once(variant) for name, variant in variants.items()}
        seconds = interleave(runs, rounds, f"rounds, {concurrency} at once")
    return {
        name: Compared(
            statistics.median(times) / concurrency,
            median_ratio(times, seconds[first]),
            255 * float(np.abs(results[name] - results[first]).max()),
        )
        for name, times in seconds.items()
    }


def rounded(result: Compared) -> dict[str, float]:
    return {name: round(value, 4) for name, value in asdict(result).items()}


def table(title: str, found: dict[str, Compared]) -> str:
    rows = [
        [VARIANTS.get(name, name), f"{1e3 * result.seconds:.1f}", f"{result.ratio:.2f}", f"{result.difference:.2f}"]
        for name, result in found.items()
    ]
    return markdown([title, "ms per image", "/ ours", "difference (levels)"], rows)


def local_variants(wanted: Sequence[str], system: eager.Eager, steps: int) -> dict[str, Variant]:
    """Return the variants that need no server; unavailable ones are skipped with a message."""
    makers: dict[str, Callable[[], Variant]] = {
        "diffusers": lambda: loop_variant(system, steps),
        "compiled": lambda: loop_variant(compiled(system), steps),
        "esrgan": lambda: real_esrgan(CACHE),
    }
    variants = {}
    for name in (name for name in wanted if name in makers):
        try:
            variants[name] = makers[name]()
        except (Unavailable, PeerError) as error:
            print(f"skipped: {VARIANTS[name]}: {error}")
    return variants


def measure(
    models: Path, wanted: Sequence[str], steps: int | None, rounds: int
) -> tuple[dict[str, Compared], dict[str, Compared]]:
    """Compare one image at a time, and ``CONCURRENCY`` at a time for the server variants only.

    Raises:
        ServerError: the server does not start.
        UpscaleError: the server does not respond.
        ValueError: there are no weights for its preset, or ``steps`` is out of range.
    """
    preset = preset_of(models)
    steps = preset.diffusion.ddim_steps if steps is None else steps
    lr = json.loads((ROOT / "benchmarks" / "superres.json").read_text())["data"][0]["image"]
    image = np.array(lr["content"], np.float32).reshape(lr["shape"])
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        repository = folder / "models"
        shutil.copytree(models, repository)
        if "in_process" in wanted:
            write_in_process(repository, preset, steps)
        url = stack.enter_context(running_server(folder / "log", repository))
        client = stack.enter_context(Client(url))
        client.check(steps=steps)
        served: dict[str, Variant] = {"ours": lambda image: client.upscale(image, steps=steps).image}
        if "in_process" in wanted:
            other = stack.enter_context(tritonclient.grpc.InferenceServerClient(url))
            served["in_process"] = lambda image: infer(other, "in_process", {"image": image}, ["upscaled"])[0]
        system = eager.load(ROOT / "weights" / preset.name, preset)
        alone = compare(served | local_variants(wanted, system, steps), image, rounds)
        return alone, compare(served, image, rounds, CONCURRENCY)


@one_line_errors(ServerError, UpscaleError, ValueError)
def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--model-repository", type=Path, default=ROOT / "model_repository", help="default: %(default)s")
    parser.add_argument("--way", choices=VARIANTS, nargs="+", default=list(VARIANTS), help="default: all")
    parser.add_argument("--steps", type=int, help="DDIM steps (default: the preset's)")
    parser.add_argument("--rounds", type=count, default=5, help="default: %(default)s")
    args = parser.parse_args(argv)
    try:
        alone, together = measure(args.model_repository, args.way, args.steps, args.rounds)
    except InferenceServerException as error:
        raise ServerError(f"the model in_process failed: {error.message()}") from error
    print(f"\n{table('one at a time', alone)}\n\n{table(f'{CONCURRENCY} at once', together)}\n")
    found = {"alone": alone, f"{CONCURRENCY} at once": together}
    print(json.dumps({title: {name: rounded(r) for name, r in results.items()} for title, results in found.items()}))


if __name__ == "__main__":
    sys.exit(main())
