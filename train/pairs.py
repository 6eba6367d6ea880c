"""Make HR/LR pairs from full-size radiographs: 256² and 64² PNG files, with the paper's OpenCV protocol.

python -m train.pairs data/nih/images data/nih
python -m train.pairs data/nih/images data/nih --hr-size 512    # 512² and 128², next to the others
python -m train.pairs originals data/mine --workers 8
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice, repeat
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from pipeline.atomic import atomic_write
from pipeline.command_line import make_parser, one_line_errors
from pipeline.method.images import crop_square, downscale, resize_cubic
from pipeline.presets import PAPER
from pipeline.spec import SCALE

HR_SIZE = PAPER.data.hr_size

SKIPPED = "skipped.txt"
SUFFIXES = (".png", ".jpg", ".jpeg")
START_OF_SCAN, END_OF_JPEG = b"\xff\xda", b"\xff\xd9"
SHOWN = 5
"""Maximum number of skipped files to print."""
CHUNK = 16
"""Images per task of a worker."""

# 10 % smaller than OpenCV's default at the same speed; level 6 takes five times as long and saves nothing
PNG = (cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_HUFFMAN_ONLY)


def folders(hr_size: int = HR_SIZE) -> tuple[str, str]:
    """Return the names of the HR and LR folders; the files of a pair have the same name."""
    return f"HR_{hr_size}", f"LR_{hr_size // SCALE}"


HR, LR = folders()


class Unusable(Exception):
    """No pair can be made from a file; the message says why."""


@dataclass(frozen=True)
class Pairs:
    """Result of making the pairs of a folder."""

    made: int
    existing: int
    skipped: dict[Path, str]
    """files without a pair, and the reasons"""


def find_images(src: Path) -> list[Path]:
    """Find the PNG and JPEG files below a folder, sorted and without hidden files.

    Raises:
        ValueError: there is no such folder, it has no images, or two of them would make the same pair.
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
    """Read a gray or colour file with 8 or 16 bits as uint8 [H, W].

    Raises:
        Unusable: the file cannot be read or decoded, or is truncated.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise Unusable(f"cannot be read: {error.strerror}") from error
    # before 4.11, OpenCV pads truncated JPEG files
    truncated = data.startswith(b"\xff\xd8") and data.rfind(END_OF_JPEG) < data.rfind(START_OF_SCAN)
    try:
        pixels = None if truncated else cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        pixels = None
    if pixels is None or pixels.dtype not in (np.uint8, np.uint16):
        raise Unusable("is damaged, or not PNG or JPEG")
    if pixels.ndim == 3:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY if pixels.shape[2] == 3 else cv2.COLOR_BGRA2GRAY)
    # the protocol resamples NIH's 8-bit images, so deeper files are rounded before resampling
    return pixels if pixels.dtype == np.uint8 else np.rint(pixels / 257).astype(np.uint8)


def pair_of(image: NDArray[np.uint8], size: int = HR_SIZE) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Make the pair (HR, LR), uint8, of an image uint8 [H, W]: its centred square resampled to HR's size, then to LR's.

    Raises:
        Unusable: the image is smaller than HR.
    """
    if min(image.shape) < size:
        raise Unusable(f"must have at least {size} pixels per side, got {image.shape[1]}×{image.shape[0]}")
    hr = resize_cubic(crop_square(image), size, size)
    return hr, downscale(hr)


