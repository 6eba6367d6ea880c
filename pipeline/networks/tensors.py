"""Networks as safetensors files: written atomically, and loaded only into a network of the same shape."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from pipeline.atomic import atomic_write


def save_tensors(module: nn.Module, path: Path) -> None:
    """Write a module's tensors.

    Raises:
        OSError: the file cannot be written; an existing one is kept.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with atomic_write(path) as partial:
            save_file({name: value.contiguous() for name, value in module.state_dict().items()}, partial)
    except SafetensorError as error:
        raise OSError(f"cannot write '{path}': {error}") from error


def load_tensors(module: nn.Module, path: Path, description: str) -> None:
    """Load a module's tensors from a file.

    Raises:
        ValueError: the file is missing, damaged, or does not match the module, described by ``description``.
    """
    try:
        module.load_state_dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise ValueError(f"cannot read '{path}': {error}") from error
    except RuntimeError as error:
        raise ValueError(f"'{path}' does not hold {description}") from error
