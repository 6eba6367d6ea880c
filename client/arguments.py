"""Upscale chest X-rays ×4 on a Triton server: PNG, JPEG, TIFF, DICOM or .npy in, PNG or DICOM out.

python client/upscale.py scan.png
python client/upscale.py scans/ -o upscaled/ --recursive --skip-existing
python client/upscale.py scan.dcm -o out.png --url gpu-server:8001 --seed 7
python client/upscale.py scan.dcm --window 2048 4096 --frame 2
python client/upscale.py scan.dcm -o out.dcm --compress jpeg2000
python client/upscale.py scans/ -o upscaled/ --format dicom --burn-in
python client/upscale.py a.png a.jpg --name '{name}_x4.png'
python client/upscale.py scan.png --uncertainty doubt.png
python client/upscale.py scan.png --samples 16 --mean
python client/upscale.py scan.png --sampler ddpm --progress
python client/upscale.py thumbnail.jpg --degradation area
python client/upscale.py full-size.png --downscale 4 --compare full-size.png
python client/upscale.py scan.png --url gpu-server:8443 --ca ca.pem --token-file token
python client/upscale.py --dicomweb http://localhost:8042/dicom-web --study 1.2.3 --store
"""

from __future__ import annotations

import argparse
import math
import os
import re
import sys
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import get_args

from client import access
from client.batch import MEAN_SAMPLES, options_of
from client.dicom import UID_PATTERN, Compression
from client.formats.source import Choice
from client.jobs import ENDINGS, PATTERN, SUFFIX, check_pattern
from pipeline.command_line import make_parser
from pipeline.method.options import InvalidRequest, check_for_some_preset, check_seed
from pipeline.presets import DEFAULT
from pipeline.spec import (
    DEGRADATIONS,
    DENOISERS,
    MAX_SAMPLES,
    MAX_SEED,
    PIXEL_MM,
    PRIORITIES,
    SAMPLERS,
    STARTS,
)
from pipeline.tokens import TokenError, check_token, read_token


