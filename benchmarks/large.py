"""Measure images that are upscaled in tiles: time, the server's memory, and whether seams show.

python -m benchmarks.large
python -m benchmarks.large --sides 700 1024 --picture docs/tiles.png

Upscales the demonstration's radiograph (package pydicom-data) at several sizes on a server of its own. A seam is the
mean difference between neighbouring pixels across the borders of tiles, relative to that at neighbouring columns and
rows of the same phase, up to 16 pixels away: 1 where nothing shows.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

import cv2
import numpy as np
from pydicom.data import get_testdata_file
from tqdm import tqdm

from benchmarks.server import server_at
from benchmarks.soak import descendants
from client import Client, UpscaleError
from client.demo import RADIOGRAPH
from client.files import read_image
from client.png import write_png
from pipeline.command_line import make_parser, one_line_errors
from pipeline.method.images import Image
from pipeline.method.tiles import windows
from pipeline.serving.local_server import ServerError
from pipeline.serving.supervisor import PROBE_EVERY
from pipeline.spec import MAX_SIDE, MAX_TILED_SIDE, SCALE
from train.report import markdown

SIDES = (512, 700, 1024, 2048)
BESIDE = (-4, -3, -2, 2, 3, 4)
"""Distances in LR pixels of the columns and rows to compare with."""


def memory_mb() -> float:
    """Return the memory of the server that this process started, in MB; what its processes share counts once."""
    total = 0
    for pid in descendants(os.getpid()):
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:  # it has ended
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1000


class Peak:
    """The server's largest memory while a block runs."""

    def __init__(self) -> None:
        self.mb, self.ended = 0.0, threading.Event()
        self.thread = threading.Thread(target=self.watch)

    def watch(self) -> None:
        while not self.ended.wait(0.1):
            self.mb = max(self.mb, memory_mb())

    def __enter__(self) -> Peak:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()


def seam(image: Image, shape: tuple[int, int]) -> float:
    """Return how much more neighbours differ across the borders of tiles than beside them."""
    across, beside = [], []
    for axis, spans in ((1, [w.columns for w in windows(*shape)]), (0, [w.rows for w in windows(*shape)])):
        steps = np.abs(np.diff(image, axis=axis)).mean(axis=1 - axis)
        for border in {SCALE * span.stop - 1 for span in spans if span.stop < shape[axis]}:
            across.append(steps[border])
            beside += [steps[border + SCALE * k] for k in BESIDE if 0 <= border + SCALE * k < len(steps)]
    return float(np.mean(across) / np.mean(beside)) if across else 1.0


@one_line_errors(UpscaleError, ServerError, OSError)
def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__doc__, "python -m benchmarks.large")
    parser.add_argument("--sides", type=int, nargs="+", default=SIDES, help=f"LR sides, up to {MAX_TILED_SIDE}")
    parser.add_argument("--runtime", default="auto", help="the server's runtime, see pipeline.serve (default: auto)")
    parser.add_argument("--picture", type=Path, help="PNG of the surroundings of the first corner of four tiles")
    args = parser.parse_args(argv)
    path = get_testdata_file(RADIOGRAPH)
    assert path is not None
    source = read_image(path).image
    rows = []
    with server_at(None, flags=[f"--runtime={args.runtime}"], supervised=True) as url, Client(url) as client:
        idle = memory_mb()
        for side in tqdm(args.sides, desc="images", unit="image"):
            image = cv2.resize(source, (side, side), interpolation=cv2.INTER_AREA)
            time.sleep(2 * PROBE_EVERY)  # the supervisor has messages of the last image released
            began = time.monotonic()
            with Peak() as peak:
                result = client.upscale(image, degradation="area")
            seconds = time.monotonic() - began
            assert result.spread is not None
            tiled = side > MAX_SIDE
            seams = [f"{seam(a, image.shape):.3f}" if tiled else "" for a in (result.image, result.spread)]
            rows.append([f"{side}²", f"{seconds:.1f}", f"{peak.mb:.0f}", *seams, f"{255 * result.lr_error:.3f}"])
            if args.picture and tiled:
                corner = SCALE * windows(*image.shape)[0].rows.stop
                part = np.s_[corner - 192 : corner + 192]
                write_png(args.picture, result.image[part, part])
                args.picture = None
    heads = ["LR image", "seconds", "server's memory, MB", "seam, image", "seam, spread", "lr_error, levels"]
    print(f"memory of the idle server: {idle:.0f} MB\n\n{markdown(heads, rows)}")


if __name__ == "__main__":
    sys.exit(main())
