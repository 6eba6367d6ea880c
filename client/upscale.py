"""Upscale chest X-rays ×4 on a Triton server: PNG, JPEG, TIFF, DICOM or .npy in, PNG out.

python client/upscale.py scan.png
python client/upscale.py scans/ -o upscaled/ --recursive --skip-existing
python client/upscale.py scan.dcm -o out.png --url gpu-server:8001 --seed 7
python client/upscale.py scan.dcm --window 2048 4096 --frame 2
python client/upscale.py a.png a.jpg --name '{name}_x4.png'
python client/upscale.py scan.png --samples 16 --mean --uncertainty doubt.png
python client/upscale.py full-size.png --downscale 4 --compare full-size.png
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from queue import SimpleQueue
from types import FrameType
from typing import Any

from tqdm import tqdm

from client import BadRequest, Client, ServerLost, Upscaled, UpscaleError
from client.jobs import PATTERN, SUFFIX, Finder, Job, check_pattern
from client.terminal import on_one_line, print_anything, stop_printing
from pipeline import request
from pipeline.command_line import make_parser
from pipeline.formats.source import Choice, FileError, Source
from pipeline.pictures import CAUTION, comparison, uncertainty_map
from pipeline.png import write_png
from pipeline.reader import Reader
from pipeline.spec import DEFAULT, DENOISERS, MAX_SAMPLES, MAX_SEED, MAX_SIDE, PRESETS, SAMPLERS, SCALE, STARTS

IN_FLIGHT = 8
"""Requests of a folder that are under way at once, for the server to batch."""

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
        nargs="*",
        type=Path,
        metavar="IMAGE|DIR",
        help=f"images of up to {MAX_SIDE}×{MAX_SIDE}, or folders of them",
    )
    add(
        "-o",
        "--out",
        metavar="PATH",
        help=f"output NAME.png of one image, else folder (default: IMAGE{SUFFIX}.png beside it, DIR{SUFFIX}/)",
    )
    add(
        "--name",
        metavar="PATTERN",
        help=f"of outputs in folders; {{stem}}, {{suffix}} and {{name}} are the input's (default: {PATTERN})",
    )
    add("--recursive", action="store_true", help="read folders in folders too, and keep their tree")
    add("--window", nargs=2, type=float, metavar=("C", "W"), help="show DICOM by this center and width, not the file's")
    add("--frame", type=int, metavar="N", help="of a DICOM file of several (default: 1)")
    add("--page", type=int, metavar="N", help="of a TIFF or .npy file of several (default: 1)")
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
    add(
        "--downscale",
        type=int,
        metavar="N",
        help="first make the LR image from a full-size one, N times smaller: by 4 as the paper does, else by area",
    )
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("--force", action="store_true", help="overwrite existing outputs")
    existing.add_argument("--skip-existing", action="store_true", help="take inputs whose outputs exist for done")
    add("--version", action="version", version=f"cxr-superres {version('cxr-superres')}")
    add(
        "--wait",
        type=float,
        default=10,
        metavar="S",
        help="seconds to wait for the server, also where it goes away meanwhile (default: %(default)s)",
    )
    add(
        "--timeout",
        type=float,
        default=600,
        metavar="S",
        help="seconds that an image may take; inf: no limit (default: %(default)s)",
    )
    argv = sys.argv[1:] if argv is None else argv
    end = argv.index("--") if "--" in argv else len(argv)
    args = parser.parse_intermixed_args(argv[:end])
    args.inputs += map(Path, argv[end + 1 :])  # names that begin with a dash
    if not args.inputs:
        parser.error("the following arguments are required: IMAGE|DIR")
    several = len(args.inputs) > 1 or os.path.isdir(args.inputs[0])
    check_reading(parser, args)
    check_output(parser, args, several)
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
    for name in ("compare", "uncertainty"):
        if getattr(args, name) and several:
            parser.error(f"argument --{name}: goes with one image")
    if args.uncertainty and args.uncertainty.suffix.lower() != ".png":
        parser.error(f"argument --uncertainty: '{args.uncertainty}', needed is a name that ends in .png")
    return args


def check_reading(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End the command where an option on how to read files is not allowed; make ``args.choice`` of them."""
    if args.downscale is not None and args.downscale < 2:
        parser.error(f"argument --downscale: {args.downscale}, allowed are 2 and more")
    for name in ("frame", "page"):
        if (getattr(args, name) or 1) < 1 or getattr(args, name) == 0:
            parser.error(f"argument --{name}: must be 1 or more, got {getattr(args, name)}")
    if args.window and not (all(map(math.isfinite, args.window)) and args.window[1] > 0):
        parser.error(f"argument --window: the width must be more than 0, got {args.window[0]:g} {args.window[1]:g}")
    args.choice = Choice(tuple(args.window) if args.window else None, args.frame, args.page)


