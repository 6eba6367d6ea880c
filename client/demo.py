"""The demonstration of `make demo`: a real radiograph, a real server, one labelled picture."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from pydicom.data import get_testdata_file

from client import UpscaleError
from pipeline.files import read_image
from pipeline.formats.source import FileError
from pipeline.images import crop_square, downscale, from_integers, resize_cubic, to_integers, upsample
from pipeline.local_server import ServerError, running_server
from pipeline.png import write_png
from pipeline.serve import ROOT
from pipeline.spec import PAPER

RADIOGRAPH = "RG1_UNCR.dcm"


class DemoError(Exception):
    """The demonstration cannot go on; the message says why."""


def make_inputs(out: Path) -> None:
    """Write hr.png (256²), lr.png (64²) and bicubic.png by the paper's protocol."""
    path = get_testdata_file(RADIOGRAPH)
    if path is None:
        raise DemoError(f"the package pydicom-data holds no {RADIOGRAPH}: pip install pydicom-data")
    source = read_image(Path(path))
    data = PAPER.data
    original = resize_cubic(crop_square(to_integers(source.image, 8)), data.original_size, data.original_size)
    hr = resize_cubic(original, data.hr_size, data.hr_size)
    lr = downscale(hr)
    for name, image in (("hr", hr), ("lr", lr)):
        write_png(out / f"{name}.png", from_integers(image))
    write_png(out / "bicubic.png", upsample(from_integers(lr)))


@contextlib.contextmanager
def timed(what: str) -> Iterator[None]:
    """Print how long the block took, and what it did."""
    began = time.monotonic()
    yield
    print(f"{time.monotonic() - began:6.1f} s  {what}", flush=True)


def demo(out: Path) -> None:
    """Run the demonstration into ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    with timed(f"{RADIOGRAPH} of pydicom-data → {out / 'hr.png'}, {out / 'lr.png'}, {out / 'bicubic.png'}"):
        make_inputs(out)
    with contextlib.ExitStack() as stack:
        with timed(f"server started and ready (log: {out / 'server.log'})"):
            url = stack.enter_context(running_server(out / "server.log"))
        command = [
            *("client/upscale.py", str(out / "lr.png"), "-o", str(out / "upscaled.png")),
            *("--url", url, "--compare", str(out / "hr.png"), "--uncertainty", str(out / "uncertainty.png"), "--force"),
        ]
        with timed("python " + " ".join(command)):
            result = subprocess.run([sys.executable, *command])
        if result.returncode:
            raise DemoError(f"client/upscale.py failed with status {result.returncode}")
        with timed("server stopped"):
            stack.close()
    print(f"\nLook at {out / 'upscaled_compare.png'}, and at {out / 'uncertainty.png'} for where it was guessed")
    print("(beside them: lr.png, bicubic.png, upscaled.png, hr.png)")
    print("Detail in the upscaled image is generated: it is not for diagnosis.")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m client.demo", description=__doc__)
    parser.add_argument(
        "out", nargs="?", type=Path, default=Path("demo"), help="folder to write (default: %(default)s/)"
    )
    out = parser.parse_args(argv).out
    for number in (signal.SIGTERM, signal.SIGHUP):  # these end the server too, by way of the context managers
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    os.chdir(ROOT)
    try:
        demo(out)
    except (DemoError, ServerError, FileError, UpscaleError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the server is stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
