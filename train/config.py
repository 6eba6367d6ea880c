"""Command lines from dataclasses: every field becomes an option, with the field's default and ``help``."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from dataclasses import Field, asdict, field, fields
from pathlib import Path
from typing import Any, TypeVar

import torch

from pipeline.command_line import make_parser, one_line_errors

C = TypeVar("C")


class Paused(Exception):
    """Training stopped early on request; the message says how to continue."""


DEVICES = ("auto", "cpu", "cuda")


def option(default: Any, help: str, choices: Iterable[str] | None = None, affects_result: bool = True) -> Any:
    """Return a dataclass field with a help text.

    Fields with ``affects_result=False``, and folders, do not change a run's result and are not part of ``settings``.
    """
    return field(default=default, metadata={"help": help, "choices": choices, "affects_result": affects_result})


def _add(parser: argparse.ArgumentParser, f: Field[Any]) -> None:
    flag = "--" + f.name.replace("_", "-")
    help = f.metadata["help"]
    if isinstance(f.default, bool):
        parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=f.default, help=help)
    else:
        kind = Path if f.default is None else type(f.default)
        default = "" if f.default in (None, "") else " (default: %(default)s)"
        choices = f.metadata["choices"] and tuple(f.metadata["choices"])
        parser.add_argument(flag, type=kind, default=f.default, help=help + default, choices=choices)


@one_line_errors(
    *(ValueError, OSError, ImportError, FloatingPointError),
    interrupted="interrupted; run the same command with --resume to continue from the last checkpoint",
)
def run_command(config: type[C], run: Callable[[C], None], doc: str, argv: list[str] | None) -> None:
    """Parse ``argv`` into the dataclass ``config``, and run; ``doc`` is a summary followed by examples."""
    parser = make_parser(doc)
    for f in fields(config):  # type: ignore[arg-type]
        _add(parser, f)
    parsed = config(**vars(parser.parse_args(argv)))
    try:
        run(parsed)
    except Paused as pause:
        print(pause)
    except torch.OutOfMemoryError as error:
        raise ValueError(
            f"the GPU's memory is full: lower --batch (now {getattr(parsed, 'batch', '?')}), or raise "
            f"--accumulate (now {getattr(parsed, 'accumulate', '?')}), which splits the same batch into more parts"
        ) from error


def choose_device(name: str) -> str:
    """Return "cuda" or "cpu" for one of ``DEVICES``.

    Raises:
        ValueError: "cuda" is requested without a GPU.
    """
    cuda = torch.cuda.is_available()
    if name == "cuda" and not cuda:
        raise ValueError("--device must be auto or cpu, got cuda: PyTorch finds no GPU")
    return "cuda" if cuda and name != "cpu" else "cpu"


def settings(config: Any) -> dict[str, Any]:
    """Return the fields that affect the result of a run."""
    names = {f.name for f in fields(config) if f.metadata["affects_result"]}
    return {
        name: value for name, value in asdict(config).items() if name in names and not isinstance(value, Path | None)
    }
