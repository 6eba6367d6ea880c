"""Training checkpoints: one file, replaced atomically, that can be split into parts for transfer.

python -m train.checkpoint split runs/tune/checkpoint.pt runs/parts/tune
python -m train.checkpoint join runs/parts/tune runs/tune/checkpoint.pt
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from pipeline.atomic import atomic_write
from pipeline.command_line import make_parser, one_line_errors

M = TypeVar("M", bound=nn.Module)

MAX_PART_BYTES = 15_000_000
"""Maximum size of a part in bytes."""
PARTS = "parts.json"
"""Index file of the parts: names, total size and SHA-256."""

Key = dict[str, Any]
"""Everything a run's result depends on; checkpoints with another key belong to another run."""


def files_digest(paths: Iterable[Path]) -> str:
    """Return a short hash of file names and sizes."""
    listing = "\n".join(f"{path.name} {path.stat().st_size}" for path in paths)
    return hashlib.sha256(listing.encode()).hexdigest()[:12]


class EMA(Generic[M]):
    """Exponential moving average of a module's parameters, with the decay ramped up over the first steps."""

    def __init__(self, module: M, decay: float) -> None:
        self.module: M = copy.deepcopy(module).requires_grad_(False).eval()
        self.decay = decay

    @torch.no_grad()
    def update(self, module: M, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.module.parameters()), list(module.parameters()), 1 - decay)


def save(path: Path, key: Key, state: dict[str, Any]) -> None:
    """Write ``state`` and ``key`` to ``path`` atomically.

    Raises:
        OSError: the file cannot be written; an existing one is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with atomic_write(path) as partial, open(partial, "wb") as file:
            torch.save({**state, "key": key}, file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:
        # torch's writer fails once more when it closes a file on a full disk, with a RuntimeError about itself
        cause = error.__context__ if isinstance(error.__context__, OSError) else error
        reason = getattr(cause, "strerror", None) or str(cause).splitlines()[0]
        kept = "; the previous one is kept" if path.exists() else ""
        raise OSError(f"cannot write '{path}': {reason}{kept}") from error


def load(path: Path, key: Key) -> dict[str, Any] | None:
    """Load the checkpoint at ``path``, or return None if there is none.

    Raises:
        ValueError: it is unreadable, or belongs to a run with other settings or inputs.
    """
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        saved: Key = state["key"]
    except Exception as error:  # torch raises whatever its zip and pickle readers raise
        raise ValueError(f"'{path}' is not a checkpoint: remove it or use another --run-dir") from error
    if saved != key:
        differing = [name for name in {**saved, **key} if saved.get(name) != key.get(name)]
        differences = ", ".join(f"{name} {saved.get(name)}, not {key.get(name)}" for name in differing)
        raise ValueError(f"'{path}' belongs to another run ({differences}): use another --run-dir, or remove it")
    return state


def split(path: Path, folder: Path, max_bytes: int = MAX_PART_BYTES) -> list[Path]:
    """Write a file in parts of at most ``max_bytes`` bytes into ``folder``, replacing existing parts.

    Raises:
        OSError: the file cannot be read, or the parts cannot be written.
    """
    whole = path.read_bytes()
    folder.mkdir(parents=True, exist_ok=True)
    for old in (folder / PARTS, *folder.glob("part-*")):
        old.unlink(missing_ok=True)
    parts = [folder / f"part-{i:03}" for i in range(-(-len(whole) // max_bytes))]
    for i, part in enumerate(parts):
        part.write_bytes(whole[i * max_bytes : (i + 1) * max_bytes])
    index = {"parts": [part.name for part in parts], "bytes": len(whole), "sha256": hashlib.sha256(whole).hexdigest()}
    (folder / PARTS).write_text(json.dumps(index, indent=2) + "\n")
    return parts


def join(folder: Path, path: Path) -> None:
    """Join the parts written by ``split``.

    Raises:
        ValueError: parts are missing or damaged; ``path`` is unchanged.
        OSError: the parts cannot be read, or the file cannot be written.
    """
    try:
        index = json.loads((folder / PARTS).read_text())
        whole = b"".join((folder / name).read_bytes() for name in index["parts"])
        expected = index["sha256"]
    except FileNotFoundError as error:
        raise ValueError(f"'{error.filename}' is missing: the parts in '{folder}' are incomplete") from None
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"'{folder / PARTS}' is damaged") from error
    if hashlib.sha256(whole).hexdigest() != expected:
        raise ValueError(f"the parts in '{folder}' are damaged: their SHA-256 differs from {PARTS}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as partial:
        partial.write_bytes(whole)


@one_line_errors(ValueError, OSError)
def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__doc__, "python -m train.checkpoint")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, help in (("split", "write a checkpoint in parts under 16 MB"), ("join", "join the parts")):
        command = commands.add_parser(name, help=help)
        command.add_argument("source", type=Path, help="the checkpoint" if name == "split" else "folder for the parts")
        command.add_argument("target", type=Path, help="folder for the parts" if name == "split" else "the checkpoint")
    args = parser.parse_args(argv)
    if args.command == "split":
        print(f"wrote {len(split(args.source, args.target))} parts into '{args.target}'")
    else:
        join(args.source, args.target)
        print(f"wrote '{args.target}'")


if __name__ == "__main__":
    sys.exit(main())
