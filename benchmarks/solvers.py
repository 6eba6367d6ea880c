"""Compare DDIM with DPM-Solver++(2M) on the same U-Net, with the same number of steps.

python benchmarks/solvers.py --data data/nih --weights weights/best-untuned --steps 4 10
python benchmarks/solvers.py --data data/nih --split val --limit 24

For a U-Net from ``train.unet``: one from ``train.tune`` is adapted to its own DDIM steps. The first and last steps are
of first order, which is DDIM, so at least three steps are needed for a difference. The solver is from diffusers; noise
and networks are the pipeline's.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from diffusers import DPMSolverMultistepScheduler

from pipeline.command_line import make_parser
from pipeline.method.images import to_network
from pipeline.method.sampled import Generate, Sampled, as_sampled
from pipeline.method.sampler import Seed, image_noise
from pipeline.method.schedule import make_schedule
from pipeline.method.upscale import Array, condition
from pipeline.networks import eager
from pipeline.presets import BEST
from train.config import DEVICES, choose_device
from train.data import read_index
from train.evaluate import add_choice, choose, measure
from train.methods import Method, Sampling, make_methods, options_of, run_generator
from train.report import table

MIN_SIGNAL = 2.0**-24
"""Minimum ᾱ: the solver needs its logarithm, and ᾱ_T of pure noise is 0."""


def dpm_solver(system: eager.Eager, steps: int) -> Generate:
    """Return a DPM-Solver++(2M) generator (Lu et al. 2022), from pure noise, with the pipeline's timesteps."""
    preset = system.preset
    alpha_bar = torch.from_numpy(make_schedule(preset.diffusion).alpha_bar).float().clamp(min=MIN_SIGNAL)

    @torch.inference_mode()
    def generate(images: Array, seeds: Sequence[Seed]) -> Sampled:
        lr = to_network(images, preset.data.channels)
        scheduler = DPMSolverMultistepScheduler(
            preset.diffusion.T,
            prediction_type="v_prediction",
            timestep_spacing="trailing",
            final_sigmas_type="zero",
        )
        scheduler.alphas_cumprod = alpha_bar
        scheduler.set_timesteps(steps)
        restored, history = system.restore(lr)
        seen = system.tensor(condition(restored, preset, system.encode))
        z = system.tensor(image_noise(seeds, (preset.vae.latent_channels, *seen.shape[2:]))())
        for t in scheduler.timesteps.tolist():
            v = system.unet(torch.cat([z, seen], dim=1), z.new_full((len(z), 1), t))
            z = scheduler.step(v, t, z).prev_sample
        return as_sampled(system.decode(z, lr), history)

    return generate


def main(argv: list[str] | None = None) -> int:
    parser = make_parser(__doc__)
    add_choice(parser)
    parser.add_argument("--weights", type=Path, default=Path("weights/best-untuned"), help="default: %(default)s")
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 10], help="default: 4 10")
    parser.add_argument("--device", choices=DEVICES, default="auto", help="auto uses a GPU if there is one")
    args = parser.parse_args(argv)
    try:
        pairs, patients = choose(args.data, args.split, args.limit, read_index(args.index), args.shares)
        system = eager.load(args.weights, BEST, device=choose_device(args.device))
        runs = [Sampling("ddim", steps, "noise") for steps in args.steps]
        methods: dict[str, Method] = make_methods(("torch",), runs, system, Path(), "")
        for run in runs:
            name = f"DPM-Solver++(2M), {run.steps} step{'s' if run.steps > 1 else ''}"
            methods[name] = partial(run_generator, dpm_solver(system, run.steps), BEST, options_of(run, BEST))
        results = measure(pairs, methods, ["alex"])
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    print(f"{len(pairs)} images of {len(set(patients))} patients, split {args.split}\n")
    print(table(results, patients))
    return 0


if __name__ == "__main__":
    sys.exit(main())
