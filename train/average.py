"""Average the weights of training runs that started from the same networks.

python -m train.average weights/one weights/other --out weights/mine
python -m train.average weights/a weights/b weights/c --shares 0.5 0.4 0.1 --out weights/mine
python -m train.average weights/a weights/b --shares 0.8 0.2 --restorer-shares 0 1 --out weights/mine
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from pipeline.command_line import make_parser, one_line_errors
from pipeline.networks.detail_vae import DetailVAE
from pipeline.networks.unet import UNet
from pipeline.networks.vae import load_detail_vae, vae_path
from pipeline.networks.weights import check_pair, digest, load_unet, save_unet, save_vae
from pipeline.presets import DEFAULT, PRESETS, DetailVAESpec, Preset
from train.setup import origin

M = TypeVar("M", bound=nn.Module)


def load_pair(folder: Path, preset: Preset) -> tuple[DetailVAE, UNet]:
    """Load both networks of a weights folder.

    Raises:
        ValueError: they are missing, damaged, from another preset, or do not belong together.
    """
    assert isinstance(preset.vae, DetailVAESpec)
    vae = load_detail_vae(vae_path(folder, preset.vae), preset.vae)
    check_pair(folder, vae)
    return vae, load_unet(folder, preset)


def check_shares(option: str, shares: Sequence[float], count: int) -> list[float]:
    """Return the shares, or equal shares if none are given.

    Raises:
        ValueError: there is not one share per folder, a share is negative, or they do not sum to 1.
    """
    shares = list(shares) or [1 / count] * count
    if len(shares) != count:
        raise ValueError(f"{option} must have one share per folder, got {len(shares)} for {count} folders")
    if min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
        raise ValueError(f"{option} must be 0 or more and sum to 1, got {' '.join(f'{share:g}' for share in shares)}")
    return shares


@torch.no_grad()
def average(modules: Sequence[M], shares: Sequence[float], restorer_shares: Sequence[float]) -> M:
    """Load the weighted mean of all parameters and buffers into the first module; restorers have their own shares."""
    states = [module.state_dict() for module in modules]
    mean = {
        name: sum(
            share * state[name].double()
            for share, state in zip(restorer_shares if name.startswith("restorer.") else shares, states, strict=True)
        )
        for name in states[0]
    }
    modules[0].load_state_dict(mean)
    return modules[0]


def average_folders(
    folders: Sequence[Path],
    shares: Sequence[float],
    preset: Preset,
    out: Path,
    restorer_shares: Sequence[float] = (),
) -> None:
    """Write the average of weights folders and its metadata; ``restorer_shares`` default to ``shares``.

    Raises:
        ValueError: the folders or shares cannot be averaged.
        OSError: the average cannot be written.
    """
    shares = check_shares("--shares", shares, len(folders))
    restorer_shares = check_shares("--restorer-shares", restorer_shares or shares, len(folders))
    if out.resolve() in [folder.resolve() for folder in folders]:
        raise ValueError(f"--out must not be one of the averaged folders, got '{out}'")
    pairs = [load_pair(folder, preset) for folder in folders]
    sources = [
        {"weights": folder.name, "share": share, "restorer": restorer, "vae": digest(vae), "unet": digest(unet)}
        for folder, share, restorer, (vae, unet) in zip(folders, shares, restorer_shares, pairs, strict=True)
    ]
    vae, unet = (average(networks, shares, restorer_shares) for networks in zip(*pairs, strict=True))
    assert isinstance(vae, DetailVAE) and isinstance(unet, UNet)
    metadata = {"preset": preset.name, "average_of": sources, **origin("cpu")}
    out.mkdir(parents=True, exist_ok=True)
    save_vae(vae, out, metadata)
    save_unet(unet, out, metadata | {"vae": digest(vae)})


@one_line_errors(ValueError, OSError)
def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__doc__, "python -m train.average")
    presets = [name for name, preset in PRESETS.items() if isinstance(preset.vae, DetailVAESpec)]
    parser.add_argument("folders", type=Path, nargs="+", metavar="WEIGHTS", help="weights folders to average")
    parser.add_argument("--shares", type=float, nargs="+", default=[], help="one per folder (default: equal shares)")
    parser.add_argument(
        "--restorer-shares", type=float, nargs="+", default=[], help="the restorer's shares (default: --shares)"
    )
    parser.add_argument("--preset", choices=presets, default=DEFAULT.name, help="default: %(default)s")
    parser.add_argument("--out", type=Path, required=True, help="output folder")
    args = parser.parse_args(argv)
    average_folders(args.folders, args.shares, PRESETS[args.preset], args.out, args.restorer_shares)
    print(
        f"wrote the average of {len(args.folders)} folders into '{args.out}'; next: train.ranges --weights {args.out}"
    )


if __name__ == "__main__":
    sys.exit(main())
