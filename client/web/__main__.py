"""Serve a web page that upscales images on a Triton server.

python -m client.web
python -m client.web --start-server
python -m client.web --url gpu-server:8443 --ca ca.pem --token-file token
python -m client.web --host 0.0.0.0 --port 8080 --max-upload 16MB --rate 10
"""

from __future__ import annotations

import argparse
import os
import re
import socket
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from client.api import Client
from client.arguments import add_connection, check_access
from client.errors import ServerUnavailable, UpscaleError
from client.reader import Reader
from client.terminal import make_output_safe
from pipeline.command_line import make_parser
from pipeline.interrupts import Interrupted, install
from pipeline.serving.local_server import ServerError, running_server

READ_LIMIT = 30
"""Maximum seconds to read an uploaded file, during which others wait."""
KEEP = 600
"""Seconds after which uploads that nobody used are deleted."""
UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}


class WebError(Exception):
    """The page cannot be served; the message states the reason."""


def size(text: str) -> int:
    """Return the bytes in a text such as "64MB"."""
    found = re.fullmatch(r"(\d+) ?([KMG]B)?", text.strip(), re.IGNORECASE)
    if found is None or not int(found[1]):
        raise argparse.ArgumentTypeError(f"must be a size such as 64MB, got '{text}'")
    return int(found[1]) * UNITS[(found[2] or "").upper()]


def number(text: str) -> int:
    """Return a whole number of at least 1."""
    if not re.fullmatch(r"[1-9]\d*", text):
        raise argparse.ArgumentTypeError(f"must be a whole number of 1 or more, got '{text}'")
    return int(text)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = make_parser(__doc__, "python -m client.web")
    add_connection(parser, wait=5)
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0: all (default: %(default)s)")
    add("--port", type=int, default=7860, help="port to listen on; 0: any free one (default: %(default)s)")
    add(
        "--start-server",
        action="store_true",
        help="unless a server answers, start one on model_repository/ for as long as the page is served",
    )
    add("--max-upload", type=size, default="64MB", metavar="SIZE", help="largest file (default: %(default)s)")
    add(
        "--memory",
        type=size,
        default="2GB",
        metavar="SIZE",
        help="memory for images and results (default: %(default)s)",
    )
    add("--rate", type=number, default=30, metavar="N", help="images per minute and address (default: %(default)s)")
    add("--at-once", type=number, default=4, metavar="N", help="images upscaled at once (default: %(default)s)")
    add("--queue", type=number, default=16, metavar="N", help="images upscaled or waiting (default: %(default)s)")
    args = parser.parse_args(argv)
    if not 0 <= args.port <= 65535:
        parser.error(f"argument --port: must be 0 to 65535, got {args.port}")
    check_access(parser, args)
    return args


def sweep(folder: Path, stopped: threading.Event) -> None:
    """Delete files of unfinished or unused uploads until ``stopped``."""
    while not stopped.wait(KEEP / 10):
        for path in folder.rglob("*"):
            try:
                if path.is_file() and path.stat().st_mtime < time.time() - KEEP:
                    path.unlink()
            except FileNotFoundError:
                pass


def serve(args: argparse.Namespace) -> None:
    """Serve the page until a signal ends it."""
    with ExitStack() as stack:
        family = socket.AF_INET6 if ":" in args.host else socket.AF_INET
        listener = stack.enter_context(socket.create_server((args.host, args.port), family=family))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cxr-web-"))).resolve()
        uploads = folder / "uploads"
        uploads.mkdir()
        # Gradio's, and Python's own, which Gradio receives uploads in
        os.environ["GRADIO_TEMP_DIR"] = tempfile.tempdir = str(uploads)
        connection = {name: getattr(args, name) for name in ("protocol", "tls", "ca", "token", "wait", "timeout")}
        if args.start_server:
            args.url = answering(args.url, connection) or stack.enter_context(running_server(folder / "server.log"))
        reader = stack.enter_context(Reader(limit=READ_LIMIT))
        stopped = threading.Event()
        threading.Thread(target=sweep, args=(uploads, stopped), daemon=True).start()
        stack.callback(stopped.set)

        if find_spec("gradio") is None:
            raise WebError("Gradio is missing: run make web, or pip install '.[web]' and pip install --no-deps gradio")
        import uvicorn  # with Gradio, two seconds: not for --help

        from client.web.app import make_app
        from client.web.sessions import Rate, Sessions
        from client.web.site import Site

        connect = partial(Client, args.url, **connection)
        site = Site(connect, reader, Sessions(args.memory), uploads, Rate(args.rate), args.queue)
        app = make_app(site, args.at_once, args.max_upload)
        host = f"[{args.host}]" if ":" in args.host else args.host

        class Server(uvicorn.Server):
            async def startup(self, sockets: list[socket.socket] | None = None) -> None:
                await super().startup(sockets)
                print(f"page: http://{host}:{listener.getsockname()[1]}/", flush=True)

        Server(uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=2)).run(
            sockets=[listener]
        )


def answering(url: str | None, connection: dict[str, Any]) -> str | None:
    """Return the address of the server if one answers there."""
    try:
        with Client(url, **{**connection, "wait": 0}) as client:
            return client.url
    except ServerUnavailable:
        return None


def main(argv: list[str] | None = None) -> int:
    make_output_safe()
    args = parse(argv)
    install()
    try:
        serve(args)
    except (UpscaleError, ServerError, WebError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        problem = (error.strerror or str(error)).partition(" (while")[0]  # which repeats the address
        print(f"error: {args.host}:{args.port}: {problem}", file=sys.stderr)
        return 1
    except Interrupted as error:
        return 128 + int(error.args[0])
    return 0


if __name__ == "__main__":
    sys.exit(main())
