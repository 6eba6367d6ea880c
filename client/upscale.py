"""Upscale chest X-rays ×4 on a Triton server: PNG, JPEG, TIFF or DICOM in, PNG out.

python client/upscale.py scan.png
python client/upscale.py scans/ -o upscaled/ --steps 4
python client/upscale.py scan.dcm -o out.png --url gpu-server:8001 --seed 7
python client/upscale.py scan.png --samples 16 --mean --uncertainty doubt.png
python client/upscale.py full-size.png --downscale 4 --compare full-size.png
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

# run as a script, `client` is client/client.py beside this file; in the package, the package: the names are the same
from client import BadRequest, Client, ServerLost, Upscaled, UpscaleError
from pipeline import request
from pipeline.command_line import make_parser
from pipeline.files import SUFFIXES, FileError, Source, list_images, read_image, write_png
from pipeline.images import downscale
from pipeline.pictures import CAUTION, comparison, uncertainty_map
from pipeline.spec import DEFAULT, DENOISERS, MAX_SAMPLES, MAX_SEED, MAX_SIDE, PRESETS, SAMPLERS, SCALE, STARTS

IN_FLIGHT = 8
"""Requests of a folder that are under way at once, for the server to batch."""

SUFFIX = f"_x{SCALE}"

SEVERAL = 8
"""Samples where their mean or scatter is asked for, but no number."""


def parse(argv: list[str] | None) -> argparse.Namespace:
    diffusion = DEFAULT.diffusion
    summary = (__doc__ or "").splitlines()[0]
    description = f"{summary} Detail in the result is generated: it is not for diagnosis."
    parser = make_parser(__doc__, "upscale.py", description)
    add = parser.add_argument
    add(
        "inputs",
        nargs="+",
        type=Path,
        metavar="IMAGE|DIR",
        help=f"images of up to {MAX_SIDE}×{MAX_SIDE}, or folders of them",
    )
    add(
        "-o",
        "--out",
        type=Path,
        help=f"output NAME.png of one image, else folder (default: IMAGE{SUFFIX}.png beside it, DIR{SUFFIX}/)",
    )
    add("--url", metavar="HOST:PORT", help="server (default: localhost:8001, with --protocol http localhost:8000)")
    add("--protocol", choices=("grpc", "http"), default="grpc", help="default: %(default)s")
    add("--seed", type=int, default=0, help=f"of the noise, 0 to {MAX_SEED} (default: %(default)s)")
    add(
        "--steps",
        type=int,
        help=f"denoising steps, 1 to {diffusion.T} (default of preset {DEFAULT.name}: "
        + ", ".join(f"{diffusion.default_steps(sampler)} for {sampler}" for sampler in SAMPLERS)
        + ")",
    )
    add("--sampler", choices=SAMPLERS, help="default: the preset's")
    add(
        "--start", choices=STARTS, help="pure noise or, preset paper only, the noised LR latent (default: the preset's)"
    )
    add(
        "--samples",
        type=int,
        metavar="N",
        help=f"draw so many, 1 to {MAX_SAMPLES} (default: 1, {SEVERAL} with --mean or --uncertainty)",
    )
    add("--mean", action="store_true", help="write the samples' mean: nearer to the truth, with less texture")
    add(
        "--uncertainty",
        type=Path,
        metavar="FILE",
        help="also write a PNG that shows where the samples differ: half the width of the 90 %% band, in gray levels",
    )
    add(
        "--faithful",
        action=argparse.BooleanOptionalAction,
        help="make the result downscale to the image, to rounding (default: the preset's)",
    )
    add(
        "--denoiser", choices=DENOISERS, default="auto", help="the U-Net's runtime on the server (default: %(default)s)"
    )
    add("--compare", type=Path, metavar="HR", help="also write OUTPUT_compare.png: LR, bicubic, upscaled, this image")
    add("--downscale", type=int, metavar="N", help="first make the LR image from a full-size one, N times smaller")
    add("--force", action="store_true", help="overwrite existing outputs")
    add("--wait", type=float, default=10, metavar="S", help="seconds to wait for the server (default: %(default)s)")
    add("--timeout", type=float, default=600, metavar="S", help="seconds an image may take (default: %(default)s)")
    args = parser.parse_intermixed_args(argv)
    if args.downscale is not None and args.downscale < 2:
        parser.error(f"argument --downscale: {args.downscale}, allowed are 2 and more")
    if args.samples is None and (args.mean or args.uncertainty):
        args.samples = SEVERAL
    try:
        request.check_seed(args.seed)
        check_options(args)
    except request.BadRequest as error:
        parser.error(str(error))
    if (args.samples or 1) > 1 and not (args.mean or args.uncertainty):
        parser.error("argument --samples: goes with --mean or --uncertainty")
    if args.uncertainty and args.samples < 2:
        parser.error("argument --uncertainty: needs --samples of 2 or more")
    if args.out and args.out.suffix.lower() in set(SUFFIXES) - {".png"}:
        parser.error(f"argument -o: '{args.out}', outputs are PNG files or a folder")
    for name in ("compare", "uncertainty"):
        if getattr(args, name) and (len(args.inputs) > 1 or args.inputs[0].is_dir()):
            parser.error(f"argument --{name}: goes with one image")
    if args.uncertainty and args.uncertainty.suffix.lower() != ".png":
        parser.error(f"argument --uncertainty: '{args.uncertainty}', needed is a name that ends in .png")
    return args


def options_of(args: argparse.Namespace) -> dict[str, Any]:
    """What ``Client.upscale`` takes beside image and seed; None is the preset's choice."""
    names = ("steps", "sampler", "start", "samples", "faithful", "denoiser")
    return {**{name: getattr(args, name) for name in names}, "output": "mean" if args.mean else None}


