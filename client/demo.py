"""The demonstration of `make demo`: a real radiograph, a real server, one labelled picture."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from pydicom.data import get_testdata_file

from client import Client, ServerUnavailable, UpscaleError
from pipeline.files import FileError, read_image, write_png
from pipeline.images import crop_square, downscale, from_integers, resize_cubic, to_integers, upsample
from pipeline.serve import ROOT
from pipeline.spec import PAPER

RADIOGRAPH = "RG1_UNCR.dcm"
START_LIMIT = 120


class DemoError(Exception):
    """The demonstration cannot go on; the message says why."""


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in sockets]


@contextlib.contextmanager
def running_server(log: Path, repository: Path = ROOT / "model_repository") -> Iterator[str]:
    """A server on a repository, ready; yields its gRPC address, and stops it whatever happens.

    Raises:
        DemoError: it does not start.
    """
    http, grpc, metrics = free_ports(3)
    ports = [f"--http-port={http}", f"--grpc-port={grpc}", f"--metrics-port={metrics}"]
    with open(log, "w") as file:
        # a session of its own, so that Ctrl-C reaches this process alone, which then stops the server in order
        server = subprocess.Popen(
            [sys.executable, "-m", "pipeline.serve", f"--model-repository={repository}", *ports],
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
        try:
            deadline = time.monotonic() + START_LIMIT
            while True:
                if server.poll() is not None:
                    raise DemoError(f"the server stopped with status {server.returncode}:\n{last_lines(log)}")
                try:
                    Client(f"localhost:{grpc}", wait=1).close()
                    break
                except ServerUnavailable as error:
                    if time.monotonic() > deadline:
                        raise DemoError(f"{error}; see '{log}'") from error
            yield f"localhost:{grpc}"
        finally:
            stop(server)


def stop(server: subprocess.Popen[bytes]) -> None:
    """End the server and every process it started, at once where another interruption comes meanwhile."""
    server.terminate()
    try:
        server.wait(40)
    except subprocess.TimeoutExpired:
        pass  # killed below
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def last_lines(path: Path, count: int = 5) -> str:
    return "\n".join(path.read_text().strip().splitlines()[-count:])


def make_inputs(out: Path) -> None:
    """Write hr.png (256²), lr.png (64²) and bicubic.png by the paper's protocol."""
    path = get_testdata_file(RADIOGRAPH)
    if path is None:
        raise DemoError(f"the package pydicom-data holds no {RADIOGRAPH}: pip install pydicom-data")
    source = read_image(Path(path))
    data = PAPER.data
    original = resize_cubic(crop_square(to_integers(source.image, 8)), data.original_size, data.original_size)
    hr = resize_cubic(original, data.hr_size, data.hr_size)
    lr = downscale(hr)
    for name, image in (("hr", hr), ("lr", lr)):
        write_png(out / f"{name}.png", from_integers(image))
    write_png(out / "bicubic.png", upsample(from_integers(lr)))


@contextlib.contextmanager
def timed(what: str) -> Iterator[None]:
    """Print how long the block took, and what it did."""
    began = time.monotonic()
    yield
    print(f"{time.monotonic() - began:6.1f} s  {what}", flush=True)


def demo(out: Path) -> None:
    """Run the demonstration into ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    with timed(f"{RADIOGRAPH} of pydicom-data → {out / 'hr.png'}, {out / 'lr.png'}, {out / 'bicubic.png'}"):
        make_inputs(out)
    with contextlib.ExitStack() as stack:
        with timed(f"server started and ready (log: {out / 'server.log'})"):
            url = stack.enter_context(running_server(out / "server.log"))
        command = [
            *("client/upscale.py", str(out / "lr.png"), "-o", str(out / "upscaled.png")),
            *("--url", url, "--compare", str(out / "hr.png"), "--uncertainty", str(out / "uncertainty.png"), "--force"),
        ]
        with timed("python " + " ".join(command)):
            result = subprocess.run([sys.executable, *command])
        if result.returncode:
            raise DemoError(f"client/upscale.py failed with status {result.returncode}")
        with timed("server stopped"):
            stack.close()
    print(f"\nLook at {out / 'upscaled_compare.png'}, and at {out / 'uncertainty.png'} for where it was guessed")
    print("(beside them: lr.png, bicubic.png, upscaled.png, hr.png)")
    print("Detail in the upscaled image is generated: it is not for diagnosis.")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m client.demo", description=__doc__)
    parser.add_argument(
        "out", nargs="?", type=Path, default=Path("demo"), help="folder to write (default: %(default)s/)"
    )
    out = parser.parse_args(argv).out
    for number in (signal.SIGTERM, signal.SIGHUP):  # these end the server too, by way of the context managers
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    os.chdir(ROOT)
    try:
        demo(out)
    except (DemoError, FileError, UpscaleError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the server is stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
