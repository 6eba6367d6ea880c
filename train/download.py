"""Download public chest X-rays, NIH ChestX-ray14 or Indiana University (Open-i), to DIR/images/NAME.png.

python -m train.download nih --batches 1-12 --out data/nih
python -m train.download nih --batches 1,4,7-9 --out data/nih --keep
python -m train.download openi --out data/openi
"""

from __future__ import annotations

import argparse
import gzip
import os
import re
import shutil
import sys
import tarfile
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http.client import HTTPException, HTTPResponse
from pathlib import Path, PurePosixPath
from ssl import SSLError
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from tqdm import tqdm

from pipeline.command_line import make_parser, one_line_errors

NIH = (
    "vfk49d74nhbxq3nqjg0900w5nvkorp5c.gz",
    "i28rlmbvmfjbl8p2n3ril0pptcmcu9d1.gz",
    "f1t00wrtdk94satdfb9olcolqx20z2jp.gz",
    "0aowwzs5lhjrceb3qp67ahp0rd1l1etg.gz",
    "v5e3goj22zr6h8tzualxfsqlqaygfbsn.gz",
    "asi7ikud9jwnkrnkj99jnpfkjdes7l6l.gz",
    "jn1b4mw4n6lnh74ovmcjb8y48h8xj07n.gz",
    "tvpxmn7qyrgl0w8wfh9kqfjskv6nmm1j.gz",
    "upyy3ml7qdumlgk2rfcvlb9k6gvqq2pj.gz",
    "l6nilvfa9cg3s28tqv1qc1olm3gnz54p.gz",
    "hhq8fkdgvcari67vfhs7ppg2w6ni4jze.gz",
    "ioqwiy20ihqwyr8pf4c24eazhh281pbu.gz",
)
ARCHIVES = {
    "nih": {f"images_{i:03}.tar.gz": f"https://nihcc.box.com/shared/static/{name}" for i, name in enumerate(NIH, 1)},
    "openi": {"NLMCXR_png.tgz": "https://openi.nlm.nih.gov/imgs/collections/NLMCXR_png.tgz"},
}
"""URLs by dataset and file name."""

CHUNK = 2**16
TIMEOUT = 60
"""Seconds without data before a connection counts as broken."""
ATTEMPTS = 6
"""Maximum number of consecutive failures without progress."""
MAX_WAIT = 600
"""Maximum seconds to wait when a server asks for it."""
TRANSIENT = (408, 429, 500, 502, 503, 504)
EXTRACTED_RATIO = 1.1
"""Disk space of the extracted images relative to the archive: PNG files hardly compress further."""


class DownloadError(Exception):
    """The download failed; the message says why."""


class BrokenDownload(Exception):
    """An attempt failed but the next may succeed; ``wait`` is the pause in seconds requested by the server."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


@dataclass(frozen=True)
class Extracted:
    """Result of extracting an archive."""

    new: int
    existing: int
    skipped: list[str]
    """names of members that are not PNG files or not safe to extract"""


def check_space(folder: Path, needed: float) -> None:
    """Raise DownloadError if fewer than ``needed`` bytes are free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DownloadError(
            f"'{folder}' needs {needed / 2**30:.1f} GiB of disk space, only {free / 2**30:.1f} available"
        )


def download(url: str, path: Path, *, sleep: Callable[[float], None] = time.sleep) -> None:
    """Download a file atomically; interrupted downloads stay in ``path``.part and are resumed.

    Raises:
        DownloadError: the server refuses, the connection keeps breaking, or the disk is full.
        OSError: the file cannot be written.
    """
    part = path.with_name(f"{path.name}.part")
    version = path.with_name(f"{path.name}.part.version")
    furthest, failures = _size(part), 0
    while True:
        try:
            _attempt(url, part, version)
            break
        except BrokenDownload as broken:
            failures = failures + 1 if _size(part) <= furthest else 1
            furthest = max(furthest, _size(part))
            wait = 2.0 ** (failures - 1) if broken.wait is None else broken.wait
            if failures == ATTEMPTS or wait > MAX_WAIT:
                asked = f" and asks to wait {wait:.0f} s" if wait > MAX_WAIT else f" {failures} times in a row"
                raise DownloadError(f"'{url}' failed{asked}: {broken}; run the same command to continue") from None
            tqdm.write(f"{path.name}: {broken}; next attempt in {wait:.0f} s", file=sys.stderr)
            sleep(wait)
    os.replace(part, path)
    version.unlink()


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _attempt(url: str, part: Path, version: Path) -> None:
    """Request the bytes missing from ``part``."""
    headers = {"User-Agent": "cxr-superres"}
    if _size(part) and version.exists():
        # the last byte again: a range that starts after a complete file is an error
        headers["Range"] = f"bytes={_size(part) - 1}-"
    try:
        with urlopen(Request(url, headers=headers), timeout=TIMEOUT) as response:
            _store(response, part, version)
    except HTTPError as error:
        with error:
            if error.code == 416:
                part.unlink(missing_ok=True)
                raise BrokenDownload("the file on the server is now shorter") from None
            if error.code in TRANSIENT:
                raise BrokenDownload(
                    f"{error.code} {error.reason}", _retry_after(error.headers["Retry-After"])
                ) from None
            raise DownloadError(f"'{url}' returned {error.code} {error.reason}") from None
    except (URLError, HTTPException, ConnectionError, TimeoutError, SSLError) as error:
        reason = error.reason if isinstance(error, URLError) else error
        raise BrokenDownload(str(reason) or type(error).__name__) from error


