"""Receive chest X-rays by DICOM, upscale them on a Triton server, and send the results to a PACS.

python -m client.node deploy/node.toml
python -m client.node /etc/cxr-superres/node.toml --check

What is answered with success is on disk first, and is sent once, even if the node is killed. SIGTERM ends it within
ten seconds; the next start goes on. docs/how-to/pacs.md has more.
"""

from __future__ import annotations

import logging
import os
import signal
import sqlite3
import sys
import time
import warnings
from pathlib import Path

from client.terminal import make_output_safe
from pipeline.command_line import make_parser

DRAIN = 8.0
"""Maximum seconds for images in progress to be finished; the rest is done after the next start."""
ENDING = (signal.SIGTERM, signal.SIGINT)
MISSING = "needs what the extra 'pacs' installs: pip install '.[pacs]'"


def main(argv: list[str] | None = None) -> int:
    make_output_safe()
    parser = make_parser(__doc__, "python -m client.node")
    parser.add_argument("config", type=Path, metavar="CONFIG", help="TOML file; deploy/node.toml explains every key")
    parser.add_argument("--check", action="store_true", help="check the configuration and exit")
    args = parser.parse_args(argv)
    try:
        from client.node import config as node_config
        from client.node.run import running
    except ModuleNotFoundError as error:
        if error.name not in ("pynetdicom", "tomli"):
            raise
        print(f"error: the node {MISSING}", file=sys.stderr)
        return 1
    from pydicom import config as pydicom_config

    from client.node.storage import InUse

    try:
        config = node_config.read_config(args.config)
    except node_config.ConfigError as error:
        print(f"error: {args.config}: {error}", file=sys.stderr)
        return 2
    if args.check:
        print(f"{args.config} is valid")
        return 0
    # messages of libraries may quote what an image says of its patient
    warnings.simplefilter("ignore")
    for library in ("pydicom", "pynetdicom"):
        logging.getLogger(library).setLevel(logging.CRITICAL + 1)
    for mode in ("reading_validation_mode", "writing_validation_mode"):
        setattr(pydicom_config.settings, mode, pydicom_config.IGNORE)
    logging.Formatter.converter = time.gmtime
    logging.basicConfig(format="%(asctime)sZ %(message)s", datefmt="%Y-%m-%dT%H:%M:%S", level=logging.INFO)
    # of all threads, so that whichever would get the signal, this one waits for it
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        with running(config) as drain:
            signal.sigwait(ENDING)
            drain(DRAIN)
            sys.stderr.flush()
            # threads that are still at work lose nothing: the node may be killed at any time
            os._exit(0)
    except (OSError, sqlite3.Error, InUse) as error:
        print(f"error: {getattr(error, 'strerror', None) or error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
