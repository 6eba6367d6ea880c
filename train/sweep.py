"""Run ablations, each at the same small budget, and log every run to a CSV file.

python -m train.sweep --data data/nih
python -m train.sweep --data data/nih --scale 4 --seed 1 --only tune-base tune-diverse
python -m train.sweep --list

An ablation is one change to the training of preset best. Runs already in the file are not repeated, so the same command
continues an interrupted sweep. Results are measured on validation patients.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from tqdm import tqdm

from pipeline.command_line import make_parser, one_line_errors
from pipeline.networks import eager
from pipeline.networks.unet import UNet
from pipeline.networks.vae import Decoder, Encoder, load_vae, vae_path
from pipeline.presets import BEST, PRESETS, DetailVAESpec, Preset
from train.config import DEVICES, choose_device
from train.data import PairDataset, read_index
from train.evaluate import choose, measure
from train.methods import BICUBIC, CEILING, Sampling, make_methods
from train.tune import Tuning, tune
from train.unet import UNetTraining, train_unet
from train.vae import VAETraining, train_vae

Stage = Literal["vae", "unet", "tune"]
METRICS = ("lpips_alex", "lpips_vgg", "psnr", "ssim", "lr_error")
COLUMNS = ("ablation", "change", "stage", "steps", "seed", "seconds", "run", *METRICS)
STEPS: dict[Stage, int] = {"vae": 300, "unet": 600, "tune": 240}
BASE: dict[Stage, dict[str, Any]] = {
    "vae": {
        **{"batch": 16, "lpips": 0.2, "vgg": 0.1, "latent_noise": 0.5, "latent_drop": 0.15, "whole_every": 0},
        "warmup": 20,
    },
    "unet": {"batch": 32, "augment": True, "passes": 2},
    "tune": {"batch": 4, "crop": 192},
}
STEPS_MEASURED = {"unet": (1, 2, 4, 10), "tune": (1, 2, 4)}


@dataclass(frozen=True)
class Ablation:
    """One change to a stage's options or to the preset."""

    name: str
    change: str
    stage: Stage
    options: Mapping[str, Any] = field(default_factory=dict)
    preset: Preset = BEST


def variant(name: str, **changes: Any) -> Preset:
    """Return preset best with changes, under another name."""
    return replace(BEST, name=f"best-{name}", **changes)