def write_png(path: Path, image: NDArray[np.uint8]) -> None:
    """Write a PNG file atomically."""
    try:
        with atomic_write(path) as partial:
            partial.write_bytes(cv2.imencode(".png", image, PNG)[1].tobytes())
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def make_pair(path: Path, out: Path, size: int = HR_SIZE) -> str | None:
    """Write the missing files of a pair; return the reason why there is no pair, or None.

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
    """Return the names, without suffix, of the complete pairs."""
    hr, lr = ({path.stem for path in (out / folder).glob("*.png")} for folder in folders(size))
    return hr & lr


def _start_worker() -> None:
    cv2.setNumThreads(1)
    # libpng ignores OpenCV's log level; file errors are reported separately
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def prepare_folders(src: Path, out: Path, hr_size: int) -> None:
    """Create the pairs' folders, and remove what a killed run left half-written in them.

    Raises:
        ValueError: ``out`` would put pairs among the originals.
    """
    names, ours, theirs = folders(hr_size), out.resolve(), src.resolve()
    if ours == theirs or theirs in ours.parents or {ours / name for name in names} & {theirs, *theirs.parents}:
        raise ValueError(f"'{out}' would put pairs among the originals in '{src}': use another folder")
    for folder in (out / name for name in names):
        folder.mkdir(parents=True, exist_ok=True)
        for partial in folder.glob(".*.partial"):
            partial.unlink()


def make_all(paths: list[Path], out: Path, hr_size: int, workers: int) -> dict[Path, str]:
    """Make the pairs of all files in several processes; return those without a pair, and why.

    Raises:
        OSError: a pair cannot be written, or a worker was killed.
    """
    # "spawn": a fork would inherit locks held by the caller's threads
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(paths)), context, _start_worker)
    # workers inherit the mask: only this process handles Ctrl-C, and ends them
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        results = pool.map(make_pair, paths, repeat(out), repeat(hr_size), chunksize=CHUNK)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        reasons = list(tqdm(results, "pairs", len(paths), unit="image"))
    except BrokenProcessPool:
        raise OSError("a worker was killed, perhaps out of memory: try fewer --workers") from None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        pool.shutdown(cancel_futures=True)
    return {path: reason for path, reason in zip(paths, reasons, strict=True) if reason is not None}


def generate_downsampled_pairs(src: Path, out: Path, *, hr_size: int = HR_SIZE, workers: int | None = None) -> Pairs:
    """Write OUT/HR_256/NAME.png and OUT/LR_64/NAME.png, 8-bit gray, for every PNG and JPEG file below ``src``.

    Existing pairs are kept, so an interrupted run can be continued. Files without a pair are listed in OUT/skipped.txt.

    Args:
        hr_size: side of the HR images, a multiple of 64; the LR side is a quarter of it.
        workers: number of processes (default: one per CPU).

    Raises:
        ValueError: the folders or ``workers`` are invalid, or no file makes a pair.
        OSError: a pair cannot be written, such as on a full disk, or a worker was killed.
    """
    if workers is not None and workers < 1:
        raise ValueError(f"--workers must be 1 or more, got {workers}")
    if hr_size < 64 or hr_size % 64:
        raise ValueError(f"--hr-size must be a multiple of 64, got {hr_size}")
    paths = find_images(src)
    prepare_folders(src, out, hr_size)
    done = finished(out, hr_size)
    todo = [path for path in paths if path.stem not in done]
    try:
        skipped = make_all(todo, out, hr_size, workers or os.cpu_count() or 1) if todo else {}
    except OSError as error:
        if error.filename is None:
            raise
        state = f"{len(finished(out, hr_size))} of {len(paths)} pairs made; run the same command to continue"
        raise OSError(f"'{error.filename}' cannot be written: {error.strerror}; {state}") from error
    (out / SKIPPED).write_text("".join(f"'{path}' {reason}\n" for path, reason in skipped.items()), encoding="utf-8")
    if len(skipped) == len(paths):
        raise ValueError(f"none of the {len(paths)} images in '{src}' makes a pair: see '{out / SKIPPED}'")
    return Pairs(len(todo) - len(skipped), len(paths) - len(todo), skipped)


@one_line_errors(ValueError, OSError, interrupted="interrupted; run the same command to continue")
def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__doc__, "python -m train.pairs")
    parser.add_argument("src", type=Path, metavar="SRC", help="folder of PNG and JPEG files, including subfolders")
    parser.add_argument(
        "out", type=Path, metavar="OUT", help=f"parent folder for {HR}/ and {LR}/, or those of --hr-size"
    )
    parser.add_argument("--hr-size", type=int, default=HR_SIZE, metavar="N", help="side of HR (default: %(default)s)")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: one per CPU)")
    args = parser.parse_args(argv)
    pairs = generate_downsampled_pairs(args.src, args.out, hr_size=args.hr_size, workers=args.workers)
    print(f"{pairs.made} pairs made, {pairs.existing} already existed, {len(pairs.skipped)} files skipped")
    if pairs.skipped:
        some = [f"  '{path}' {reason}\n" for path, reason in islice(pairs.skipped.items(), SHOWN)]
        print(f"skipped (all in '{args.out / SKIPPED}'):\n{''.join(some)}", end="", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
