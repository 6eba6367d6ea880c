"""Send radiographs through the DICOM node to Orthanc while its parts are killed, and count what arrives.

python -m benchmarks.node
python -m benchmarks.node --images 40 --kills 2 --restarts 1

storescu → node → Triton → Orthanc. The node is killed (SIGKILL) while it works, Triton is killed and started again,
and Orthanc is down from 40 % to 70 % of the images. Like a modality, the sender sends an image again until it is
answered. Some images are ones that the node must refuse, some are sent twice. The exit status is 1 if an accepted
image did not arrive exactly once, or a refused one is not named in the log. The last line is JSON. Requires Debian's
packages orthanc and dcmtk.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pydicom import Dataset
from pydicom.uid import generate_uid

from benchmarks.mixture import dicom
from benchmarks.orthanc import ORTHANC, Orthanc
from pipeline import ROOT
from pipeline.command_line import make_parser, one_line_errors
from pipeline.serving.local_server import free_ports, stop

AE_TITLE, PACS = "SUPERRES", "ORTHANC"
LIMIT = 300.0
"""Maximum seconds for a program to start, for an image to be answered, and for the queue to become empty."""
DUPLICATES, BAD = 10, 20
"""One in so many images is sent twice, and one in so many is one that must be refused."""
RECEIVED = re.compile(r"Received Store Response \((.*)\)")
OUTAGE = (0.4, 0.7)
"""Share of the images at which Orthanc is stopped and started again."""


def wait_for(state: Callable[[], object], what: str, limit: float = LIMIT) -> None:
    """Return once ``state`` holds. Raises RuntimeError after a limit in seconds."""
    deadline = time.monotonic() + limit
    while not state():
        if time.monotonic() > deadline:
            raise RuntimeError(f"{what}: not within {limit:g} s")
        time.sleep(0.02)


def radiograph(number: int, **tags: object) -> Dataset:
    """A chest radiograph of 64×64 pixels, each number's another one."""
    pixels = np.random.default_rng(number).normal(0, 40, (8, 8)).cumsum(0).cumsum(1)
    pixels = np.kron(pixels - pixels.min(), np.ones((8, 8))).clip(0, 4095).astype("u2")
    dataset = dicom(pixels, bits=12)
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = generate_uid(), generate_uid()
    dataset.PatientName, dataset.PatientID, dataset.Modality = f"Testperson^{number}", f"{number}", "CR"
    dataset.BodyPartExamined, dataset.PixelSpacing = "CHEST", [0.56, 0.56]
    for name, value in tags.items():
        setattr(dataset, name, value)
    return dataset


