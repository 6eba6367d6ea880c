"""Check a running server with a real request: upscale a test image over gRPC.

python -m pipeline.serving.health
python -m pipeline.serving.health --port 9001

For the health check of a container: exit 0 if the image is upscaled, else 1 and one line.
"""

from __future__ import annotations

import sys

from pipeline.command_line import make_parser
from pipeline.presets import DEFAULT
from pipeline.serving.supervisor import NotReady, upscale_one


def main(argv: list[str] | None = None) -> int:
    parser = make_parser(__doc__, "python -m pipeline.serving.health")
    parser.add_argument("--host", default="127.0.0.1", help="default: %(default)s")
    parser.add_argument("--port", type=int, default=8001, help="gRPC port (default: %(default)s)")
    args = parser.parse_args(argv)
    try:
        # the test image is the same for every preset
        seconds = upscale_one((args.host, args.port), DEFAULT)
    except NotReady as error:
        print(f"error: the server at {args.host}:{args.port} is not ready: {error}", file=sys.stderr)
        return 1
    print(f"ready (an image took {seconds:.2f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
