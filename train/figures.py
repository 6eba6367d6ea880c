"""Draw the paper's figures: samples (2), augmentations (3), loss curves (6), results (7–10); also details and steps.

python -m train.figures samples --data data/nih --out samples.png
python -m train.figures augmentations --data data/nih --out augmentations.png
python -m train.figures curves runs/vae runs/unet --out curves.png
python -m train.figures steps results/best/images.csv results/paper/images.csv --out steps.png
python -m train.figures details 00000410_002.png:48:120 --data data/nih --out details.png
"""

from __future__ import annotations

import argparse
import csv
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL.Image import Image as Picture
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from client.pictures import comparison, enlarge, labelled_row, stack
from pipeline.command_line import make_parser, one_line_errors
from pipeline.method.images import Image, from_integers
from pipeline.method.upscale import generator, upscale
from pipeline.presets import DEFAULT, PAPER, PRESETS, Preset
from pipeline.runtimes.onnx import onnx_networks
from pipeline.spec import SCALE
from train.augment import Augmentation, apply
from train.data import PairDataset, list_pairs, spread_evenly
from train.methods import Method, bicubic
from train.pairs import HR
from train.paper import AUGMENTATION

SHOWN = 4
DETAIL = 96
Panels = Sequence[tuple[str, str, Image]]


def samples_figure(pairs: PairDataset) -> Picture:
    """Draw Figure 2: a few LR images, enlarged, above their HR images."""
    shown = [pairs.unit_images(i) for i in spread_evenly(len(pairs), SHOWN)]
    lr: Panels = [("LR 64 x 64", "", enlarge(low)) for low, _ in shown]
    hr: Panels = [("HR 256 x 256", "", high) for _, high in shown]
    return stack([labelled_row(lr), labelled_row(hr)])


