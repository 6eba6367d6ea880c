"""Read damaged index, configuration, hash and plan files: each is read, or refused by one clear error.

python -m tests.fuzz_config
python -m tests.fuzz_config --count 500 --kinds index plan

Every file is a valid one with bytes changed, cut out, repeated, or its end missing, or with words put into it that such
files are made of.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from pipeline.command_line import make_parser
from pipeline.hashes import read_hashes
from pipeline.presets import BEST, PAPER
from pipeline.serving import ServeError
from pipeline.serving.checks import check_plan
from pipeline.triton_config import config_files, read_config
from tests.fuzz_files import damaged
from train.data import read_index

ONNX = b"a network"


def read_plan(path: Path) -> None:
    """Check a plan beside the JSON file ``path``, in a repository that has its network."""
    check_plan(path.parent, path.with_suffix(".plan"))


READERS: dict[str, Callable[[Path], object]] = {
    "index": read_index,
    "config": read_config,
    "hashes": read_hashes,
    "plan": read_plan,
}
"""Kind of file ⇒ what reads it."""

WORDS = {
    "index": (b'"', b",", b"\n", b"\r", b"\0", b"file", b"patient", b"\xef\xbb\xbf", b"\xff", b"x" * 140_000),
    "config": (b"{", b"}", b"[", b"]", b'"', b"name:", b"9" * 30, b"-1", b"[a.b]: 1", b"<", b"\\x", b"#", b"\xff"),
    "hashes": (b"\n", b"  ", b" *", b"\\", b"\0", b"0" * 64, b"../", b"\r\n", b"\xff"),
    "plan": (b"{", b"[" * 100_000, b'"', b"null", b"1e999", b"NaN", b"\\ud800", b"/", b"../", b"\\u0000", b"\xff"),
}
"""Kind ⇒ words that its files are made of, or that its reader could fall over."""


def seeds(kind: str) -> list[bytes]:
    """Valid files of a kind."""
    if kind == "index":
        return [
            b"file,patient\na.png,1\nb.png,2\n",
            'file,other,patient\r\n"a, b.png",x,"Röntgen ""1"""\r\nc.png,"two\nlines",3\r\n'.encode("utf-8-sig"),
        ]
    if kind == "config":
        return [text.encode() for preset in (BEST, PAPER) for text in config_files(preset).values()]
    if kind == "hashes":
        names = ("a/1/model.onnx", "b/1/model.onnx", "b/1/model_int8.onnx")
        return ["".join(f"{i:064x}{mode}{name}\n" for i, name in enumerate(names)).encode() for mode in ("  ", " *")]
    about = {"onnx": "network.onnx", "onnx_sha256": hashlib.sha256(ONNX).hexdigest(), "gpu": {"name": "H200"}}
    return [json.dumps(about, indent=indent).encode() for indent in (None, 2)]


def broken(kind: str, number: int) -> bytes:
    """Damaged file ``number`` of a kind, always the same."""
    rng, valid = np.random.default_rng((list(READERS).index(kind), number)), seeds(kind)
    data = valid[number % len(valid)]
    if rng.random() < 0.5:
        for _ in range(rng.integers(1, 4)):
            at, words = int(rng.integers(len(data) + 1)), WORDS[kind]
            data = data[:at] + words[rng.integers(len(words))] + data[at + int(rng.choice([0, 0, 1, 8])) :]
        return data
    return damaged(data, rng)


def outcome(kind: str, path: Path) -> str:
    """Return "read", "refused", or what is wrong with how the file at ``path`` is read."""
    try:
        READERS[kind](path)
    except (ValueError, ServeError) as error:
        text = str(error)
        clear = type(error) in (ValueError, ServeError) and str(path.with_suffix("")) in text and "\n" not in text
        return "refused" if clear and len(text) < 5000 else f"wrong: {type(error).__name__} {text[:200]!r}"
    except Exception as error:
        return f"wrong: raised {type(error).__name__} {str(error)[:200]!r}"
    return "read"


def outcomes(kind: str, count: int) -> Iterator[str]:
    """Yield the outcomes of files 0 … count-1 of a kind."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file.json"
        (path.parent / "network.onnx").write_bytes(ONNX)
        for number in tqdm(range(count), desc=kind, unit="file", leave=False, disable=None):
            path.write_bytes(broken(kind, number))
            yield outcome(kind, path)


def main(argv: list[str] | None = None) -> int:
    parser = make_parser(__doc__, "python -m tests.fuzz_config")
    parser.add_argument("--count", type=int, default=10_000, help="files per kind (default: %(default)s)")
    parser.add_argument("--kinds", nargs="+", choices=READERS, default=list(READERS), help="default: all")
    args = parser.parse_args(argv)
    wrong = 0
    for kind in args.kinds:
        counts = Counter(outcomes(kind, args.count))
        wrong += args.count - counts["read"] - counts["refused"]
        print(f"{kind}: {args.count} files: " + ", ".join(f"{n} {name}" for name, n in counts.most_common(20)))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
