"""The server that a benchmark measures: a running one, or one started for it."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pipeline import ROOT
from pipeline.serving.local_server import running_server

REPOSITORY = ROOT / "model_repository"


def add_server(parser: argparse.ArgumentParser) -> None:
    """Add the options for ``server_at``."""
    parser.add_argument("--url", help="gRPC address of a running server (default: start one)")
    parser.add_argument("--model-repository", type=Path, default=REPOSITORY, help="default: %(default)s")


@contextmanager
def server_at(
    url: str | None,
    repository: Path = REPOSITORY,
    flags: Sequence[str] = (),
    http: int | None = None,
    supervised: bool = False,
) -> Iterator[str]:
    """Yield the gRPC address of the running server, or of one started for the duration of the block.

    Raises:
        ServerError: the server does not start.
    """
    if url is not None:
        yield url
        return
    with tempfile.TemporaryDirectory() as folder:
        with running_server(Path(folder) / "log", repository, flags, http, supervised=supervised) as own:
            yield own
