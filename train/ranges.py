"""Record the input ranges of a preset's convolutions, for the INT8 export of ``pipeline.export``.

python -m train.ranges --data data/nih
python -m train.ranges --data data/nih --weights weights/mine --limit 200
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from pipeline.command_line import make_parser, one_line_errors
from pipeline.method.options import Options
from pipeline.method.upscale import draw_samples, fused_generator
from pipeline.networks import eager
from pipeline.networks.detail_vae import DetailVAE
from pipeline.networks.fused import Fused
from pipeline.networks.weights import RANGES_FILE, Array, digest, save_ranges
from pipeline.presets import DEFAULT, PRESETS
from train.data import PairDataset, read_index
from train.degrade import DEGRADATION_ROWS
from train.evaluate import add_choice, choose

EXACT = (
    "unet.stem",
    "unet.out",
    "vae.from_latent.0",
    "vae.from_lr",
    "vae.out",
    "vae.restorer",
    "vae.doubt.lr",
    "vae.presentation",
)
"""Convolutions kept in floating point: first and last layers, where errors are visible and the cost is low."""


def quantizable(whole: Fused) -> dict[str, nn.Conv2d]:
    """Return the model's convolutions that can run in INT8, by name."""
    return {
        name: module
        for name, module in whole.named_modules()
        if isinstance(module, nn.Conv2d) and not name.startswith((*EXACT, "vae.encoder"))
    }


@torch.inference_mode()
def record(pairs: PairDataset, system: eager.Eager) -> dict[str, Array]:
    """Record the minimum and maximum of each input channel of each convolution, [2, C].

    Image i has seed i and one of ``DEGRADATION_ROWS`` in turn.
    """
    vae = system.decoder.vae
    assert isinstance(vae, DetailVAE)
    whole = Fused(system.unet, vae)
    found: dict[str, Array] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor]], None]:
        def see(_module: nn.Module, inputs: tuple[Tensor]) -> None:
            low, high = (bound(inputs[0], (0, 2, 3)).numpy() for bound in (torch.amin, torch.amax))
            before = found.get(name, np.stack([low, high]))
            found[name] = np.stack([np.minimum(before[0], low), np.maximum(before[1], high)])

        return see

    def fused(**inputs: Array) -> tuple[Array, ...]:
        outputs = whole(*(torch.from_numpy(inputs[name]) for name in ("image", "noise", "coefficients")))
        return tuple(output.numpy() for output in outputs)

    hooks = [module.register_forward_pre_hook(watch(name)) for name, module in quantizable(whole).items()]
    generate = fused_generator(fused, system.preset)
    histories = [PairDataset(pairs.paths, pairs.data, degradation=d) for d in DEGRADATION_ROWS.values()]
    for i in tqdm(range(len(pairs)), desc="ranges", unit="image", leave=False):
        lr, _ = histories[i % len(histories)].unit_images(i)
        next(draw_samples([lr], [i], generate, system.preset, Options.of(system.preset)))
    for hook in hooks:
        hook.remove()
    return found


@one_line_errors(ValueError, OSError, interrupted="interrupted; nothing was written")
def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__doc__, "python -m train.ranges")
    add_choice(parser, split="train")
    presets = [name for name, preset in PRESETS.items() if preset.int8]
    parser.add_argument("--preset", choices=presets, default=DEFAULT.name, help="default: %(default)s")
    parser.add_argument("--weights", type=Path, help="default: weights/PRESET")
    args = parser.parse_args(argv)
    weights = args.weights or Path("weights") / args.preset
    pairs, patients = choose(args.data, args.split, args.limit, read_index(args.index), args.shares)
    system = eager.load(weights, PRESETS[args.preset])
    ranges = record(pairs, system)
    data = f"{len(pairs)} images of {len(set(patients))} patients, split {args.split}"
    save_ranges(ranges, weights, {"vae": digest(system.decoder.vae), "unet": digest(system.unet), "data": data})
    print(f"{data}: {len(ranges)} convolutions; wrote '{weights / RANGES_FILE}'")


if __name__ == "__main__":
    sys.exit(main())
