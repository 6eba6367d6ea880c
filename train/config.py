"""Command line ⇐ dataclass: every field is an option, its default the field's, its help the field's ``help``."""

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
    """A training stopped before its end, as it was told to; the message says how to go on."""


DEVICES = ("auto", "cpu", "cuda")


def option(default: Any, help: str, choices: Iterable[str] | None = None, affects_result: bool = True) -> Any:
    """A dataclass field with a help text.

    ``affects_result`` is False for what does not change a run's result: such a field is no part of ``settings``. Folders are
    none either.
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
    """Parse ``argv`` into an instance of the dataclass ``config``; ``doc`` is a summary, and then examples."""
    parser = make_parser(doc)
    for f in fields(config):  # type: ignore[arg-type]
        _add(parser, f)
    return config(**vars(parser.parse_args(argv)))


def run_command(config: type[C], run: Callable[[C], None], doc: str, argv: list[str] | None) -> int:
    """A command: parse, run, and say in one line what was wrong; returns the exit status."""
    parsed = from_command_line(config, doc, argv)
    try:
        run(parsed)
    except Paused as pause:
        print(pause)
    except torch.OutOfMemoryError:
        print(
            f"error: the GPU's memory is full: lower --batch (now {getattr(parsed, 'batch', '?')}), or raise "
            f"--accumulate (now {getattr(parsed, 'accumulate', '?')}), which computes the same batch in more parts",
            file=sys.stderr,
        )
        return 1
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command with --resume continues from the last checkpoint", file=sys.stderr)
        return 130
    return 0


def choose_device(name: str) -> str:
    """ "cuda" or "cpu" for one of ``DEVICES``.

    Raises:
        ValueError: a GPU is wanted where there is none.
    """
    cuda = torch.cuda.is_available()
    if name == "cuda" and not cuda:
        raise ValueError("--device cuda: PyTorch finds no GPU here; allowed are auto and cpu")
    return "cuda" if cuda and name != "cpu" else "cpu"


def settings(config: Any) -> dict[str, Any]:
    """The fields that decide the result of a run."""
    decisive = {f.name for f in fields(config) if f.metadata["affects_result"]}
    return {
        name: value for name, value in asdict(config).items() if name in decisive and not isinstance(value, Path | None)
    }
