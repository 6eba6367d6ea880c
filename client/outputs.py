"""The files that the command writes for an image: names, checks, contents."""

from __future__ import annotations

import argparse
import itertools
import os
from pathlib import Path

from client.formats.source import FileError, Source
from client.jobs import Job
from client.pictures import CAUTION, comparison, uncertainty_map
from client.png import write_png
from client.results import Upscaled
from pipeline.method.images import Image
from pipeline.spec import SCALE


def notes_of(source: Source, result: Upscaled) -> str:
    """Return notes on reading an image and on anything unusual about it; "" if there are none."""
    return "; ".join([*source.notes, *result.notes()])


def provenance(source: Source, result: Upscaled) -> dict[str, str]:
    """Return PNG text chunks that mark an output as derived and describe how its source was read."""
    notes = notes_of(source, result)
    return ({"Notes": notes} if notes else {}) | {
        "Software": "cxr-superres",
        "Description": f"Super-resolved x{SCALE} by latent diffusion: {CAUTION}.",
        "Parameters": result.parameters(),
    }


def outputs_of(job: Job, args: argparse.Namespace) -> list[Path]:
    """Return a job's output files: the image and, if requested, the comparison and the uncertainty map."""
    picture = job.target.with_name(f"{job.target.stem}_compare.png")
    return [job.target, *([picture] if args.compare else []), *([args.uncertainty] if args.uncertainty else [])]


def is_done(job: Job, args: argparse.Namespace) -> bool:
    """Whether all outputs exist and are not empty."""
    return all(os.path.isfile(path) and path.stat().st_size for path in outputs_of(job, args))


def check_outputs(job: Job, args: argparse.Namespace) -> None:
    """Raises FileError if an output is an input, has the name of another, or exists and may not be overwritten."""
    outputs = outputs_of(job, args)
    inputs = [job.path, *([args.compare] if args.compare else [])]
    for path_in, path_out in itertools.product(filter(os.path.exists, inputs), filter(os.path.exists, outputs)):
        if path_in.samefile(path_out):
            raise FileError(f"'{path_in}': its output '{path_out}' is an input: give it another name or folder")
    if len({os.path.realpath(path_out) for path_out in outputs}) < len(outputs):
        raise FileError(f"'{args.uncertainty}' is also the name of another output: give --uncertainty another one")
    for path_out in outputs:
        if os.path.exists(path_out) and not args.force:
            raise FileError(f"'{path_out}' exists already: give --force to overwrite it")


def write_outputs(job: Job, args: argparse.Namespace, source: Source, result: Upscaled, hr: Image | None) -> None:
    """Write an image's outputs; ``hr`` is the image to compare with.

    Raises:
        FileError: a file cannot be written.
    """
    text = provenance(source, result)
    if args.format == "dicom":
        write_dicom_outputs(job, args, source, result)
    else:
        write_png(job.target, result.image, source.bits, text)
    if hr is not None:
        write_png(outputs_of(job, args)[1], comparison(source.image, result.image, hr), text=text)
    if args.uncertainty and args.uncertainty.suffix.lower() == ".png" and result.spread is not None:
        write_png(args.uncertainty, uncertainty_map(result.image, result.spread), text=text)


def write_dicom_outputs(job: Job, args: argparse.Namespace, source: Source, result: Upscaled) -> None:
    """Write the derived image and, if it was asked for, the parametric map beside it."""
    # imported on demand: highdicom takes half a second
    from client.dicom.derive import derive
    from client.dicom.files import compress, write_dicom
    from client.dicom.uncertainty import map_uncertainty

    derived = derive(source, result, marked=args.burn_in)
    if args.uncertainty and args.uncertainty.suffix.lower() == ".dcm" and result.spread is not None:
        assert source.original is not None
        write_dicom(args.uncertainty, map_uncertainty(derived, source.original, result))
    if args.compress:
        compress(derived, args.compress)
    write_dicom(job.target, derived)
