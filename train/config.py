"""Command line ⇐ dataclass: every field is an option, its default the field's, its help the field's ``help``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import MISSING, Field, asdict, field, fields
from pathlib import Path
from typing import Any, TypeVar

C = TypeVar("C")


def option(default: Any, help: str) -> Any:
    """A dataclass field with a help text."""
    return field(default=default, metadata={"help": help})


def _add(parser: argparse.ArgumentParser, f: Field[Any]) -> None:
    flag = "--" + f.name.replace("_", "-")
    if isinstance(f.default, bool):
        parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=f.default, help=f.metadata["help"])
    else:
        kind = type(f.default) if f.default is not MISSING else Path
        parser.add_argument(flag, type=kind, default=f.default, help=f.metadata["help"] + " (default: %(default)s)")


def from_command_line(config: type[C], doc: str, argv: list[str] | None = None) -> C:
    """Parse ``argv`` into an instance of the dataclass ``config``; ``doc`` is a summary, and then examples."""
    summary, _, examples = doc.partition("\n")
    parser = argparse.ArgumentParser(
        description=summary,
        epilog="examples:\n  " + "\n  ".join(examples.split("\n")).strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for f in fields(config):  # type: ignore[arg-type]
        _add(parser, f)
    return config(**vars(parser.parse_args(argv)))


def run_command(config: type[C], run: Callable[[C], None], doc: str, argv: list[str] | None) -> int:
    """A command: parse, run, and say in one line what was wrong; returns the exit status."""
    parsed = from_command_line(config, doc, argv)
    try:
        run(parsed)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command continues from the last checkpoint", file=sys.stderr)
        return 130
    return 0


def settings(config: Any) -> dict[str, Any]:
    """The fields that decide the result of a run: all but the folders."""
    return {name: value for name, value in asdict(config).items() if not isinstance(value, Path)}


def settings_key(config: Any) -> str:
    """``settings`` in one line."""
    return " ".join(f"{name}={value}" for name, value in settings(config).items())