def vae_variant(name: str, factor: int = 8, latent_channels: int = 4) -> Preset:
    folded = (factor // 4) ** 2
    unet = replace(BEST.unet, in_channels=latent_channels + folded, out_channels=latent_channels)
    return variant(name, vae=DetailVAESpec(factor=factor, latent_channels=latent_channels), unet=unet)


ABLATIONS = (
    Ablation("vae-base", "as in best.sh", "vae"),
    Ablation("vae-f4", "latents at a quarter, not an eighth", "vae", preset=vae_variant("f4", factor=4)),
    Ablation("vae-8ch", "8 latent channels, not 4", "vae", preset=vae_variant("8ch", latent_channels=8)),
    Ablation("vae-no-kl", "no KL term", "vae", {"kl": 0.0}),
    Ablation("vae-kl", "a hundred times the KL term", "vae", {"kl": 1e-2}),
    Ablation("vae-no-vgg", "no LPIPS of VGG16", "vae", {"vgg": 0.0}),
    Ablation("vae-clean", "latents not spoilt in training", "vae", {"latent_noise": 0.0, "latent_drop": 0.0}),
    Ablation("vae-unprojected", "not trained with the projection", "vae", preset=variant("free", faithful=False)),
    Ablation("unet-base", "as in best.sh: v, cosine to pure noise", "unet"),
    Ablation(
        "unet-linear",
        "the paper's schedule, which ends short of pure noise",
        "unet",
        preset=variant("linear", diffusion=replace(BEST.diffusion, schedule="linear")),
    ),
    Ablation("unet-plain", "images as they are, none flipped", "unet", {"augment": False}),
    Ablation(
        "unet-large-batch", "batch of 128 in 4 parts, a quarter of the steps", "unet", {"batch": 128, "accumulate": 4}
    ),
    Ablation(
        "unet-deep", "5 middle blocks, not 2", "unet", preset=variant("deep", unet=replace(BEST.unet, middle_blocks=5))
    ),
    Ablation("tune-base", "as in best.sh: U-Net and decoder, 1, 2 and 4 steps", "tune"),
    Ablation("tune-frozen", "the U-Net alone, decoder frozen", "tune", {"freeze_decoder": True}),
    Ablation("tune-same", "nothing gained by samples that differ", "tune", {"diversity": 0.0}),
    Ablation("tune-diverse", "samples that differ gain ½: CRPS with LPIPS", "tune", {"diversity": 0.5}),
    Ablation("tune-free", "never projected in training", "tune", {"faithful_share": 0.0}),
    Ablation("tune-no-vgg", "no LPIPS of VGG16", "tune", {"vgg": 0.0}),
    Ablation("tune-l1", "L1 alone", "tune", {"vgg": 0.0, "lpips": 0.0}),
)


@dataclass(frozen=True)
class Sweep:
    """Settings of a sweep."""

    data: Path
    index: Path | None
    folder: Path
    device: str
    scale: float
    seed: int
    limit: int

    def weights(self, ablation: Ablation) -> Path:
        return self.folder / f"{ablation.name}-{self.steps(ablation)}-{self.seed}"

    def steps(self, ablation: Ablation) -> int:
        """Return the stage's steps, scaled down for larger batches so that all ablations see as many samples."""
        usual = BASE[ablation.stage]["batch"]
        return max(1, round(self.scale * STEPS[ablation.stage] * usual / ablation.options.get("batch", usual)))


def base_of(stage: Stage) -> Ablation:
    return next(ablation for ablation in ABLATIONS if ablation.stage == stage)


def train_ablation(ablation: Ablation, sweep: Sweep) -> int:
    """Train one ablation from the base of the previous stage; return its seconds, without interruptions."""
    out, steps = sweep.weights(ablation), sweep.steps(ablation)
    common: dict[str, Any] = {
        **{"data": sweep.data, "index": sweep.index, "preset": ablation.preset.name, "device": sweep.device},
        **{"out": out, "run_dir": out / "run", "resume": True, "seed": sweep.seed},
        **{"steps": steps, "validate_every": -(-steps // 3), **BASE[ablation.stage], **ablation.options},
    }
    PRESETS[ablation.preset.name] = ablation.preset  # looked up there by the training commands
    if ablation.stage == "vae":
        train_vae(VAETraining(**common))
    elif ablation.stage == "unet":
        train_unet(UNetTraining(**common, weights=sweep.weights(base_of("vae"))))
    else:
        tune(Tuning(**common, weights=sweep.weights(base_of("unet"))))
    metadata = json.loads((out / ("vae.json" if ablation.stage == "vae" else "unet.json")).read_text())
    return int(metadata["seconds"])


def figures(ablation: Ablation, sweep: Sweep, pairs: PairDataset) -> dict[str, dict[str, float]]:
    """Measure each run: LPIPS relative to bicubic, PSNR and SSIM as differences to it, and the LR error."""
    weights, preset = sweep.weights(ablation), ablation.preset
    if ablation.stage == "vae":
        vae = load_vae(vae_path(weights, preset.vae), preset.vae).to(sweep.device)
        system = eager.Eager(Encoder(vae), UNet(preset.unet), Decoder(vae), preset, torch.device(sweep.device))
        methods = make_methods((), (), system, Path(), "")
    else:
        system = eager.load(weights, preset, device=sweep.device)
        runs = [Sampling("ddim", steps, "noise") for steps in STEPS_MEASURED[ablation.stage]]
        if ablation.stage == "tune":
            runs += [Sampling("ddim", 1, "noise", 16, "mean"), Sampling("ddim", 1, "noise", faithful=False)]
        methods = make_methods(("torch",), runs, system, Path(), "")
        del methods[CEILING]
    results = measure(pairs, methods)
    base = {metric: values.mean() for metric, values in results.pop(BICUBIC).values.items()}
    found = {}
    for name, measured in results.items():
        means = {metric: float(values.mean()) for metric, values in measured.values.items()}
        ratios = {metric: means[metric] / base[metric] for metric in ("lpips_alex", "lpips_vgg")}
        differences = {metric: means[metric] - base[metric] for metric in ("psnr", "ssim")}
        found[name] = {**ratios, **differences, "lr_error": means["lr_error"]}
    return found


def done(path: Path) -> set[tuple[str, str, str]]:
    """Return (ablation, steps, seed) of the runs in the file."""
    if not path.exists():
        return set()
    with open(path, newline="", encoding="utf-8") as file:
        return {(row["ablation"], row["steps"], row["seed"]) for row in csv.DictReader(file)}


def append(path: Path, rows: list[dict[str, Any]]) -> None:
    new = not path.exists()
    with open(path, "a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(rows)


def run_sweep(sweep: Sweep, log: Path, only: list[str] | None) -> None:
    """Train and measure all ablations missing from the log; those with a non-finite loss are logged as failed.

    Raises:
        ValueError, OSError: see the training functions.
    """
    if sweep.scale <= 0:
        raise ValueError(f"--scale must be above 0, got {sweep.scale:g}")
    log.parent.mkdir(parents=True, exist_ok=True)
    pairs, _ = choose(sweep.data, "val", sweep.limit, read_index(sweep.index))
    stages = list(STEPS)
    last = max(stages.index(ablation.stage) for ablation in ABLATIONS if only is None or ablation.name in only)
    bases = {base_of(stage).name for stage in stages[: last + 1]}
    chosen = [ablation for ablation in ABLATIONS if only is None or ablation.name in only or ablation.name in bases]
    for ablation in tqdm(chosen, desc="ablations", unit="run"):
        steps = sweep.steps(ablation)
        if (ablation.name, str(steps), str(sweep.seed)) in done(log):
            continue
        tqdm.write(f"{ablation.name}: {ablation.change}")
        common = {
            "ablation": ablation.name,
            "change": ablation.change,
            "stage": ablation.stage,
            "steps": steps,
            "seed": sweep.seed,
        }
        try:
            seconds = train_ablation(ablation, sweep)
        except FloatingPointError as error:
            append(log, [{**common, "run": f"failed: {error}"}])
            continue
        rows = [
            {**common, "seconds": seconds, "run": run, **{metric: f"{value:.4f}" for metric, value in row.items()}}
            for run, row in figures(ablation, sweep, pairs).items()
        ]
        append(log, rows)
        for row in rows:
            tqdm.write("  " + ", ".join(f"{name} {row[name]}" for name in COLUMNS[6:]))


@one_line_errors(ValueError, OSError, ImportError, interrupted="interrupted; run the same command to continue")
def main(argv: list[str] | None = None) -> None:
    names = [ablation.name for ablation in ABLATIONS]
    parser = make_parser(__doc__, "python -m train.sweep")
    add = parser.add_argument
    add("--data", type=Path, default=Path("data/nih"), help="folder written by train.pairs (default: %(default)s)")
    add("--index", type=Path, help="CSV file with the columns file and patient, for file names without a patient ID")
    add("--folder", type=Path, default=Path("runs/sweep"), help="folder for weights and runs (default: %(default)s)")
    add(
        "--log",
        type=Path,
        default=Path("runs/sweep/ablations.csv"),
        help="CSV file to append to (default: %(default)s)",
    )
    add("--scale", type=float, default=1.0, help="factor on the steps of every stage (default: 1: " + ", ".join(
        f"{steps} for {stage}" for stage, steps in STEPS.items()) + ")")  # fmt: skip
    add("--seed", type=int, default=0, help="random seed of training (default: %(default)s)")
    add("--limit", type=int, default=24, help="validation images to measure (default: %(default)s)")
    add(
        "--only",
        nargs="+",
        choices=names,
        metavar="NAME",
        help="run only these, and the bases they start from and compare with",
    )
    add("--device", choices=DEVICES, default="auto", help="auto uses a GPU if there is one")
    add("--list", action="store_true", help="list the ablations and exit")
    args = parser.parse_args(argv)
    if args.list:
        print("\n".join(f"{ablation.name:18} {ablation.change}" for ablation in ABLATIONS))
        return
    device = choose_device(args.device)
    sweep = Sweep(args.data, args.index, args.folder, device, args.scale, args.seed, args.limit)
    run_sweep(sweep, args.log, args.only)


if __name__ == "__main__":
    sys.exit(main())
