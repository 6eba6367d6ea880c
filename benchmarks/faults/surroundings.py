"""Faults of a server's surroundings: disks, shared memory, clock, network, model files."""

from __future__ import annotations

import contextlib
import datetime
import itertools
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.faults.load import IMAGE, Row, load
from benchmarks.faults.server import REPOSITORY, FaultError, Server, serving, wait_until
from client import Client, UpscaleError
from client.png import write_png
from pipeline import ROOT

CLOCK = Path(__file__).with_name("clock.c")
FILLED = 5.0
"""Seconds for which a disk stays full."""
VANISHED_LIMIT = 30.0
"""Maximum seconds in which the server must notice that a caller is gone from the network."""
NETWORK = "cxr-faults"
"""Name of the network namespace and, shortened, of its interfaces."""
ADDRESSES = ("10.213.0.1", "10.213.0.2")
"""Of the server and of the caller."""


def why_not(*commands: str, root: bool = True) -> str:
    """Return why a scenario cannot be run here; "" if it can."""
    missing = [command for command in commands if not (shutil.which(command) or Path(command).exists())]
    if missing:
        return f"not run: needs {missing[0]}"
    return "not run: needs root" if root and os.geteuid() != 0 else ""


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """Yield a file system of its own of so many bytes (``400k``)."""
    disk = folder / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", disk], check=True)
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


