"""Make HR/LR pairs from full-size radiographs: 256² and 64² PNG files, by the paper's OpenCV protocol.

python -m train.pairs data/nih/images data/nih
python -m train.pairs data/nih/images data/nih --hr-size 512    # and 128², beside the others
python -m train.pairs originals data/mine --workers 8
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice, repeat
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from pipeline.command_line import make_parser
from pipeline.method.images import crop_square, downscale, resize_cubic
from pipeline.presets import PAPER
from pipeline.spec import SCALE
from pipeline.whole import whole_file

HR_SIZE = PAPER.data.hr_size

SKIPPED = "skipped.txt"
SUFFIXES = (".png", ".jpg", ".jpeg")
START_OF_SCAN, END_OF_JPEG = b"\xff\xda", b"\xff\xd9"
SHOWN = 5
"""Skipped files that the terminal names."""
CHUNK = 16
"""Images that a worker is handed at a time."""

# a tenth smaller than OpenCV's default at the same speed; level 6 takes five times as long for no smaller a file
PNG = (cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_HUFFMAN_ONLY)


def folders(hr_size: int = HR_SIZE) -> tuple[str, str]:
    """Of HR and LR images of a size; the files of a pair have the same name."""
    return f"HR_{hr_size}", f"LR_{hr_size // SCALE}"


HR, LR = folders()


class Unusable(Exception):
    """A file that gives no pair; the message says why."""


@dataclass(frozen=True)
class Pairs:
    """What became of a folder's images."""

    made: int
    existing: int
    skipped: dict[Path, str]
    """files that gave no pair, and why"""


def find_images(src: Path) -> list[Path]:
    """The PNG and JPEG files below a folder, sorted; hidden ones are left out.

    Raises:
        ValueError: there is no such folder, it has no images, or two of them would give the same pair.
    """
    if not src.is_dir():
        raise ValueError(f"'{src}' is not a folder")
    by_stem: dict[str, Path] = {}
    for path in sorted(p for p in src.rglob("*") if p.suffix.lower() in SUFFIXES):
        if any(part.startswith(".") for part in path.relative_to(src).parts):
            continue
        if path.stem in by_stem:
            raise ValueError(f"'{path}' and '{by_stem[path.stem]}' would both become '{path.stem}.png': rename one")
        by_stem[path.stem] = path
    if not by_stem:
        raise ValueError(f"no images ({', '.join(SUFFIXES)}) below '{src}'")
    return list(by_stem.values())