def make_upscale_parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
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
        help=f"images of up to {DEFAULT.max_side}×{DEFAULT.max_side}, or folders of them",
    )
    add(
        "-o",
        "--out",
        metavar="PATH",
        help=f"output NAME.png or NAME.dcm for one image, or a folder (default: IMAGE{SUFFIX}.png beside it, "
        f"DIR{SUFFIX}/)",
    )
    add(
        "--format",
        choices=tuple(ENDINGS),
        help="format of outputs; dicom: a derived image in the study of its source, which must be a DICOM image "
        "(CR, DX, Secondary Capture) (default: dicom for -o NAME.dcm, else png)",
    )
    add("--compress", choices=tuple(get_args(Compression)), help="compress DICOM outputs without loss (default: not)")
    add("--burn-in", action="store_true", help="write 'generated detail, not for diagnosis' into DICOM outputs")
    add(
        "--name",
        metavar="PATTERN",
        help=f"names of outputs in folders; {{stem}}, {{suffix}} and {{name}} are the input's (default: {PATTERN})",
    )
    add("--recursive", action="store_true", help="also read subfolders, and mirror them in the output folder")
    add("--window", nargs=2, type=float, metavar=("C", "W"), help="DICOM window center and width, replacing the file's")
    add("--frame", type=int, metavar="N", help="frame of a multi-frame DICOM file (default: 1)")
    add("--page", type=int, metavar="N", help="page of a multi-page TIFF or .npy file (default: 1)")
    add_connection(parser, wait=10)
    add("--seed", type=int, default=0, help=f"noise seed, 0 to {MAX_SEED} (default: %(default)s)")
    add(
        "--steps",
        type=int,
        help=f"denoising steps, 1 to {diffusion.T} (default for preset {DEFAULT.name}: "
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
        help=f"number of samples, 1 to {MAX_SAMPLES} (default: 1, {MEAN_SAMPLES} with --mean)",
    )
    add("--mean", action="store_true", help="write the samples' mean: closer to the truth, with less texture")
    add(
        "--uncertainty",
        type=Path,
        metavar="FILE",
        help="also write where detail was guessed, the half-width of the 90 %% band: a PNG in gray levels or, beside a "
        "DICOM output, a .dcm (parametric map) in stored values",
    )
    add(
        "--faithful",
        action=argparse.BooleanOptionalAction,
        help="make sure that reducing the result gives the image, exactly if it is clean (default: the preset's)",
    )
    add(
        "--degradation",
        choices=DEGRADATIONS,
        help="how the image was reduced: OpenCV's cubic or area, Pillow's bilinear, bicubic or lanczos, or nearest "
        "(every fourth pixel); auto detects it (default: auto)",
    )
    add(
        "--pixel-mm",
        type=float,
        metavar="MM",
        help="pixel spacing of the image; outside the trained range, the band is wider (default: the DICOM file's)",
    )
    add(
        "--denoiser", choices=DENOISERS, default="auto", help="the U-Net's runtime on the server (default: %(default)s)"
    )
    add("--compare", type=Path, metavar="HR", help="also write OUTPUT_compare.png: LR, bicubic, upscaled, this image")
    add(
        "--downscale",
        type=int,
        metavar="N",
        help="first reduce a full-size image by a factor of N: 4 as in the paper, other factors by area",
    )
    add("--dicomweb", metavar="URL", help="fetch the images of --study from this DICOMweb server instead of IMAGE|DIR")
    for flag, what in (("study", "study"), ("series", "series: only its images")):
        add(f"--{flag}", type=uid, metavar="UID", help=f"Instance UID of the {what}")
    add("--store", action="store_true", help="store the results on the DICOMweb server")
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("--force", action="store_true", help="overwrite existing outputs")
    existing.add_argument("--skip-existing", action="store_true", help="skip inputs whose outputs exist")
    add(
        "--progress",
        action="store_true",
        help="show the steps of every image, by gRPC only: for many steps or large images",
    )
    add("--version", action="version", version=f"cxr-superres {version('cxr-superres')}")
    add(
        "--priority",
        choices=PRIORITIES,
        help="interactive requests overtake waiting bulk ones (default: interactive for one image, bulk for several)",
    )
    return parser


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Return the checked options of the command; exit if one is invalid."""
    parser = make_upscale_parser()
    argv = sys.argv[1:] if argv is None else argv
    end = argv.index("--") if "--" in argv else len(argv)
    args = parser.parse_intermixed_args(argv[:end])
    args.inputs += map(Path, argv[end + 1 :])  # names that may begin with a dash
    check_dicomweb(parser, args)
    if not args.inputs and not args.dicomweb:
        parser.error("the following arguments are required: IMAGE|DIR")
    several = bool(args.dicomweb) or len(args.inputs) > 1 or os.path.isdir(args.inputs[0])
    args.priority = args.priority or ("bulk" if several else "interactive")
    if args.progress and args.protocol != "grpc":
        parser.error(f"argument --progress: requires --protocol grpc, got {args.protocol}")
    check_access(parser, args)
    check_output(parser, args, several)
    check_reading(parser, args)
    try:
        check_seed(args.seed)
        check_for_some_preset(partial(options_of, args))
    except InvalidRequest as error:
        parser.error(str(error))
    if (args.samples or 1) > 1 and not (args.mean or args.uncertainty):
        parser.error("argument --samples: requires --mean or --uncertainty")
    for name in ("compare", "uncertainty"):
        if getattr(args, name) and several:
            parser.error(f"argument --{name}: requires a single image")
    endings = (".png", ".dcm") if args.format == "dicom" else (".png",)
    if args.uncertainty and args.uncertainty.suffix.lower() not in endings:
        parser.error(f"argument --uncertainty: must end in {' or '.join(endings)}, got '{args.uncertainty}'")
    return args


def uid(value: str) -> str:
    """Return a UID; argparse reports anything else."""
    if not re.fullmatch(UID_PATTERN, value):
        raise argparse.ArgumentTypeError(f"must be a UID such as 1.2.840.10008, got '{value}'")
    return value


def check_dicomweb(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Check the options for a DICOMweb server, and set the format that it needs; exit if one is invalid."""
    if not args.dicomweb:
        for name in ("study", "series", "store"):
            if getattr(args, name):
                parser.error(f"argument --{name}: requires --dicomweb")
        return
    if args.inputs:
        parser.error(f"argument --dicomweb: takes no IMAGE|DIR, got '{args.inputs[0]}'")
    if not args.study:
        parser.error("argument --dicomweb: requires --study")
    if args.out is None and not args.store:
        parser.error("argument --dicomweb: requires -o DIR or --store")
    if args.format == "png":
        parser.error("argument --format: must be dicom for --dicomweb, got 'png'")
    args.format = "dicom"


