"""Read damaged files: whatever a decoder makes of them, the reader answers with an image or one line, and lives on.

python -m tests.fuzz_files
python -m tests.fuzz_files --count 200 --formats dicom tiff

Every file is a small valid one with bytes changed, cut out, repeated, or its end missing. It is read as by the command,
in a process of its own; where a decoder crashes there, the file is counted as crashed, and the next one is read.
"""

from __future__ import annotations

import io
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray
from tqdm import tqdm

from client.formats.source import FileError
from client.reader import Reader
from pipeline.command_line import make_parser
from tests.dicom_files import encode, lut, make_dataset, rle, to_bytes

Pixels = NDArray[Any]

SLOW = 30
"""Seconds after which a file counts as a hang."""
EXTREMES = (0, 1, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)

RAMP = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (48, 1))
DEEP = RAMP.astype(np.uint16) * 16 + np.arange(48, dtype=np.uint16)[:, None]


def _dicom(pixels: Pixels, bits: int, syntax: str, frame: bytes | bytearray | None = None, **tags: object) -> bytes:
    dataset = make_dataset(pixels, bits, syntax)
    return to_bytes(dataset if frame is None else encode(dataset, frame), **tags)


def _tiff(pixels: Pixels, **options: object) -> bytes:
    out = io.BytesIO()
    tifffile.imwrite(out, pixels, **options)
    return out.getvalue()


def _npy(pixels: Pixels) -> bytes:
    out = io.BytesIO()
    np.save(out, pixels)
    return out.getvalue()


def _opencv(suffix: str, pixels: Pixels, *options: int) -> bytes:
    return cv2.imencode(suffix, pixels, options)[1].tobytes()