def read_gray8(path: Path) -> NDArray[np.uint8]:
    """uint8 [H, W] of a file in gray or colour, 8 or 16 bits.

    Raises:
        Unusable: the file cannot be read or decoded, or is truncated.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise Unusable(f"cannot be read: {error.strerror}") from error
    # before 4.11, OpenCV fills up what a truncated JPEG lacks
    truncated = data.startswith(b"\xff\xd8") and data.rfind(END_OF_JPEG) < data.rfind(START_OF_SCAN)
    try:
        pixels = None if truncated else cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        pixels = None
    if pixels is None or pixels.dtype not in (np.uint8, np.uint16):
        raise Unusable("is damaged, or neither PNG nor JPEG")
    if pixels.ndim == 3:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY if pixels.shape[2] == 3 else cv2.COLOR_BGRA2GRAY)
    # the protocol resamples the 8-bit images that NIH publishes, so deeper files are rounded before, not after
    return pixels if pixels.dtype == np.uint8 else np.rint(pixels / 257).astype(np.uint8)


def pair_of(image: NDArray[np.uint8], size: int = HR_SIZE) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """uint8 [H, W] ⇒ HR and LR, uint8: the centred square, resampled to HR's size, and that to LR's.

    Raises:
        Unusable: the image is smaller than HR.
    """
    if min(image.shape) < size:
        raise Unusable(f"is {image.shape[1]}×{image.shape[0]}, needed are {size} pixels a side")
    hr = resize_cubic(crop_square(image), size, size)
    return hr, downscale(hr)


def write_png(path: Path, image: NDArray[np.uint8]) -> None:
    """Write a PNG whole or not at all."""
    try:
        with whole_file(path) as partial:
            partial.write_bytes(cv2.imencode(".png", image, PNG)[1].tobytes())
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def make_pair(path: Path, out: Path, size: int = HR_SIZE) -> str | None:
    """Write what the pair of a file still lacks; returns why there is none, or None.

    Raises:
        OSError: a file cannot be written.
    """
    try:
        images = pair_of(read_gray8(path), size)
    except Unusable as error:
        return str(error)
    for folder, image in zip(folders(size), images, strict=True):
        target = out / folder / f"{path.stem}.png"
        if not target.exists():
            write_png(target, image)
    return None


def finished(out: Path, size: int = HR_SIZE) -> set[str]:
    """The names, without suffix, of the pairs that are whole."""
    hr, lr = ({path.stem for path in (out / folder).glob("*.png")} for folder in folders(size))
    return hr & lr


def _start_worker() -> None:
    cv2.setNumThreads(1)
    # libpng prints past OpenCV's log level; what is wrong with a file is reported by us
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextmanager
def _make_pairs(paths: list[Path], out: Path, size: int, workers: int) -> Iterator[Iterator[str | None]]:
    """``make_pair`` of every path, in order, by several processes."""
    # "spawn": a fork would inherit the locks of the caller's threads
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(paths)), context, _start_worker)
    # the workers inherit the mask: Ctrl-C reaches this process alone, which ends them
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        results = pool.map(make_pair, paths, repeat(out), repeat(size), chunksize=CHUNK)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        yield results
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        pool.shutdown(cancel_futures=True)


def generate_downsampled_pairs(src: Path, out: Path, *, hr_size: int = HR_SIZE, workers: int | None = None) -> Pairs:
    """Write OUT/HR_256/NAME.png and OUT/LR_64/NAME.png, 8-bit gray, for every PNG and JPEG file below ``src``.

    Pairs that exist are left as they are, so that an interrupted run continues. Files that give no pair are listed in
    OUT/skipped.txt.

    Args:
        hr_size: side of the HR images, a multiple of 64; LR's is a quarter of it.
        workers: processes (default: one a CPU).

    Raises:
        ValueError: the folders or ``workers`` are wrong, or no file gives a pair.
        OSError: a pair cannot be written, such as on a full disk, or a worker was killed.
    """
    if workers is not None and workers < 1:
        raise ValueError(f"{workers} workers, allowed are 1 and more")
    if hr_size < 64 or hr_size % 64:
        raise ValueError(f"--hr-size is {hr_size}, it must be a multiple of 64")
    names = folders(hr_size)
    ours, theirs = out.resolve(), src.resolve()
    if ours == theirs or theirs in ours.parents or {ours / name for name in names} & {theirs, *theirs.parents}:
        raise ValueError(f"'{out}' would put pairs among the originals in '{src}': name another folder")
    paths = find_images(src)
    for folder in (out / name for name in names):
        folder.mkdir(parents=True, exist_ok=True)
        for partial in folder.glob(".*.partial"):  # a killed run's
            partial.unlink()
    done = finished(out, hr_size)
    todo = [path for path in paths if path.stem not in done]
    skipped: dict[Path, str] = {}
    if todo:
        try:
            with _make_pairs(todo, out, hr_size, workers or os.cpu_count() or 1) as reasons:
                for path, reason in zip(todo, tqdm(reasons, "pairs", len(todo), unit="image"), strict=True):
                    if reason is not None:
                        skipped[path] = reason
        except BrokenProcessPool:
            raise OSError("a worker was killed, perhaps for want of memory: try fewer --workers") from None
        except OSError as error:
            state = f"{len(finished(out, hr_size))} of {len(paths)} pairs are made; the same command continues"
            raise OSError(f"'{error.filename}' cannot be written: {error.strerror}; {state}") from error
    (out / SKIPPED).write_text("".join(f"'{path}' {reason}\n" for path, reason in skipped.items()), encoding="utf-8")
    if len(skipped) == len(paths):
        raise ValueError(f"none of the {len(paths)} images in '{src}' gives a pair: see '{out / SKIPPED}'")
    return Pairs(len(todo) - len(skipped), len(paths) - len(todo), skipped)


def main(argv: list[str] | None = None) -> int:
    parser = make_parser(__doc__, "python -m train.pairs")
    parser.add_argument("src", type=Path, metavar="SRC", help="folder of PNG and JPEG files, also in folders below")
    parser.add_argument("out", type=Path, metavar="OUT", help=f"where {HR}/ and {LR}/ go, or those of --hr-size")
    parser.add_argument("--hr-size", type=int, default=HR_SIZE, metavar="N", help="side of HR (default: %(default)s)")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: one a CPU)")
    args = parser.parse_args(argv)
    try:
        pairs = generate_downsampled_pairs(args.src, args.out, hr_size=args.hr_size, workers=args.workers)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command continues", file=sys.stderr)
        return 130
    print(f"{pairs.made} pairs made, {pairs.existing} there already, {len(pairs.skipped)} files skipped")
    if pairs.skipped:
        some = [f"  '{path}' {reason}\n" for path, reason in islice(pairs.skipped.items(), SHOWN)]
        print(f"skipped (all in '{args.out / SKIPPED}'):\n{''.join(some)}", end="", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