def augmentations_figure(pairs: PairDataset) -> Picture:
    """Draw Figure 3: one pair and each augmentation of it, LR above HR."""
    size, spec = PAPER.data.lr_size, AUGMENTATION["paper"]
    side, hole = round(spec.smallest_crop * size), round(spec.cutout_side * size)
    crop, cutout = (size - side, 0, side), (hole, 2 * hole, hole)
    shown = {
        "as it is": Augmentation(),
        "horizontal flip": Augmentation(flip=True),
        **{f"rotation {turn}": Augmentation(quarter_turns=turn // 90) for turn in spec.rotations},
        "resized crop": Augmentation(crop=crop),
        "cutout": Augmentation(cutout=cutout),
        "all together": Augmentation(True, 1, crop, cutout),
    }
    lr, hr = pairs.images(0)
    low: Panels = [(name, "LR", enlarge(from_integers(apply(a, lr, 1)))) for name, a in shown.items()]
    high: Panels = [("", "HR", from_integers(apply(a, hr, SCALE))) for a in shown.values()]
    return stack([labelled_row(low), labelled_row(high)])


def curves_figure(runs: Sequence[Path]) -> Figure:
    """Draw Figure 6: each run's training loss, raw and averaged, and validation loss by step.

    Raises:
        ValueError: a folder has no training log.
    """
    for run in runs:
        if not list(run.glob("events.out.tfevents.*")):
            raise ValueError(f"'{run}' has no training log, events.out.tfevents.*")
    figure = Figure(figsize=(6 * len(runs), 4), layout="constrained")
    for run, axes in zip(runs, figure.subplots(1, len(runs), squeeze=False)[0], strict=True):
        log = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
        if "train/loss" not in log.Tags()["scalars"]:
            raise ValueError(f"the log in '{run}' has no steps yet")
        steps, losses = np.array([(event.step, event.value) for event in log.Scalars("train/loss")]).T
        axes.plot(steps, losses, color="0.8", linewidth=0.8, label="training, one batch")
        width = max(1, len(losses) // 50)
        mean = np.convolve(losses, np.ones(width) / width, mode="valid")
        axes.plot(steps[width - 1 :], mean, color="C0", label=f"training, mean of {width} values")
        if "validation" in log.Tags()["scalars"]:
            steps, values = np.array([(event.step, event.value) for event in log.Scalars("validation")]).T
            axes.plot(steps, values, "o-", color="C1", label="validation")
        # the subtracted diversity term of train.tune can make the loss negative
        axes.set(title=run.name, xlabel="step", ylabel="loss", yscale="log" if losses.min() > 0 else "linear")
        axes.legend()
    return figure


STEPS_IN_NAME = re.compile(r"^(\w+: \w+), (\d+) steps?, from (pure noise|the LR latent)$")


def steps_figure(files: Sequence[Path]) -> Figure:
    """Plot quality against the number of steps, one line per file of ``train.evaluate`` and kind of run.

    Raises:
        ValueError: a file is not such a table, or has no run of the system.
        OSError: a file cannot be read.
    """
    metrics = {"lpips_alex": "LPIPS, relative to bicubic", "psnr": "PSNR, dB above bicubic"}
    figure = Figure(figsize=(12, 4), layout="constrained")
    panels = dict(zip(metrics, figure.subplots(1, 2), strict=True))
    for metric, title in metrics.items():
        for path in files:
            for kind, steps, values in quality(path):
                label = f"{path.parent.name}, {kind}"
                panels[metric].plot(steps, [value[metric] for value in values], "o-", label=label)
        panels[metric].axhline(1.0 if metric == "lpips_alex" else 0.0, color="0.7", linewidth=0.8)
        panels[metric].set(title=title, xlabel="denoising steps", xscale="log")
        panels[metric].legend()
    return figure


def quality(path: Path) -> list[tuple[str, list[int], list[dict[str, float]]]]:
    """Read (kind of run, numbers of steps, LPIPS and PSNR relative to bicubic) from a file of ``train.evaluate``."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {"method", "lpips_alex", "psnr"} <= rows[0].keys():
        raise ValueError(f"'{path}' is not an images.csv of train.evaluate")
    values: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        values.setdefault(row["method"], []).append((float(row["lpips_alex"]), float(row["psnr"])))
    if "bicubic" not in values:
        raise ValueError(f"'{path}' has no row for bicubic")
    base = np.mean(values["bicubic"], axis=0)
    kinds: dict[str, dict[int, dict[str, float]]] = {}
    for method, found in values.items():
        if match := STEPS_IN_NAME.search(method):
            lpips, psnr = np.mean(found, axis=0)
            relative = {"lpips_alex": lpips / base[0], "psnr": psnr - base[1]}
            kinds.setdefault(f"{match[1]} from {match[3]}", {})[int(match[2])] = relative
    if not kinds:
        raise ValueError(f"'{path}' has no run of the system")
    return [(kind, sorted(runs), [runs[steps] for steps in sorted(runs)]) for kind, runs in kinds.items()]


def upscaled_figure(pairs: PairDataset, method: Method) -> Picture:
    """Draw Figures 7 and 9: LR, bicubic, upscaled and HR of a few images."""
    rows = []
    for i in spread_evenly(len(pairs), SHOWN):
        lr, hr = pairs.unit_images(i)
        rows.append(comparison(lr, method([lr], [hr], [i])[0], hr))
    return stack(rows)


def runtimes_figure(pairs: PairDataset, systems: Mapping[str, Method]) -> Picture:
    """Draw Figures 8 and 10: the same images on each runtime, and maps of their difference to the first runtime.

    White in a map is the image's largest difference, given above it in gray levels (0–255).
    """
    rows = []
    for i in spread_evenly(len(pairs), SHOWN):
        lr, hr = pairs.unit_images(i)
        images = {name: method([lr], [hr], [i])[0] for name, method in systems.items()}
        (first, reference), *others = images.items()
        panels = [(name, "", image) for name, image in images.items()]
        for name, image in others:
            difference = np.abs(image - reference)
            worst = float(difference.max())
            shown = (difference / worst if worst else difference).astype(np.float32)
            panels.append((f"|{name} - {first}|", f"white: {255 * worst:.2g} of 255", shown))
        rows.append(labelled_row(panels))
    return stack(rows)


def parse_detail(text: str) -> tuple[str, int, int]:
    """Parse ``FILE:TOP:LEFT``, in HR pixels divisible by ``SCALE``."""
    limit = PAPER.data.hr_size - DETAIL
    match text.split(":"):
        case [name, top, left] if top.isdecimal() and left.isdecimal():
            place = int(top), int(left)
            if max(place) <= limit and not any(n % SCALE for n in place):
                return name, *place
    raise argparse.ArgumentTypeError(f"must be FILE:TOP:LEFT with multiples of {SCALE} up to {limit}, got '{text}'")


def details_figure(details: Sequence[tuple[str, int, int]], data: Path, repository: Path, preset: Preset) -> Picture:
    """Draw enlarged squares of 96 HR pixels: LR, bicubic, upscaled with the repository's networks, HR.

    Raises:
        ValueError: a file is missing or not an image.
    """
    generate = generator(onnx_networks(repository, preset), preset)
    rows = []
    for name, top, left in details:
        lr, hr = PairDataset([data / HR / name], PAPER.data).unit_images(0)
        upscaled = upscale([lr], [0], generate, preset)[0].upscaled
        (smooth,) = bicubic([lr], [hr], [0])
        images = {"LR": enlarge(lr), "bicubic x4": smooth, "upscaled x4": upscaled, "HR": hr}
        panels: Panels = [
            (title, name if title == "LR" else "", enlarge(image[top : top + DETAIL, left : left + DETAIL]))
            for title, image in images.items()
        ]
        rows.append(labelled_row(panels))
    return stack(rows)


@one_line_errors(ValueError, OSError)
def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__doc__, "python -m train.figures")
    figures = parser.add_subparsers(dest="figure", required=True)
    helps = {
        "samples": "LR and HR images",
        "augmentations": "a pair and its augmentations",
        "details": "enlarged squares of LR, bicubic, upscaled and HR images",
    }
    for name, help in helps.items():
        figure = figures.add_parser(name, help=help, description=f"{help.capitalize()}.")
        figure.add_argument("--data", type=Path, required=True, help="folder written by train.pairs")
    details = figures.choices["details"]
    details.add_argument("details", nargs="+", type=parse_detail, metavar="FILE:TOP:LEFT", help="squares, in HR pixels")
    details.add_argument("--model-repository", type=Path, default=Path("model_repository"), help="default: %(default)s")
    details.add_argument("--preset", choices=PRESETS, default=DEFAULT.name, help="default: %(default)s")
    figure = figures.add_parser("curves", help="losses by step", description="Losses by step.")
    figure.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="--run-dir of a training")
    figure = figures.add_parser("steps", help="quality by denoising steps", description="Quality by denoising steps.")
    figure.add_argument("files", nargs="+", type=Path, metavar="CSV", help="images.csv of train.evaluate --report")
    for name, figure in figures.choices.items():
        out = Path(f"{name}.png")
        figure.add_argument("--out", type=Path, default=out, help="PNG file to write (default: %(default)s)")
    args = parser.parse_args(argv)
    if args.figure == "curves":
        curves_figure(args.runs).savefig(args.out, dpi=100)
    elif args.figure == "steps":
        steps_figure(args.files).savefig(args.out, dpi=100)
    elif args.figure == "details":
        details_figure(args.details, args.data, args.model_repository, PRESETS[args.preset]).save(args.out)
    else:
        pairs = PairDataset(list_pairs(args.data), PAPER.data)
        {"samples": samples_figure, "augmentations": augmentations_figure}[args.figure](pairs).save(args.out)
    print(f"wrote '{args.out}'")


if __name__ == "__main__":
    sys.exit(main())
