"""Command lines from dataclasses: every field becomes an option, with the field's default and ``help``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable
from dataclasses import Field, asdict, field, fields
from pathlib import Path
from typing import Any, TypeVar

import torch

from pipeline.command_line import make_parser

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


def from_command_line(config: type[C], doc: str, argv: list[str] | None = None) -> C:
    """Parse ``argv`` into an instance of the dataclass ``config``; ``doc`` is a summary followed by examples."""
    parser = make_parser(doc)
    for f in fields(config):  # type: ignore[arg-type]
        _add(parser, f)
    return config(**vars(parser.parse_args(argv)))


def run_command(config: type[C], run: Callable[[C], None], doc: str, argv: list[str] | None) -> int:
    """Parse the command line, run, report errors in one line, and return the exit status."""
    parsed = from_command_line(config, doc, argv)
    try:
        run(parsed)
    except Paused as pause:
        print(pause)
    except torch.OutOfMemoryError:
        print(
            f"error: the GPU's memory is full: lower --batch (now {getattr(parsed, 'batch', '?')}), or raise "
            f"--accumulate (now {getattr(parsed, 'accumulate', '?')}), which splits the same batch into more parts",
            file=sys.stderr,
        )
        return 1
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; run the same command with --resume to continue from the last checkpoint", file=sys.stderr)
        return 130
    return 0


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