def _retry_after(value: str | None) -> float | None:
    """Return the seconds of a Retry-After header, which holds seconds or a date."""
    if value is None:
        return None
    if value.isdecimal():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def _store(response: HTTPResponse, part: Path, version: Path) -> None:
    """Write the body at its offset in ``part``; ``version`` identifies the file that ``part`` began with."""
    if response.status == 206:
        ranged = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers["Content-Range"] or "")
        start, total = (int(ranged[1]), int(ranged[2])) if ranged else (-1, None)
    else:
        start, total = 0, response.length
    identity = f"{total} {response.headers['ETag']}"
    if start and (start != _size(part) - 1 or version.read_text() != identity):
        part.unlink()
        raise BrokenDownload("the file on the server has changed")
    if not start:
        part.unlink(missing_ok=True)
    check_space(part.parent, (total or 0) * (1 + EXTRACTED_RATIO) - start)
    version.write_text(identity)
    with (
        open(part, "r+b" if start else "wb") as file,
        tqdm(desc=part.stem, total=total, initial=start, unit="B", unit_scale=True, unit_divisor=1024) as bar,
    ):
        file.seek(start)
        while chunk := response.read(CHUNK):
            file.write(chunk)
            bar.update(len(chunk))
        if total is not None and file.tell() != total:
            raise BrokenDownload(f"the connection was lost after {file.tell()} of {total} bytes")


def extract(archive: Path, images: Path) -> Extracted:
    """Extract the PNG files of a tar.gz archive, all or none, into one folder; existing files are kept.

    A damaged archive is removed.

    Raises:
        DownloadError: the archive is damaged or has no PNG files, or the disk is full.
        OSError: a file cannot be written.
    """
    check_space(archive.parent, archive.stat().st_size * EXTRACTED_RATIO)
    staging = archive.with_name(f".{archive.name}.partial")
    shutil.rmtree(staging, ignore_errors=True)  # left by a killed run
    staging.mkdir()
    try:
        existing, skipped = _unpack(archive, staging, images)
        images.mkdir(exist_ok=True)
        whole = list(staging.iterdir())
        for path in whole:
            os.replace(path, images / path.name)
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        size = archive.stat().st_size
        archive.unlink()
        raise DownloadError(
            f"'{archive}' ({size} bytes) is damaged: {error}; it has been removed, the next run downloads it again"
        ) from error
    finally:
        shutil.rmtree(staging)
    if not whole and not existing:
        raise DownloadError(f"'{archive}' has no PNG files")
    return Extracted(len(whole), existing, skipped)


def _unpack(archive: Path, staging: Path, images: Path) -> tuple[int, list[str]]:
    """Write the PNG files missing from ``images`` to ``staging``; return (number existing, names skipped)."""
    existing, skipped = 0, []
    with gzip.open(archive) as file, tarfile.open(fileobj=file, mode="r|") as tar:
        for member in tqdm(tar, archive.name, unit="file"):
            path = PurePosixPath(member.name)
            safe = member.isreg() and not path.is_absolute() and ".." not in path.parts
            if not safe or path.suffix.lower() != ".png" or path.name.startswith("."):
                skipped += [] if member.isdir() else [member.name]
            elif (images / path.name).exists() or (staging / path.name).exists():
                existing += 1
            elif source := tar.extractfile(member):
                with source, open(staging / path.name, "wb") as target:
                    shutil.copyfileobj(source, target)
        while file.read(CHUNK):  # the archive's checksum is at its end
            pass
    return existing, skipped


def obtain(name: str, url: str, out: Path, *, keep: bool = False) -> None:
    """Download and extract an archive, unless an earlier run has.

    Raises:
        DownloadError, OSError: see ``download`` and ``extract``.
    """
    archive, marker = out / name, out / f"{name}.done"
    if marker.exists():
        print(f"{name}: already done ('{marker}' exists)")
        return
    out.mkdir(parents=True, exist_ok=True)
    if not archive.exists():
        download(url, archive)
    extracted = extract(archive, out / "images")
    marker.touch()
    if not keep:
        archive.unlink()
    print(f"{name}: {extracted.new} images extracted, {extracted.existing} already existed")
    if extracted.skipped:
        count, first = len(extracted.skipped), extracted.skipped[0]
        print(f"{name}: skipped {count} members that are not PNG files or not safe to extract, such as {first!r}")


def parse_batches(text: str) -> list[int]:
    """Parse numbers and ranges, such as ``1,4,7-9``."""
    last, numbers = len(ARCHIVES["nih"]), set()
    for item in text.split(","):
        match = re.fullmatch(r"([0-9]{1,2})(?:-([0-9]{1,2}))?", item)
        first, end = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not 1 <= first <= end <= last:
            raise argparse.ArgumentTypeError(f"must be within 1-{last}, such as 1 or 1-3 or 1,4,7-9, got '{item}'")
        numbers |= set(range(first, end + 1))
    return sorted(numbers)


@one_line_errors(DownloadError, interrupted="interrupted; run the same command to continue")
def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__doc__, "python -m train.download")
    parser.add_argument("dataset", choices=tuple(ARCHIVES), help="NIH ChestX-ray14 or the Indiana collection of Open-i")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="images go to DIR/images/")
    parser.add_argument(
        "--batches", type=parse_batches, metavar="1-12", help="NIH archives to download, such as 1,4,7-9 (default: all)"
    )
    parser.add_argument("--keep", action="store_true", help="keep archives after extracting them")
    args = parser.parse_args(argv)
    archives = list(ARCHIVES[args.dataset].items())
    if args.batches:
        if args.dataset != "nih":
            parser.error(f"argument --batches: only for nih; {args.dataset} is one archive")
        archives = [archives[batch - 1] for batch in args.batches]
    try:
        for name, url in archives:
            obtain(name, url, args.out, keep=args.keep)
    except OSError as error:
        raise DownloadError(f"'{error.filename or args.out}': {error.strerror or error}") from error


if __name__ == "__main__":
    sys.exit(main())