def add_connection(parser: argparse.ArgumentParser, wait: float) -> None:
    """Add the options that say where the server is and how to reach it, for ``check_access``; ``wait``: a default."""
    add = parser.add_argument
    add("--url", metavar="HOST:PORT", help="server (default: localhost:8001, with --protocol http localhost:8000)")
    add("--protocol", choices=("grpc", "http"), default="grpc", help="default: %(default)s")
    add("--tls", action="store_true", help="encrypt, and verify the server's certificate")
    add("--ca", type=Path, metavar="FILE", help="certificates (PEM) to trust instead of the system's; implies --tls")
    add(
        "--token-file",
        type=Path,
        metavar="FILE",
        help=f"file of the token to send to the server (default: the environment variable {access.VARIABLE}, if set)",
    )
    wait_help = "maximum seconds to wait for the server, at the start or if it goes away (default: %(default)s)"
    add("--wait", type=float, default=wait, metavar="S", help=wait_help)
    timeout_help = "maximum seconds per image; inf: no limit (default: %(default)s)"
    add("--timeout", type=float, default=600, metavar="S", help=timeout_help)


def check_access(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Check the options for a protected server and set ``args.token``, None for none; exit if one is invalid."""
    value = os.environ.get(access.VARIABLE)
    try:
        if args.token_file is not None:
            args.token = read_token(args.token_file)
        else:
            args.token = None if value is None else check_token(value, f"the variable {access.VARIABLE}")
    except TokenError as error:
        parser.error(f"argument --token-file: {error}" if args.token_file is not None else str(error))
    try:
        if args.ca is not None:
            access.trust(args.ca, args.protocol)
    except access.AccessError as error:
        parser.error(f"argument --ca: {error}")


def check_reading(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Check the options for reading files and combine them in ``args.choice``; exit if one is invalid."""
    if args.downscale is not None and args.downscale < 2:
        parser.error(f"argument --downscale: must be 2 or more, got {args.downscale}")
    for name in ("frame", "page"):
        if (getattr(args, name) or 1) < 1 or getattr(args, name) == 0:
            parser.error(f"argument --{name}: must be 1 or more, got {getattr(args, name)}")
    if args.window and not (all(map(math.isfinite, args.window)) and args.window[1] > 0):
        parser.error(f"argument --window: the width must be more than 0, got {args.window[0]:g} {args.window[1]:g}")
    low, high = PIXEL_MM
    if args.pixel_mm is not None and not low <= args.pixel_mm <= high:
        parser.error(f"argument --pixel-mm: must be {low:g} to {high:g}, got {args.pixel_mm:g}")
    window = tuple(args.window) if args.window else None
    args.choice = Choice(window, args.frame, args.page, args.pixel_mm, args.format == "dicom")


def check_output(parser: argparse.ArgumentParser, args: argparse.Namespace, several: bool) -> None:
    """Check -o, --name and the format, and set them and ``args.out_is_file``; exit if one is invalid."""
    text = args.out
    is_folder = text is None or text.endswith(os.sep) or os.path.isdir(text)
    args.out = None if text is None else Path(text)
    suffix = "" if is_folder else args.out.suffix.lower()
    args.out_is_file = suffix in ENDINGS.values()
    is_version = re.fullmatch(r"\.v?\d+", suffix)  # a folder such as results.v2
    if suffix and not args.out_is_file and not is_version:
        parser.error(
            f"argument -o: must be a .png or .dcm file or a folder, got '{text}' (for a folder of that name: '{text}/')"
        )
    if not is_folder and not args.out_is_file and os.path.exists(text):
        parser.error(f"argument -o: must be a .png or .dcm file or a folder, got the file '{text}'")
    if args.out_is_file and several:
        parser.error(f"argument -o: must be a folder for several inputs, got '{text}'")
    if args.out_is_file and args.name is not None:
        parser.error("argument --name: requires outputs in folders, not -o NAME.png")
    args.format = args.format or ("dicom" if suffix == ENDINGS["dicom"] else "png")
    ending = ENDINGS[args.format]
    if args.out_is_file and suffix != ending:
        parser.error(f"argument -o: must end in {ending} for --format {args.format}, got '{text}'")
    for flag in ("compress", "burn_in"):
        if getattr(args, flag) and args.format != "dicom":
            parser.error(f"argument --{flag.replace('_', '-')}: requires --format dicom")
    args.name = PATTERN.replace(".png", ending) if args.name is None else args.name
    try:
        check_pattern(args.name, ending)
    except ValueError as error:
        parser.error(f"argument --name: {error}")