def check_options(args: argparse.Namespace) -> None:
    """Raises BadRequest where no preset takes the options; which one the server runs is not known yet."""
    errors = []
    for preset in PRESETS.values():
        try:
            request.Options.of(preset, **options_of(args))
        except request.BadRequest as error:
            errors.append(error)
    if len(errors) == len(PRESETS):
        raise errors[0]


def plan(inputs: Iterable[Path], out: Path | None) -> tuple[dict[Path, Path], list[str]]:
    """Which file goes where: ({input: output}, what is wrong with the rest)."""
    inputs = list(inputs)
    is_file = out is not None and out.suffix.lower() == ".png" and len(inputs) == 1 and not inputs[0].is_dir()
    jobs: dict[Path, Path] = {}
    problems = []
    for given in inputs:
        try:
            paths = list_images(given) if given.is_dir() else [given]
        except (FileError, OSError) as error:
            problems.append(str(error))
            continue
        for path in paths:
            if path in jobs:
                continue
            if is_file and out is not None:
                target = out
            else:
                folder = out or (given.with_name(given.resolve().name + SUFFIX) if given.is_dir() else path.parent)
                target = folder / f"{path.stem}{SUFFIX}.png"
            if target in jobs.values():
                problems.append(f"'{path}': its output '{target}' is also another input's; give it a folder of its own")
            else:
                jobs[path] = target
    return jobs, problems


def read(path: Path, factor: int | None) -> Source:
    """The LR image of a file."""
    source = read_image(path)
    if factor is None:
        return source
    if min(source.image.shape) < factor:
        raise FileError(f"'{path}' is too small for --downscale {factor}")
    small = downscale(source.image, factor).clip(0, 1)
    return Source(small, source.bits, (*source.notes, f"downscaled ×{factor} to {small.shape[1]}×{small.shape[0]}"))


def provenance(result: Upscaled) -> dict[str, str]:
    """PNG text chunks that mark an output as derived."""
    return {
        "Software": "cxr-superres",
        "Description": f"Super-resolved x{SCALE} by latent diffusion: {CAUTION}.",
        "Parameters": " ".join(
            [f"preset={result.preset} seed={result.seed}"]
            + [f"{name}={value}" for name, value in asdict(result.options).items()]
        ),
    }


