"""Argument parsers whose help is the module's docstring: its summary, then its examples."""

from __future__ import annotations

import argparse


def make_parser(doc: str | None, prog: str | None = None, description: str | None = None) -> argparse.ArgumentParser:
    """Return a parser for the module with docstring ``doc``; ``description`` replaces its first line."""
    summary, _, *examples = (doc or "").strip().splitlines()
    return argparse.ArgumentParser(
        prog=prog,
        description=description or summary,
        epilog="examples:\n" + "\n".join(f"  {line}".rstrip() for line in examples),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
