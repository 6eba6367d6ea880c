"""Count the multiplications per image in all networks of a preset, and compare presets.

python benchmarks/arithmetic.py
python benchmarks/arithmetic.py --side 128 --run best:1 best:4 paper:10 paper:300

Counted by PyTorch's flop counter on networks without weights, so the figures are exact and take no time. The last
line is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from pipeline.command_line import make_parser
from pipeline.networks.unet import UNet
from pipeline.networks.vae import decode, make_vae, posterior
from pipeline.presets import BEST, DEFAULT, PAPER, PRESETS, Preset
from pipeline.spec import SCALE


@dataclass(frozen=True)
class Arithmetic:
    """Cost of one image by network, in 10⁹ multiply-adds or another counted unit."""

    unet: float
    """cost of one call"""
    encoder: float
    """0 if not needed for inference"""
    decoder: float

    def total(self, steps: int) -> float:
        return steps * self.unet + self.encoder + self.decoder


def count(run: Callable[[], object]) -> float:
    """Count 10⁹ multiply-adds."""
    with FlopCounterMode(display=False) as counter:
        run()
    return float(counter.get_total_flops()) / 2e9


@torch.no_grad()
def arithmetic(preset: Preset, side: int, count: Callable[[Callable[[], object]], float] = count) -> Arithmetic:
    """Return the cost of an LR image of side² pixels; ``count`` runs a network and returns its cost."""
    z, hr, channels = side * SCALE // preset.vae.factor, side * SCALE, preset.data.channels
    with torch.device("meta"):
        unet, vae = UNet(preset.unet), make_vae(preset.vae)
        x, t = torch.empty(1, preset.unet.in_channels, z, z), torch.empty(1)
        image, lr = torch.empty(1, channels, hr, hr), torch.empty(1, channels, side, side)
        latent = torch.empty(1, preset.vae.latent_channels, z, z)
        encodes = preset.condition == "latent"
        return Arithmetic(
            unet=count(lambda: unet(x, t)),
            encoder=count(lambda: posterior(vae, image, lr)) if encodes else 0.0,
            decoder=count(lambda: decode(vae, latent, lr)),
        )


def parse_run(text: str) -> tuple[Preset, int]:
    """Parse ``PRESET:STEPS``."""
    name, _, steps = text.partition(":")
    if name not in PRESETS or not steps.isdecimal() or not 1 <= int(steps) <= PRESETS[name].diffusion.T:
        raise argparse.ArgumentTypeError(f"must be PRESET:STEPS with a preset of {', '.join(PRESETS)}, got '{text}'")
    return PRESETS[name], int(steps)


def main(argv: list[str] | None = None) -> int:
    parser = make_parser(__doc__)
    side = DEFAULT.data.lr_size
    parser.add_argument("--side", type=int, default=side, help="side of the LR image (default: %(default)s)")
    parser.add_argument(
        "--run",
        type=parse_run,
        nargs="+",
        metavar="PRESET:STEPS",
        default=[(PAPER, 300), (PAPER, 10), (BEST, 4), (BEST, 1)],
        help="runs to compare with the first (default: paper:300 paper:10 best:4 best:1)",
    )
    args = parser.parse_args(argv)
    multiple = max(preset.lr_multiple for preset, _ in args.run)
    if args.side < 1 or args.side % multiple:
        parser.error(f"argument --side: must be a multiple of {multiple}, got {args.side}")
    first = None
    results = {}
    print(f"one {args.side}×{args.side} image, 10⁹ multiply-adds\n")
    print("| preset, steps | U-Net, per step | encoder | decoder | total | relative to first |")
    print("|---|---|---|---|---|---|")
    for preset, steps in args.run:
        found = arithmetic(preset, args.side)
        total = found.total(steps)
        first = first or total
        name = f"{preset.name}, {steps}"
        results[name] = total / first
        parts = (found.unet, found.encoder, found.decoder, total)
        print(f"| {name} | " + " | ".join(f"{part:.2f}" for part in parts) + f" | {total / first:.3f} |")
    print("\n" + json.dumps({name: round(ratio, 4) for name, ratio in results.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