def upscale_file(client: Client, path: Path, target: Path, args: argparse.Namespace) -> tuple[Source, Upscaled]:
    """Read, upscale, write; the comparison and the map of uncertainty too where they are asked for."""
    picture = target.with_name(f"{target.stem}_compare.png")
    outputs = [target, *([picture] if args.compare else []), *([args.uncertainty] if args.uncertainty else [])]
    if len({path_out.resolve() for path_out in outputs}) < len(outputs):
        raise FileError(f"'{args.uncertainty}' is the name of another output too: give --uncertainty another")
    for path_out in outputs:
        if path_out.exists() and not args.force:
            raise FileError(f"'{path_out}' exists already: give --force to overwrite it")
    source = read(path, args.downscale)
    hr = None
    if args.compare:
        hr = read_image(args.compare).image
        height, width = (side * SCALE for side in source.image.shape)
        if not (0 <= hr.shape[0] - height < SCALE and 0 <= hr.shape[1] - width < SCALE):
            raise FileError(f"'{args.compare}' is {hr.shape[1]}×{hr.shape[0]}, needed is {width}×{height} to compare")
        hr = hr[:height, :width]
    try:
        result = client.upscale(source.image, seed=args.seed, **options_of(args))
    except BadRequest as error:
        hint = " (--downscale N makes it smaller)" if max(source.image.shape) > MAX_SIDE else ""
        raise BadRequest(f"'{path}': {error}{hint}") from error
    write_png(target, result.image, source.bits, provenance(result))
    if hr is not None:
        write_png(picture, comparison(source.image, result.image, hr), text=provenance(result))
    if args.uncertainty and result.spread is not None:
        write_png(args.uncertainty, uncertainty_map(result.image, result.spread), text=provenance(result))
    return source, result


def upscale_all(jobs: dict[Path, Path], client: Client, args: argparse.Namespace, bar: tqdm[Any]) -> list[str]:
    """Do all jobs, several at once, and say so of each; returns the problems, which have been reported."""
    problems = []
    server_gone = threading.Event()

    def work(path: Path, target: Path) -> tuple[Source, Upscaled]:
        if server_gone.is_set():
            raise ServerLost("not sent: the server is gone")
        try:
            return upscale_file(client, path, target, args)
        except ServerLost:
            server_gone.set()
            raise

    with ThreadPoolExecutor(IN_FLIGHT) as pool:
        running = {pool.submit(work, path, target): path for path, target in jobs.items()}
        try:
            for future in as_completed(running):
                path = running[future]
                try:
                    source, result = future.result()
                except (FileError, UpscaleError) as error:
                    problems.append(str(error) if str(path) in str(error) else f"'{path}': {error}")
                    report(problems[-1], bar)
                else:
                    notes = f" ({'; '.join(source.notes)})" if source.notes else ""
                    height, width = result.image.shape
                    bar.write(
                        f"{path} → {jobs[path]}: {width}×{height} in {result.seconds:.1f} s{notes}", file=sys.stdout
                    )
                bar.update()
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            bar.write("interrupted: finishing the images that are under way", file=sys.stderr)
            raise
    return problems


def report(problem: str, bar: tqdm[Any]) -> None:
    bar.write(f"error: {problem}", file=sys.stderr)


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    jobs, problems = plan(args.inputs, args.out)
    total, began = len(jobs) + len(problems), time.monotonic()
    with tqdm(total=len(jobs), unit="image", disable=len(jobs) < 2) as bar:
        for problem in problems:
            report(problem, bar)
        if not jobs:
            return 1
        try:
            with Client(args.url, protocol=args.protocol, wait=args.wait, timeout=args.timeout) as client:
                client.check(args.seed, **options_of(args))
                problems += upscale_all(jobs, client, args, bar)
        except UpscaleError as error:
            report(str(error), bar)
            return 1
        except KeyboardInterrupt:
            return 130
    done, seconds = total - len(problems), time.monotonic() - began
    if total > 1:
        rate = f", {seconds / done:.1f} s an image" if done else ""
        print(f"{done} of {total} images upscaled in {seconds:.1f} s{rate}; {len(problems)} failed")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