def fill(disk: Path) -> Path:
    """Write a file that takes all that is free."""
    ballast = disk / "ballast"
    with open(ballast, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    return ballast


def disk(folder: Path, seconds: float) -> Iterator[Row]:
    """Full disks: for the command's outputs, for the audit record, for a training's checkpoint."""
    if reason := why_not("mount"):
        yield Row("full disks", note=reason)
        return
    for name, scenario in (("outputs", outputs), ("audit", audit), ("checkpoint", checkpoint)):
        (folder / name).mkdir()
        yield scenario(folder / name, seconds)


def outputs(folder: Path, seconds: float) -> Row:  # noqa: ARG001
    """The command on a disk that gets full, then with more space."""
    images = folder / "images"
    images.mkdir()
    rng = np.random.default_rng(0)
    for i in range(40):
        write_png(images / f"{i:02}.png", rng.random((64, 64), dtype=np.float32))
    row = Row("disk full while the command writes 40 images, run again with space")
    with small_disk(folder, "400k") as disk, serving(folder) as one:

        def run(out: Path) -> subprocess.CompletedProcess[str]:
            words = [sys.executable, "client/upscale.py", str(images), "-o", str(out), "--url", one.url]
            return subprocess.run([*words, "--skip-existing"], cwd=ROOT, capture_output=True, text=True)

        run(folder / "expected")
        expected = {path.name: path.read_bytes() for path in (folder / "expected").iterdir()}
        full = run(disk)
        written = sum(expected[path.name] == path.read_bytes() for path in disk.iterdir())
        told = len(re.findall(r"^error: .* cannot be written: No space left on device$", full.stderr, re.MULTILINE))
        subprocess.run(["mount", "-o", "remount,size=40m", disk], check=True)
        again = run(disk)
        row.outcomes["right"] = sum(expected.get(path.name) == path.read_bytes() for path in disk.iterdir())
        row.outcomes["wrong or unfinished"] = len(list(disk.iterdir())) - row.outcomes["right"]
    row.note = f"{written} written, {told} errors, status {full.returncode}; then status {again.returncode}"
    row.good = +row.outcomes == {"right": 40} and written + told == 40 and (full.returncode, again.returncode) == (1, 0)
    return row


def audit(folder: Path, seconds: float) -> Row:
    """The audit record's disk gets full under load: results wait for their records."""
    row = Row(f"disk of the audit record full for {FILLED:g} s")
    with small_disk(folder, "4m") as disk, serving(folder, f"--audit={disk / 'audit'}") as one:

        def fault() -> None:
            ballast = fill(disk)
            time.sleep(FILLED)
            ballast.unlink()

        load(one, row, seconds, fault)
        records = [json.loads(line) for line in (disk / "audit").read_text().splitlines()]
        said = one.log.read_text().count("results are withheld")
    # one record more, of the image that all others are compared with
    missing = max(0, row.outcomes["right"] + 1 - len(records))
    row.note = f"{missing} records missing, {said} lines in the log"
    row.good = row.all_right and missing <= 0 and said > 0
    return row


def checkpoint(folder: Path, seconds: float) -> Row:  # noqa: ARG001
    """A training's checkpoint on a full disk keeps the one before."""
    from train import checkpoint as training

    row = Row("disk full while a training writes its checkpoint")
    with small_disk(folder, "1m") as disk:
        path = disk / "checkpoint.pt"
        training.save(path, {}, {"step": 1})
        ballast = fill(disk)
        try:
            training.save(path, {}, {"step": 2, "weights": bytes(500_000)})
        except OSError as error:
            row.note = str(error).removeprefix(f"cannot write '{path}': ")
        kept = training.load(path, {}) == {"step": 1, "key": {}}
        row.good = (
            "No space left" in row.note
            and kept
            and {entry.name for entry in disk.iterdir()} == {path.name, ballast.name}
        )
    return row


def shared_memory(folder: Path, seconds: float) -> Iterator[Row]:  # noqa: ARG001
    """A /dev/shm too small for large images, which no other request may feel."""
    if reason := why_not("unshare", "mount"):
        yield Row("/dev/shm of 24 MB", note=reason)
        return
    small = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o size=24m none /dev/shm && exec "$@"', "sh"]
    row = Row("/dev/shm of 24 MB, images of 512²")
    with serving(folder, prefix=small) as one, Client(one.url, wait=60) as client:
        for _ in range(4):
            try:
                client.upscale(np.zeros((512, 512), np.float32))
                row.outcomes["right"] += 1
            except UpscaleError as error:
                row.outcomes[f"refused: {type(error).__name__}"] += 1
            client.upscale(IMAGE)
            row.outcomes["right"] += 1
    yield row


def clock(folder: Path, seconds: float) -> Iterator[Row]:
    """The server's time of day goes back by an hour under load, then forward by two."""
    row = Row("server's clock set back by an hour, then forward by two")
    if reason := why_not("cc", root=False):
        row.note = reason
        yield row
        return
    library, shift, record = folder / "clock.so", folder / "shift", folder / "audit"
    subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", library, CLOCK], check=True)

    def move(hours: int) -> None:
        with open(shift, "r+b" if shift.exists() else "wb") as file:  # in place, as processes map it
            file.write(struct.pack("=q", hours * 3600))

    move(0)
    prefix = ["env", f"LD_PRELOAD={library}", f"CLOCK_SHIFT={shift}"]
    with serving(folder, f"--audit={record}", prefix=prefix) as one:

        def fault() -> None:
            for hours in (-1, 1):
                move(hours)
                time.sleep(seconds / 2)

        load(one, row, 2 * seconds, fault)
        times = [datetime.datetime.fromisoformat(json.loads(line)["time"]) for line in record.read_text().splitlines()]
        steps = sorted((later - before).total_seconds() / 3600 for before, later in itertools.pairwise(times))
        row.note = (
            f"restarts: {one.restarts() or 0}; steps of {steps[0]:.1f} and {steps[-1]:+.1f} hours in the audit record"
        )
        # Triton ends a process of a model at times whose wait ends hours too early: the supervisor restarts the server
        row.good = row.all_right and steps[0] < -0.9 and steps[-1] > 1.9
    yield row


@contextlib.contextmanager
def network() -> Iterator[list[str]]:
    """Connect a network namespace to this machine; yield the beginning of a command that runs in it."""
    ip = ["ip"]
    inside = ["ip", "netns", "exec", NETWORK]
    try:
        for command in (
            [*ip, "netns", "add", NETWORK],
            [*ip, "link", "add", "cxr-near", "type", "veth", "peer", "name", "cxr-far", "netns", NETWORK],
            [*ip, "addr", "add", f"{ADDRESSES[0]}/24", "dev", "cxr-near"],
            [*ip, "link", "set", "cxr-near", "up"],
            [*inside, *ip, "addr", "add", f"{ADDRESSES[1]}/24", "dev", "cxr-far"],
            [*inside, *ip, "link", "set", "cxr-far", "up"],
        ):
            subprocess.run(command, check=True, capture_output=True)
        yield inside
    except subprocess.CalledProcessError as error:
        raise FaultError(f"{' '.join(error.cmd)}: {error.stderr.decode().strip()}") from error
    finally:
        subprocess.run([*ip, "netns", "del", NETWORK], capture_output=True)
        subprocess.run([*ip, "link", "del", "cxr-near"], capture_output=True)


def half_open(folder: Path, seconds: float) -> Iterator[Row]:  # noqa: ARG001
    """A caller's network goes away in the middle of a request of minutes: no packet says so."""
    row = Row("a caller of minutes vanishes from the network")
    if reason := why_not("ip"):
        row.note = reason
        yield row
        return
    code = (
        "import sys, numpy as np; from client import Client; "
        "Client(sys.argv[1]).upscale(np.zeros((256, 256), np.float32), sampler='ddpm', samples=4)"
    )
    with network() as inside, serving(folder, host=ADDRESSES[0]) as one:
        caller = subprocess.Popen([*inside, sys.executable, "-c", code, one.url], cwd=ROOT)
        try:
            before = one.cpu_seconds()
            wait_until(lambda: one.cpu_seconds() > before + 1, 60)
            subprocess.run(["ip", "link", "set", "cxr-near", "down"], check=True)
            began = time.monotonic()
            with ThreadPoolExecutor(1) as pool:
                noticed = pool.submit(wait_until, lambda: "was cancelled" in one.log.read_text(), VANISHED_LIMIT)
                with Client(f"{ADDRESSES[0]}:{one.grpc}", wait=60) as client:
                    expected = client.upscale(IMAGE).image
                    while not noticed.done():
                        equal = np.array_equal(client.upscale(IMAGE).image, expected)
                        row.outcomes["right" if equal else "wrong"] += 1
            row.note = f"its work ends {noticed.result() and time.monotonic() - began:.1f} s later"
        finally:
            caller.kill()
            caller.wait()
    row.good = row.all_right
    yield row


def poll(folder: Path, seconds: float) -> Iterator[Row]:
    """Files of a model change under load while Triton polls the repository."""
    repository = folder / "models"
    shutil.copytree(REPOSITORY, repository)
    row = Row("files of superres_onnx and superres replaced three times each, loaded by polling")
    extra = ["--", "--model-control-mode=poll", "--repository-poll-secs=1"]

    def loads(one: Server) -> int:
        return one.log.read_text().count("successfully loaded")

    with serving(folder, *extra, repository=repository) as one:

        def loaded_since(count: int) -> bool:
            return loads(one) > count

        before = loads(one)

        def fault() -> None:
            for path in 3 * [repository / "superres_onnx" / "1" / "model.onnx", repository / "superres/1/model.py"]:
                copy = path.with_name("copy")
                shutil.copy(path, copy)
                copy.rename(path)
                wait_until(partial(loaded_since, loads(one)), 30)

        load(one, row, seconds, fault)
        row.note = f"{loads(one) - before} loads, {len(one.restarts())} restarts"
        row.good = row.all_right and loads(one) - before >= 6 and not one.restarts()
    yield row


SCENARIOS: dict[str, Callable[[Path, float], Iterator[Row]]] = {
    "disk": disk,
    "shared-memory": shared_memory,
    "clock": clock,
    "half-open": half_open,
    "poll": poll,
}