@dataclass
class Node:
    """A node on this machine, which may be killed and started again."""

    folder: Path
    server: str
    destination: Orthanc
    dicom: int = 0
    """Its port for DICOM; 0: any."""
    http: int = 0
    process: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        dicom, self.http = free_ports(2)
        self.dicom = self.dicom or dicom
        (self.folder / "node.toml").write_text(
            f'[listen]\nae_title = "{AE_TITLE}"\nfolder = "{self.folder / "node"}"\nport = {self.dicom}\n'
            f'[server]\nurl = "{self.server}"\n'
            f'[destination]\nae_title = "{PACS}"\nhost = "127.0.0.1"\nport = {self.destination.dicom}\n'
            f"[retry]\nfirst = 0.2\nlongest = 2\n[options]\nsteps = 2\n[status]\nport = {self.http}\n"
        )

    @property
    def log(self) -> Path:
        return self.folder / "node.log"

    def start(self) -> None:
        with open(self.log, "ab") as file:
            command = [sys.executable, "-m", "client.node", str(self.folder / "node.toml")]
            self.process = subprocess.Popen(command, stdout=file, stderr=file, cwd=ROOT)
        process = self.process

        def ready() -> bool:
            if process.poll() is not None:
                raise RuntimeError(f"the node does not start:\n{self.log.read_text()[-2000:]}")
            return self.get("/healthz") is not None

        wait_for(ready, "the node's start")

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def get(self, page: str) -> str | None:
        """Return a page of its status; None if it does not answer."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.http}{page}", timeout=10) as answer:
                return str(answer.read().decode())
        except OSError:
            return None

    def waiting(self) -> int:
        """Return the number of images that are neither sent nor given up; 1 if that is unknown."""
        page = self.get("/queue")
        counts = {"received": 1} if page is None else json.loads(page)["images"]
        return int(counts.get("received", 0) + counts.get("upscaled", 0))

    def send(self, path: Path) -> str | None:
        """Send a file by storescu; return the status that it tells, None if it got none."""
        command = ["storescu", "-v", "-R", "-to", "10", "-aec", AE_TITLE, "127.0.0.1", str(self.dicom), str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        found = RECEIVED.findall(done.stdout + done.stderr)
        return found[-1] if found else None


@contextmanager
def running_node(folder: Path, server: str, orthanc: Orthanc, dicom: int = 0) -> Iterator[Node]:
    """Run a node for the duration of the block."""
    node = Node(folder, server, orthanc, dicom)
    try:
        node.start()
        yield node
    finally:
        if node.process is not None:
            node.process.terminate()
            node.process.wait(30)


class Triton:
    """A server that may be killed and started again at the same ports."""

    def __init__(self, folder: Path) -> None:
        self.log, self.ports = folder / "server.log", free_ports(3)
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"127.0.0.1:{self.ports[1]}"

    def start(self) -> None:
        http, grpc, metrics = self.ports
        command = [sys.executable, "-m", "pipeline.serve", "--no-check", "--open-administration"]
        command += [f"--http-port={http}", f"--grpc-port={grpc}", f"--metrics-port={metrics}"]
        with open(self.log, "ab") as file:
            self.process = subprocess.Popen(command, stdout=file, stderr=file, cwd=ROOT, start_new_session=True)

    def kill(self) -> None:
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        if self.process is not None:
            stop(self.process)


@dataclass
class Outcome:
    """What happened to the images, by SOP Instance UID."""

    accepted: set[str] = field(default_factory=set)
    refused: dict[str, str] = field(default_factory=dict)
    arrived: Counter[str] = field(default_factory=Counter)
    unnamed: set[str] = field(default_factory=set)
    attempts: int = 0
    duplicates: int = 0
    seconds: float = 0.0

    @property
    def lost(self) -> set[str]:
        return self.accepted - set(self.arrived)

    @property
    def doubled(self) -> set[str]:
        return {uid for uid, count in self.arrived.items() if count > 1}

    @property
    def uncalled(self) -> set[str]:
        """Results of images that were not accepted."""
        return set(self.arrived) - self.accepted

    @property
    def good(self) -> bool:
        return not (self.lost or self.doubled or self.uncalled or self.unnamed)


def upset(
    node: Node, orthanc: Orthanc, triton: Triton | None, images: int, kills: int, restarts: int
) -> dict[int, list[Callable[[], None]]]:
    """Return what to do before which image."""
    rng = random.Random(0)

    def kill_node() -> None:
        time.sleep(rng.uniform(0, 0.4))  # at any point of what it is at
        node.kill()
        node.start()

    plan: dict[int, list[Callable[[], None]]] = {}

    def at(share: float, do: Callable[[], None]) -> None:
        plan.setdefault(round(share * images), []).append(do)

    for number in range(kills):
        at((number + 0.5) / kills, kill_node)
    for number in range(restarts if triton is not None else 0):
        assert triton is not None
        at((number + 0.7) / restarts, triton.kill)
        at((number + 0.8) / restarts, triton.start)
    at(OUTAGE[0], orthanc.stop)
    at(OUTAGE[1], orthanc.start)
    return plan


def do_all(changes: Sequence[Callable[[], None]]) -> None:
    for change in changes:
        change()


def send_until_answered(node: Node, path: Path, uid: str, outcome: Outcome, upsetting: Sequence[Future[None]]) -> None:
    """Send an image, again and again if need be; raise the error of a part that does not start again."""
    deadline = time.monotonic() + LIMIT
    while (status := node.send(path)) is None:
        outcome.attempts += 1
        for future in (future for future in upsetting if future.done()):
            future.result()
        if time.monotonic() > deadline:
            raise RuntimeError(f"no answer to {uid}")
        time.sleep(0.05)
    outcome.attempts += 1
    if status == "Success":
        outcome.accepted.add(uid)
    else:
        outcome.refused[uid] = status


def send_all(
    node: Node, orthanc: Orthanc, triton: Triton | None, folder: Path, images: int, kills: int, restarts: int
) -> Outcome:
    """Send all images while parts are killed, wait until the node is done, and count."""
    outcome, began = Outcome(), time.monotonic()
    plan = upset(node, orthanc, triton, images, kills, restarts)
    with ThreadPoolExecutor(2) as pool:
        upsetting: list[Future[None]] = []
        for number in range(images):
            bad = {"BodyPartExamined": "FOOT"} if number % BAD == BAD - 1 else {}
            dataset, path = radiograph(number, **bad), folder / f"{number:03}.dcm"
            dataset.save_as(path, enforce_file_format=True)
            for future in upsetting[:-1]:
                future.result()
            upsetting.append(pool.submit(do_all, plan.get(number, [])))
            send_until_answered(node, path, str(dataset.SOPInstanceUID), outcome, upsetting)
            if number % DUPLICATES == 0:
                outcome.duplicates += 1
                send_until_answered(node, path, str(dataset.SOPInstanceUID), outcome, upsetting)
        for future in upsetting:
            future.result()
    wait_for(lambda: not node.waiting(), "the end of the queue")
    outcome.seconds = time.monotonic() - began
    for instance in orthanc.instances():
        for item in orthanc.tags(instance).get("SourceImageSequence", []):
            outcome.arrived[item["ReferencedSOPInstanceUID"]] += 1
    said = node.log.read_text()
    outcome.unnamed = {uid for uid in outcome.refused if f"refused {uid} " not in said}
    return outcome


@one_line_errors(RuntimeError)
def main(argv: list[str] | None = None) -> int:
    parser = make_parser(__doc__, "python -m benchmarks.node")
    parser.add_argument("--images", type=int, default=200, help="default: %(default)s")
    parser.add_argument("--kills", type=int, default=5, help="times that the node is killed (default: %(default)s)")
    parser.add_argument("--restarts", type=int, default=2, help="times that Triton is killed (default: %(default)s)")
    args = parser.parse_args(argv)
    if args.images < 10:
        parser.error(f"argument --images: must be 10 or more, got {args.images}")
    if not ORTHANC or not shutil.which("storescu"):
        raise RuntimeError("requires Orthanc and storescu: apt-get install orthanc dcmtk")
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        triton = Triton(folder)
        stack.callback(triton.stop)
        triton.start()
        orthanc = stack.enter_context(Orthanc(folder))
        node = stack.enter_context(running_node(folder, triton.url, orthanc))
        outcome = send_all(node, orthanc, triton, folder, args.images, args.kills, args.restarts)
    row = {
        "images": args.images,
        "attempts": outcome.attempts,
        "accepted": len(outcome.accepted),
        "refused": len(outcome.refused),
        "sent twice": outcome.duplicates,
        "arrived": len(outcome.arrived),
        "lost": len(outcome.lost),
        "doubled": len(outcome.doubled),
        "uncalled": len(outcome.uncalled),
        "unnamed": len(outcome.unnamed),
        "node killed": args.kills,
        "Triton restarted": args.restarts,
        "seconds": round(outcome.seconds, 1),
    }
    for what, count in row.items():
        print(f"{what:>16}: {count}")
    print(json.dumps(row))
    return 0 if outcome.good else 1


if __name__ == "__main__":
    sys.exit(main())