def check_output(parser: argparse.ArgumentParser, args: argparse.Namespace, several: bool) -> None:
    """End the command where -o or --name is not allowed; make ``args.out`` a path, and ``args.out_is_file``."""
    text = args.out
    is_folder = text is None or text.endswith(os.sep) or os.path.isdir(text)
    args.out = None if text is None else Path(text)
    suffix = "" if is_folder else args.out.suffix.lower()
    args.out_is_file = suffix == ".png"
    is_version = re.fullmatch(r"\.v?\d+", suffix)  # of a folder, such as results.v2
    if suffix and not args.out_is_file and not is_version:
        parser.error(f"argument -o: '{text}', outputs are PNG files or a folder (for a folder of that name: '{text}/')")
    if not is_folder and not args.out_is_file and os.path.exists(text):
        parser.error(f"argument -o: '{text}' is no folder, outputs are PNG files or a folder")
    if args.out_is_file and several:
        parser.error(f"argument -o: '{text}' is one file, for several inputs it must be a folder")
    if args.out_is_file and args.name is not None:
        parser.error("argument --name: goes with outputs in folders, not with -o NAME.png")
    args.name = PATTERN if args.name is None else args.name
    try:
        check_pattern(args.name)
    except ValueError as error:
        parser.error(f"argument --name: {error}")


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


def provenance(source: Source, result: Upscaled) -> dict[str, str]:
    """PNG text chunks that mark an output as derived, and tell how its source was read."""
    notes = {"Notes": "; ".join(source.notes)} if source.notes else {}
    return notes | {
        "Software": "cxr-superres",
        "Description": f"Super-resolved x{SCALE} by latent diffusion: {CAUTION}.",
        "Parameters": " ".join(
            [f"preset={result.preset} seed={result.seed}"]
            + [f"{name}={value}" for name, value in asdict(result.options).items()]
        ),
    }


def outputs_of(job: Job, args: argparse.Namespace) -> list[Path]:
    """What a job writes: the image; the comparison and the map of uncertainty too where they are asked for."""
    picture = job.target.with_name(f"{job.target.stem}_compare.png")
    return [job.target, *([picture] if args.compare else []), *([args.uncertainty] if args.uncertainty else [])]


def is_done(job: Job, args: argparse.Namespace) -> bool:
    """Whether all outputs are there; an empty file is none."""
    return all(os.path.isfile(path) and path.stat().st_size for path in outputs_of(job, args))


def upscale_file(client: Client, reader: Reader, job: Job, args: argparse.Namespace) -> tuple[Source, Upscaled] | None:
    """Read, upscale, write; None where that is done already and to be skipped."""
    outputs = outputs_of(job, args)
    if args.skip_existing and is_done(job, args):
        return None
    inputs = [job.path, *([args.compare] if args.compare else [])]
    for path_in, path_out in itertools.product(filter(os.path.exists, inputs), filter(os.path.exists, outputs)):
        if path_in.samefile(path_out):
            raise FileError(f"'{path_in}': its output '{path_out}' is an input: give it another name or folder")
    if len({os.path.realpath(path_out) for path_out in outputs}) < len(outputs):
        raise FileError(f"'{args.uncertainty}' is the name of another output too: give --uncertainty another")
    for path_out in outputs:
        if os.path.exists(path_out) and not args.force:
            raise FileError(f"'{path_out}' exists already: give --force to overwrite it")
    source = reader.read(job.path, args.choice, args.downscale)
    hr = None
    if args.compare:
        hr = reader.read(args.compare, args.choice if args.compare == job.path else None).image
        height, width = (side * SCALE for side in source.image.shape)
        if not (0 <= hr.shape[0] - height < SCALE and 0 <= hr.shape[1] - width < SCALE):
            raise FileError(f"'{args.compare}' is {hr.shape[1]}×{hr.shape[0]}, needed is {width}×{height} to compare")
        hr = hr[:height, :width]
    try:
        result = client.upscale(source.image, seed=args.seed, **options_of(args))
    except BadRequest as error:
        hint = " (--downscale N makes it smaller)" if max(source.image.shape) > MAX_SIDE else ""
        raise BadRequest(f"'{job.path}': {error}{hint}") from error
    text = provenance(source, result)
    write_png(job.target, result.image, source.bits, text)
    if hr is not None:
        write_png(outputs[1], comparison(source.image, result.image, hr), text=text)
    if args.uncertainty and result.spread is not None:
        write_png(args.uncertainty, uncertainty_map(result.image, result.spread), text=text)
    return source, result


@dataclass
class Tally:
    """How many inputs came to what."""

    done: int = 0
    skipped: int = 0
    failed: int = 0


Outcome = tuple[Source, Upscaled] | None


def found_meanwhile(finder: Finder, bar: tqdm[Any]) -> Iterator[Job | FileError]:
    """The finder's jobs, looked for by a thread: work begins meanwhile, and the bar soon knows how many there are."""
    found: SimpleQueue[Job | FileError | BaseException | None] = SimpleQueue()

    def look() -> None:
        try:
            for item in finder.jobs():
                bar.total = (bar.total or 0) + 1
                found.put(item)
            found.put(None)
        except BaseException as error:  # raised where the jobs are asked for
            found.put(error)

    threading.Thread(target=look, daemon=True).start()
    while (item := found.get()) is not None:
        if isinstance(item, BaseException) and not isinstance(item, FileError):
            raise item
        yield item


