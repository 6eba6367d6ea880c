"""Checkpoints of a running training: one file, replaced atomically, that holds all a resumed run needs."""

from __future__ import annotations

import copy
import hashlib
import os
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


def state_digest(module: nn.Module) -> str:
    """A short hash of a module's weights."""
    digest = hashlib.sha256()
    for value in module.state_dict().values():
        digest.update(value.contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()[:12]


class EMA(Generic[M]):
    """Exponential moving average of a module's parameters, with the decay ramped up over the first steps."""

    def __init__(self, module: M, decay: float) -> None:
        self.module: M = copy.deepcopy(module).requires_grad_(False).eval()
        self.decay = decay

    @torch.no_grad()
    def update(self, module: M, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.module.parameters()), list(module.parameters()), 1 - decay)


def save(path: Path, key: str, state: dict[str, Any]) -> None:
    """Write ``state`` under ``key`` so that ``path`` is always either the old or the new checkpoint, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with open(partial, "wb") as file:
        torch.save({**state, "key": key}, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def load(path: Path, key: str) -> dict[str, Any] | None:
    """The checkpoint at ``path``, or None where there is none.

    Raises:
        ValueError: it was saved under another key, by a run with other settings or inputs.
    """
    if not path.exists():
        return None
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    if state["key"] != key:
        raise ValueError(f"'{path}' is of another run ({state['key']}, not {key}): remove it or give another --run")
    return state
