"""Upscale chest X-rays ×4 on a Triton server: the command, whose options are those of ``client.arguments``."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

from tqdm import tqdm

from client import UpscaleError
from client.arguments import parse
from client.batch import report, search_in_background, upscale_all
from client.formats.source import FileError
from client.jobs import Finder, name_of
from client.terminal import make_output_safe, mute_output, on_one_line
from pipeline.interrupts import Interrupted, install


def run(args: argparse.Namespace) -> int:
    """Run the command with parsed options; return its exit status."""
    finder = Finder(args.inputs, args.out, args.out_is_file, args.name, args.recursive)
    one = len(args.inputs) == 1 and not os.path.isdir(args.inputs[0])
    began = time.monotonic()
    with tqdm(total=0, unit="image", disable=one or None) as bar:
        try:
            tally = upscale_all(search_in_background(finder, bar), args, bar)
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


def run_dicomweb(args: argparse.Namespace) -> int:
    """Fetch a study's images, upscale them and, if asked to, store the results; return the exit status."""
    from client.dicomweb import Dicomweb, DicomwebError

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "images"
        folder.mkdir()
        try:
            server = Dicomweb(args.dicomweb)
            fetched = list(server.fetch(args.study, server.find(args.study, args.series), folder))
            if not fetched:
                raise DicomwebError(f"all images of study {args.study} are results already")
            args.inputs, args.out = [folder], args.out or Path(name) / "results"
            status = run(args)
            targets = [args.out / name_of(args.name, path) for path in fetched]
            made = [path for path in targets if path.is_file()]
            for path in made if args.store else []:
                server.store(path)
        except (DicomwebError, FileError) as error:
            print(on_one_line(f"error: {error}"), file=sys.stderr)
            return 1
    if args.store:
        print(f"{len(made)} of {len(fetched)} results stored at {args.dicomweb}")
    return status


def main(argv: list[str] | None = None) -> int:
    make_output_safe()
    args = parse(argv)
    install()
    try:
        status = run_dicomweb(args) if args.dicomweb else run(args)
        sys.stdout.flush()
    except Interrupted as error:
        return 128 + int(error.args[0])
    except BrokenPipeError:  # such as `… | head`
        mute_output()
        return 128 + signal.SIGPIPE
    except OSError as error:
        mute_output()
        print(f"error: {error.strerror or error}", file=sys.stderr)
        return 1
    return status


if __name__ == "__main__":
    sys.exit(main())
