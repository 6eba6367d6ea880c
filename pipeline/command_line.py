"""Commands: parsers whose help is the module's docstring, its summary, then its examples; errors in one line."""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable
from typing import ParamSpec

P = ParamSpec("P")


def make_parser(doc: str | None, prog: str | None = None, description: str | None = None) -> argparse.ArgumentParser:
    """Return a parser for the module with docstring ``doc``; ``description`` replaces its first line."""
    summary, _, *examples = (doc or "").strip().splitlines()
    return argparse.ArgumentParser(
        prog=prog,
        description=description or summary,
        epilog="examples:\n" + "\n".join(f"  {line}".rstrip() for line in examples),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def one_line_errors(
    *kinds: type[Exception], interrupted: str = "interrupted"
) -> Callable[[Callable[P, int | None]], Callable[P, int]]:
    """Decorate a command's ``main``, so that it always returns an exit status.

    Errors of these kinds are printed in one line, and 1 is returned; for Ctrl-C, ``interrupted`` and 130.
    """

    def decorate(main: Callable[P, int | None]) -> Callable[P, int]:
        @functools.wraps(main)
        def run(*args: P.args, **kwargs: P.kwargs) -> int:
            try:
                return main(*args, **kwargs) or 0
            except kinds as error:
                print(f"error: {error}", file=sys.stderr)
                return 1
            except KeyboardInterrupt:
                print(interrupted, file=sys.stderr)
                return 130

        return run

    return decorate


def count(text: str) -> int:
    """Parse a positive integer."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {number}")
    return number