def upscale_all(items: Iterator[Job | FileError], args: argparse.Namespace, bar: tqdm[Any]) -> Tally:
    """Do all jobs, several at once, and say so of each.

    Raises:
        UpscaleError: there is no server, or it does not take the options.
    """
    tally = Tally()
    server_gone = threading.Event()
    running: dict[Future[Outcome], Job] = {}

    def work(client: Client, job: Job) -> Outcome:
        if server_gone.is_set():
            raise ServerLost("not sent: the server is gone")
        try:
            return upscale_file(client, reader, job, args)
        except ServerLost:
            server_gone.set()
            raise

    def fail(problem: str) -> None:
        tally.failed += 1
        report(problem, bar)
        bar.update()

    def collect(futures: set[Future[Outcome]]) -> None:
        for future in futures:
            job = running.pop(future)
            try:
                outcome = future.result()
            except (FileError, UpscaleError) as error:
                fail(str(error) if str(job.path) in str(error) else f"'{job.path}': {error}")
                continue
            if outcome is None:
                tally.skipped += 1
                bar.update()
                continue
            source, result = outcome
            tally.done += 1
            notes = f" ({'; '.join(source.notes)})" if source.notes else ""
            height, width = result.image.shape
            line = f"{job.path} → {job.target}: {width}×{height} in {result.seconds:.1f} s{notes}"
            bar.write(on_one_line(line), file=sys.stdout)
            bar.update()

    client = None
    with ExitStack() as stack:
        reader = stack.enter_context(Reader())
        pool = stack.enter_context(ThreadPoolExecutor(IN_FLIGHT))
        try:
            for item in items:
                if isinstance(item, FileError):
                    fail(str(item))
                elif args.skip_existing and is_done(item, args):
                    tally.skipped += 1
                    bar.update()
                else:
                    if client is None:
                        client = Client(args.url, protocol=args.protocol, wait=args.wait, timeout=args.timeout)
                        stack.callback(client.close)
                        client.check(args.seed, **options_of(args))
                    running[pool.submit(work, client, item)] = item
                    full = len(running) >= 2 * IN_FLIGHT
                    collect(wait(running, None if full else 0, FIRST_COMPLETED).done)
            while running:
                collect(wait(running, return_when=FIRST_COMPLETED).done)
        except (KeyboardInterrupt, OSError) as error:
            pool.shutdown(wait=False, cancel_futures=True)
            if isinstance(error, KeyboardInterrupt):
                bar.write("interrupted: finishing the images that are under way", file=sys.stderr)
            raise
    return tally


def report(problem: str, bar: tqdm[Any]) -> None:
    bar.write(on_one_line(f"error: {problem}"), file=sys.stderr)


def run(args: argparse.Namespace) -> int:
    """The command with its options parsed; returns its exit status."""
    finder = Finder(args.inputs, args.out, args.out_is_file, args.name, args.recursive)
    one = len(args.inputs) == 1 and not os.path.isdir(args.inputs[0])
    began = time.monotonic()
    with tqdm(total=0, unit="image", disable=one) as bar:
        try:
            tally = upscale_all(found_meanwhile(finder, bar), args, bar)
        except UpscaleError as error:
            report(str(error), bar)
            return 1
    seconds = time.monotonic() - began
    if not one and tally.done + tally.skipped + tally.failed > 1:
        total = tally.done + tally.skipped + tally.failed
        rate = f", {seconds / tally.done:.2g} s per image" if tally.done else ""
        skipped = f"{tally.skipped} skipped, " if tally.skipped else ""
        print(f"{tally.done} of {total} images upscaled in {seconds:.1f} s{rate}; {skipped}{tally.failed} failed")
    elif one and tally.skipped:
        print(on_one_line(f"{args.inputs[0]}: skipped, its output exists already"))
    return 1 if tally.failed else 0


def interrupt(number: int, _frame: FrameType | None) -> None:
    """End as after Ctrl-C: what is under way is finished, or removed."""
    raise Interrupted(number)


class Interrupted(KeyboardInterrupt):
    """By the signal of this number."""


def main(argv: list[str] | None = None) -> int:
    print_anything()
    args = parse(argv)
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:  # as by nohup
                signal.signal(number, interrupt)
    try:
        status = run(args)
        sys.stdout.flush()
    except Interrupted as error:
        return 128 + int(error.args[0])
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:  # such as `… | head`
        stop_printing()
        return 128 + signal.SIGPIPE
    except OSError as error:
        stop_printing()
        print(f"error: {error.strerror or error}", file=sys.stderr)
        return 1
    return status


if __name__ == "__main__":
    sys.exit(main())