def seeds(kind: str) -> list[bytes]:
    """Small valid files of a format, by as many ways to write it as matter to decoders."""
    colour = np.stack([RAMP, RAMP[:, ::-1], RAMP], axis=2)
    base = "1.2.840.10008.1.2"
    if kind == "png":
        return [_opencv(".png", p) for p in (RAMP, DEEP, colour, np.dstack([colour, RAMP]))]
    if kind == "jpeg":
        return [_opencv(".jpg", RAMP), _opencv(".jpg", colour), _opencv(".jpg", RAMP, cv2.IMWRITE_JPEG_PROGRESSIVE, 1)]
    if kind == "npy":
        return [_npy(p) for p in (RAMP, DEEP, colour, DEEP.astype(np.float32), RAMP.astype(">i4"))]
    if kind == "tiff":
        gray: dict[str, object] = {"photometric": "minisblack"}
        return [
            _tiff(DEEP, **gray),
            _tiff(DEEP, byteorder=">", bigtiff=True, photometric="miniswhite"),
            _tiff(DEEP, compression="lzw", predictor=True, rowsperstrip=7, **gray),
            _tiff(DEEP.astype(np.float32), compression="zlib", tile=(16, 16), **gray),
            _tiff(RAMP, compression="packbits", **gray),
            _tiff(RAMP, compression="jpeg", **gray),
            _tiff(np.stack([RAMP, RAMP]), **gray),
            _tiff(colour, photometric="rgb", planarconfig="contig"),
            _tiff(RAMP // 16, photometric="palette", colormap=np.tile(np.arange(256, dtype=np.uint16) * 257, (3, 1))),
        ]
    deep_j2k = imagecodecs.jpeg2k_encode(DEEP, bitspersample=12, reversible=True, codecformat="J2K")
    return [
        _dicom(DEEP, 12, f"{base}.1", WindowCenter="2000", WindowWidth="3000", RescaleSlope="-1"),
        _dicom(DEEP, 12, base, VOILUTSequence=[lut(0, np.arange(4096), 16)], PixelPaddingValue=0),
        _dicom(RAMP, 8, f"{base}.1.99"),
        _dicom(RAMP, 8, f"{base}.5", rle(RAMP.tobytes())),
        _dicom(RAMP, 8, f"{base}.4.50", _opencv(".jpg", RAMP)),
        _dicom(DEEP, 12, f"{base}.4.51", imagecodecs.jpeg8_encode(DEEP, bitspersample=12)),
        _dicom(DEEP, 16, f"{base}.4.70", imagecodecs.jpeg8_encode(DEEP, lossless=True, bitspersample=16)),
        _dicom(DEEP, 12, f"{base}.4.80", imagecodecs.jpegls_encode(DEEP)),
        _dicom(DEEP, 12, f"{base}.4.90", deep_j2k),
    ]


FORMATS = ("png", "jpeg", "npy", "tiff", "dicom")


def with_checksums(png: bytes) -> bytes:
    """A PNG with the checksums of its chunks made right, so that what is in them is looked at."""
    out, at = bytearray(png), 8
    while at + 12 <= len(png):
        end = at + 8 + int.from_bytes(png[at : at + 4], "big")
        out[end : end + 4] = zlib.crc32(png[at + 4 : end]).to_bytes(4, "big") if end + 4 <= len(png) else b""
        at = end + 4
    return bytes(out)


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """The file with one to four things wrong with it, in its head as often as anywhere."""
    out = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        at = int(rng.integers(min(len(out), 600) if rng.random() < 0.5 else len(out)))
        length = int(rng.integers(1, 40))
        match rng.integers(6):
            case 0:
                out[at] = int(rng.integers(256))
            case 1:
                out[at] ^= 1 << int(rng.integers(8))
            case 2:
                size = int(rng.choice([1, 2, 4]))
                out[at : at + size] = (int(rng.choice(EXTREMES)) % 256**size).to_bytes(
                    size, "little" if rng.random() < 0.5 else "big"
                )
            case 3:
                del out[at : at + length]
            case 4:
                out[at:at] = out[at : at + length]
            case _:
                if rng.random() < 0.3 and at > 8:
                    del out[at:]
        if len(out) < 16:
            return bytes(out)
    if out.startswith(b"\x89PNG") and rng.random() < 0.8:
        return with_checksums(bytes(out))
    return bytes(out)


def files(kind: str, first: int, count: int) -> Iterator[bytes]:
    """Damaged files; number N of a format is always the same."""
    valid = seeds(kind)
    for number in range(first, first + count):
        yield damaged(valid[number % len(valid)], np.random.default_rng((FORMATS.index(kind), number)))


def outcome(reader: Reader, path: Path) -> str:
    """How the reader answers: "read", "refused", "crashed" (a decoder, in its process), or what is wrong with that."""
    try:
        image = reader.read(path).image
    except FileError as error:
        text = str(error)
        if not text.startswith(f"'{path}'") or "\n" in text or "was not read within" in text:
            return f"wrong: {text!r}"
        return "crashed" if "decoder crashed" in text else "refused"
    except Exception as error:
        return f"wrong: raised {type(error).__name__}"
    right = image.ndim == 2 and image.dtype == np.float32 and bool(np.isfinite(image).all())
    return "read" if right and image.min() >= 0 and image.max() <= 1 else "wrong: not an image in [0, 1]"


def read_all(kind: str, count: int) -> Counter[str]:
    """Read files 0 … count-1 of a format and count the outcomes."""
    with tempfile.TemporaryDirectory() as folder, Reader(limit=SLOW) as reader:
        path = Path(folder) / "file"
        counts: Counter[str] = Counter()
        for data in tqdm(files(kind, 0, count), desc=kind, total=count, unit="file", leave=False):
            path.write_bytes(data)
            counts[outcome(reader, path)] += 1
    return counts


def main(argv: list[str] | None = None) -> int:
    parser = make_parser(__doc__, "python -m tests.fuzz_files")
    parser.add_argument("--count", type=int, default=10_000, help="files per format (default: %(default)s)")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=FORMATS, help="default: all")
    args = parser.parse_args(argv)
    wrong = 0
    for kind in args.formats:
        counts = read_all(kind, args.count)
        wrong += args.count - counts["read"] - counts["refused"] - counts["crashed"]
        print(f"{kind}: {args.count} files: " + ", ".join(f"{n} {name}" for name, n in sorted(counts.items())))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
