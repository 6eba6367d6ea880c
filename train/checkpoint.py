"""Checkpoints of a running training: one file, replaced atomically, that holds all a resumed run needs."""

from __future__ import annotations

import copy
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)

Key = dict[str, Any]
"""What a run's result depends on: a checkpoint of another key is of another run."""


def files_digest(paths: Iterable[Path]) -> str:
    """A short hash of files' names and sizes."""
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
    """Write ``state`` under ``key`` so that ``path`` is always either the old or the new checkpoint, whole.

    Raises:
        OSError: it cannot be written; an older one is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    try:
        with open(partial, "wb") as file:
            torch.save({**state, "key": key}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:  # torch's writer turns a full disk into a RuntimeError
        partial.unlink(missing_ok=True)
        kept = "; the one before is kept" if path.exists() else ""
        raise OSError(f"cannot write '{path}': {str(error).splitlines()[0]}{kept}") from error


def load(path: Path, key: Key) -> dict[str, Any] | None:
    """The checkpoint at ``path``, or None where there is none.

    Raises:
        ValueError: it is unreadable, or of a run with other settings or inputs.
    """
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        saved: Key = state["key"]
    except Exception as error:  # torch raises whatever its zip and pickle readers do
        raise ValueError(f"'{path}' is no checkpoint: remove it or give another --run-dir") from error
    if saved != key:
        differing = [name for name in {**saved, **key} if saved.get(name) != key.get(name)]
        differences = ", ".join(f"{name} {saved.get(name)}, not {key.get(name)}" for name in differing)
        raise ValueError(f"'{path}' is of another run ({differences}): give another --run-dir, or remove it")
    return state
