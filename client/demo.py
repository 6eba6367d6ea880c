"""Demo for `make demo`: upscale a radiograph, reduced as in the paper and as viewers do, on a real server."""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from pydicom.data import get_testdata_file

from client import UpscaleError
from client.files import read_image
from client.formats.source import FileError
from client.pictures import CAUTION, enlarge, labelled_row
from client.png import write_png
from pipeline import ROOT
from pipeline.interrupts import Interrupted, install
from pipeline.method.images import (
    Image,
    crop_square,
    downscale,
    downscale_by_area,
    from_integers,
    psnr,
    resize_cubic,
    to_integers,
    upsample,
)
from pipeline.presets import PAPER
from pipeline.serving.local_server import ServerError, running_server
from pipeline.spec import SCALE

RADIOGRAPH = "RG1_UNCR.dcm"
DETAIL = (300, 180, 320)
"""Top, left and side of a square in the lung, in pixels of 1024."""


class DemoError(Exception):
    """The demo failed; the message states the reason."""


def make_inputs(out: Path) -> None:
    """Write hr.png (256²), lr.png (64²) and bicubic.png by the paper's protocol, original.png (1024²) and preview.png.

    The preview (256²) is reduced by area, as in viewers.
    """
    path = get_testdata_file(RADIOGRAPH)
    if path is None:
        raise DemoError(f"the package pydicom-data has no {RADIOGRAPH}: pip install pydicom-data")
    source = read_image(Path(path))
    data = PAPER.data
    original = resize_cubic(crop_square(to_integers(source.image, 8)), data.original_size, data.original_size)
    hr = resize_cubic(original, data.hr_size, data.hr_size)
    lr = downscale(hr)
    for name, image in (("hr", hr), ("lr", lr)):
        write_png(out / f"{name}.png", from_integers(image))
    write_png(out / "bicubic.png", upsample(from_integers(lr)))
    write_png(out / "original.png", from_integers(original))
    write_png(out / "preview.png", from_integers(downscale_by_area(original, SCALE)))


def draw_detail(out: Path) -> None:
    """Write preview_detail.png: a detail of the preview, its bicubic upsampling, the result and the original."""
    lr, upscaled, hr = (read_image(out / f"{name}.png").image for name in ("preview", "preview_upscaled", "original"))
    top, left, side = DETAIL

    def cut(image: Image) -> Image:
        return image[top : top + side, left : left + side]

    panels = [("preview, enlarged", enlarge(lr)), ("bicubic x4", upsample(lr).clip(0, 1)), ("upscaled x4", upscaled)]
    rated = [(title, f"{psnr(cut(image), cut(hr)):.2f} dB", cut(image)) for title, image in panels]
    picture = labelled_row([*rated, ("original", "reference", cut(hr))], CAUTION)
    write_png(out / "preview_detail.png", picture)


@contextlib.contextmanager
def timed(what: str) -> Iterator[None]:
    """Print the duration and description of the block."""
    began = time.monotonic()
    yield
    print(f"{time.monotonic() - began:6.1f} s  {what}", flush=True)


def demo(out: Path) -> None:
    """Run the demo and write its files to ``out``."""
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
        second = [
            *("client/upscale.py", str(out / "preview.png"), "-o", str(out / "preview_upscaled.png")),
            *("--url", url, "--force"),
        ]
        for words in (command, second):
            with timed("python " + " ".join(words)):
                result = subprocess.run([sys.executable, *words])
            if result.returncode:
                raise DemoError(f"client/upscale.py failed with status {result.returncode}")
        with timed("server stopped"):
            stack.close()
    draw_detail(out)
    print(f"\nSee {out / 'upscaled_compare.png'}, {out / 'uncertainty.png'} for where detail was guessed,")
    print(f"and {out / 'preview_detail.png'} for a detail of a 256² preview, as made by viewers, upscaled to 1024²")
    print("(also there: lr.png, bicubic.png, upscaled.png, hr.png; preview.png, preview_upscaled.png, original.png)")
    print("Detail in the upscaled image is generated: it is not for diagnosis.")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m client.demo", description=__doc__)
    parser.add_argument(
        "out", nargs="?", type=Path, default=Path("demo"), help="folder to write (default: %(default)s/)"
    )
    out = parser.parse_args(argv).out
    install()  # signals also stop the server, through the context managers
    os.chdir(ROOT)
    try:
        demo(out)
    except (DemoError, ServerError, FileError, UpscaleError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except Interrupted as error:
        print("interrupted; the server is stopped", file=sys.stderr)
        return 128 + int(error.args[0])
    return 0


if __name__ == "__main__":
    sys.exit(main())
