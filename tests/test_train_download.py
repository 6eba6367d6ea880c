"""Downloads from a server that fails in every way, and archives that are damaged or hostile."""

from __future__ import annotations

import fcntl
import gzip
import io
import os
import shutil
import socket
import struct
import tarfile
import termios
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.conftest import wait_for
from train import download as module
from train.download import ARCHIVES, ATTEMPTS, DownloadError, Extracted, download, extract, main, parse_batches

BODY = np.random.default_rng(0).bytes(300_000)


@dataclass
class Fault:
    """What the server does with one request instead of answering it."""

    status: int = 0
    """answered, unless 0"""
    retry_after: str | None = None
    after: int = 0
    """bytes of the body that are sent before the connection ends"""
    reset: bool = False


@dataclass
class Site:
    """What the server serves and how, and what it has been asked."""

    url: str
    files: dict[str, bytes] = field(default_factory=lambda: {"/a.tar.gz": BODY})
    etag: str | None = '"one"'
    ranges: bool = True
    shift: int = 0
    """by which ranges start later than asked"""
    lengths: bool = True
    faults: list[Fault] = field(default_factory=list)
    """of the requests to come, one each"""
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    """path and Range of each request"""

    @property
    def asked_ranges(self) -> list[str | None]:
        return [asked for _, asked in self.asked]


def unacknowledged(connection: socket.socket) -> int:
    """Bytes that the other side has yet to receive."""
    (count,) = struct.unpack("i", fcntl.ioctl(connection, termios.TIOCOUTQ, bytes(4)))
    return int(count)


class Handler(BaseHTTPRequestHandler):
    site: Site

    def do_GET(self) -> None:
        site, asked = self.site, self.headers["Range"]
        site.asked.append((self.path, asked))
        fault = site.faults.pop(0) if site.faults else None
        body = site.files.get(self.path)
        start = int(asked.removeprefix("bytes=").removesuffix("-")) + site.shift if asked and site.ranges else None
        if fault and fault.status:
            self.answer(fault.status, {"Retry-After": fault.retry_after})
        elif body is None:
            self.answer(404, {})
        elif start is not None and start >= len(body):
            self.answer(416, {"Content-Range": f"bytes */{len(body)}"})
        else:
            sent = body[start or 0 :]
            headers = {"ETag": site.etag, "Content-Length": str(len(sent)) if site.lengths else None}
            if start is not None:
                headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
            self.answer(200 if start is None else 206, headers)
            self.wfile.write(sent[: fault.after] if fault else sent)
            if fault and fault.reset:
                wait_for(lambda: not unacknowledged(self.connection))  # a reset may overtake what is under way
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                os.close(self.connection.detach())
        self.close_connection = True

    def answer(self, status: int, headers: dict[str, str | None]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        site = Site(f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setattr(Handler, "site", site, raising=False)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield site
        server.shutdown()
        thread.join()


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "a.tar.gz"


def part_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")


def interrupt(_: float) -> None:
    raise KeyboardInterrupt


def begin(site: Site, target: Path, size: int = 100_000) -> None:
    """A download that is interrupted after ``size`` bytes."""
    site.faults.append(Fault(after=size))
    with pytest.raises(KeyboardInterrupt):
        download(f"{site.url}/a.tar.gz", target, sleep=interrupt)
    assert part_of(target).read_bytes() == BODY[:size]
    site.asked.clear()


def members(path: Path) -> set[str]:
    return {str(p.relative_to(path)) for p in path.rglob("*") if p.is_file() or p.is_symlink()}


def test_a_file_is_downloaded_and_nothing_else_is_left(site: Site, target: Path) -> None:
    download(f"{site.url}/a.tar.gz", target)
    assert target.read_bytes() == BODY
    assert members(target.parent) == {"a.tar.gz"}


def test_a_broken_connection_is_resumed_where_it_broke(site: Site, target: Path) -> None:
    site.faults = [Fault(after=100_000), Fault(after=50_000)]
    waits: list[float] = []
    download(f"{site.url}/a.tar.gz", target, sleep=waits.append)
    assert target.read_bytes() == BODY
    assert site.asked_ranges == [None, "bytes=99999-", "bytes=149998-"]
    assert waits == [1, 1]


def test_a_reset_connection_is_resumed(site: Site, target: Path) -> None:
    site.faults = [Fault(after=100_000, reset=True)]
    download(f"{site.url}/a.tar.gz", target, sleep=lambda _: None)
    assert target.read_bytes() == BODY
    assert len(site.asked) == 2


def test_a_later_run_resumes(site: Site, target: Path) -> None:
    begin(site, target)
    download(f"{site.url}/a.tar.gz", target)
    assert target.read_bytes() == BODY
    assert site.asked_ranges == ["bytes=99999-"]
    assert members(target.parent) == {"a.tar.gz"}


def test_a_run_killed_after_the_last_byte_resumes(site: Site, target: Path) -> None:
    begin(site, target)
    part_of(target).write_bytes(BODY)
    download(f"{site.url}/a.tar.gz", target)
    assert target.read_bytes() == BODY
    assert site.asked_ranges == ["bytes=299999-"]


def test_a_part_of_unknown_origin_is_not_continued(site: Site, target: Path) -> None:
    part_of(target).write_bytes(bytes(100_000))
    download(f"{site.url}/a.tar.gz", target)
    assert target.read_bytes() == BODY
    assert site.asked_ranges == [None]


def test_a_server_without_ranges_sends_the_whole_again(site: Site, target: Path) -> None:
    begin(site, target)
    site.ranges = False
    download(f"{site.url}/a.tar.gz", target)
    assert target.read_bytes() == BODY
    assert site.asked_ranges == ["bytes=99999-"]


def test_without_a_length_the_end_of_the_connection_is_the_end(site: Site, target: Path) -> None:
    site.lengths = False
    download(f"{site.url}/a.tar.gz", target)
    assert target.read_bytes() == BODY


@pytest.mark.parametrize(
    ("etag", "body"),
    [
        pytest.param('"two"', BODY[::-1], id="same size, other ETag"),
        pytest.param('"one"', BODY[::-1] + b"more", id="longer"),
        pytest.param(None, BODY[::-1], id="no ETag any more"),
        pytest.param('"one"', BODY[::-1][:50_000], id="shorter than the part"),
    ],
)
def test_a_changed_file_is_not_spliced(site: Site, target: Path, etag: str | None, body: bytes) -> None:
    begin(site, target)
    site.etag, site.files["/a.tar.gz"] = etag, body
    download(f"{site.url}/a.tar.gz", target, sleep=lambda _: None)
    assert target.read_bytes() == body
    assert site.asked_ranges == ["bytes=99999-", None]


def test_a_range_that_was_not_asked_for_is_not_spliced(site: Site, target: Path) -> None:
    begin(site, target)
    site.shift = 1
    download(f"{site.url}/a.tar.gz", target, sleep=lambda _: None)
    assert target.read_bytes() == BODY
    assert site.asked_ranges == ["bytes=99999-", None]


def test_what_is_not_there_is_an_error_at_once(site: Site, target: Path) -> None:
    with pytest.raises(DownloadError, match=rf"^'{site.url}/none' returned 404 Not Found$"):
        download(f"{site.url}/none", target, sleep=interrupt)
    assert len(site.asked) == 1
    assert members(target.parent) == set()


def test_a_busy_server_is_asked_again_when_it_says_so(site: Site, target: Path) -> None:
    date = formatdate(time.time() + 100, usegmt=True)
    site.faults = [Fault(503), Fault(503), *(Fault(503, retry_after=value) for value in ("7", date, "soon"))]
    waits: list[float] = []
    download(f"{site.url}/a.tar.gz", target, sleep=waits.append)
    assert target.read_bytes() == BODY
    assert waits[:3] == [1, 2, 7]
    assert 90 < waits[3] <= 100
    assert waits[4] == 16


def test_attempts_are_limited(site: Site, target: Path) -> None:
    begin(site, target)
    site.faults = [Fault(503)] * ATTEMPTS
    waits: list[float] = []
    with pytest.raises(DownloadError, match=f"'{site.url}/a.tar.gz' failed 6 times in a row: 503 Service Unavailable"):
        download(f"{site.url}/a.tar.gz", target, sleep=waits.append)
    assert waits == [1, 2, 4, 8, 16]
    assert part_of(target).read_bytes() == BODY[:100_000]
    download(f"{site.url}/a.tar.gz", target)
    assert target.read_bytes() == BODY


def test_attempts_that_bring_something_are_not_counted(site: Site, target: Path) -> None:
    site.faults = [Fault(after=10_000) for _ in range(3 * ATTEMPTS)]
    download(f"{site.url}/a.tar.gz", target, sleep=lambda _: None)
    assert target.read_bytes() == BODY

    site.ranges = False
    site.faults = [Fault(after=10_000) for _ in range(3 * ATTEMPTS)]
    with pytest.raises(DownloadError, match="the connection was lost after 10000 of 300000 bytes"):
        download(f"{site.url}/a.tar.gz", target, sleep=lambda _: None)


def test_a_server_that_asks_for_hours_is_not_waited_for(site: Site, target: Path) -> None:
    site.faults = [Fault(503, retry_after="7200")]
    with pytest.raises(DownloadError, match="asks to wait 7200 s: 503"):
        download(f"{site.url}/a.tar.gz", target, sleep=interrupt)


def test_a_server_that_is_away(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{bound.getsockname()[1]}/a.tar.gz"
        with pytest.raises(DownloadError, match=f"'{url}' failed 6 times in a row: .*refused"):
            download(url, target, sleep=lambda _: None)
    assert members(target.parent) == set()


def test_disk_space_is_checked_first(site: Site, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = int(len(BODY) * 2.1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=needed - 1))
    with pytest.raises(DownloadError, match=rf"'{target.parent}' needs 0.0 GiB of disk space, only 0.0 available"):
        download(f"{site.url}/a.tar.gz", target, sleep=interrupt)
    assert members(target.parent) == set()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=needed))
    download(f"{site.url}/a.tar.gz", target)

    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=len(BODY)))
    with pytest.raises(DownloadError, match="disk space"):
        extract(target, target.parent / "images")
    assert members(target.parent) == {"a.tar.gz"}


def member(name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, len(content), "/etc/passwd"
    return info, content


def tar(*entries: tuple[tarfile.TarInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        for info, content in entries:
            file.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def images(*numbers: int) -> bytes:
    """An archive of some images, as those of NIH are."""
    rng = np.random.default_rng(1)
    members = [member("images", kind=tarfile.DIRTYPE), *(nih(i, rng.bytes(5000)) for i in numbers)]
    return gzip.compress(tar(*members), mtime=0)  # the same bytes at any time


def nih(number: int, content: bytes) -> tuple[tarfile.TarInfo, bytes]:
    return member(f"images/{number:08}_000.png", content)


def test_images_are_extracted_flat(target: Path) -> None:
    target.write_bytes(gzip.compress(tar(member("a.png", b"A"), member("./x/y/B.PNG", b"B"))))
    assert extract(target, target.parent / "images") == Extracted(2, 0, [])
    assert members(target.parent) == {"a.tar.gz", "images/a.png", "images/B.PNG"}
    assert (target.parent / "images" / "B.PNG").read_bytes() == b"B"


def test_nothing_but_safe_png_files_is_extracted(tmp_path: Path) -> None:
    archive = tmp_path / "in" / "a.tar.gz"
    archive.parent.mkdir()
    bad = [
        member("../evil.png", b"evil"),
        member("images/../../evil2.png", b"evil"),
        member(f"{tmp_path}/evil3.png", b"evil"),
        member("link.png", kind=tarfile.SYMTYPE),
        member("hard.png", kind=tarfile.LNKTYPE),
        member("device.png", kind=tarfile.CHRTYPE),
        member("pipe.png", kind=tarfile.FIFOTYPE),
        member("images/README.txt", b"text"),
        member("images/._00000001_000.png", b"a Mac's"),
    ]
    archive.write_bytes(
        gzip.compress(tar(*bad, member("good.png", b"good"), member("folder.png", kind=tarfile.DIRTYPE)))
    )
    extracted = extract(archive, archive.parent / "images")
    assert extracted == Extracted(1, 0, [info.name for info, _ in bad])
    assert members(tmp_path) == {"in/a.tar.gz", "in/images/good.png"}


def test_files_that_exist_are_left_as_they_are(target: Path) -> None:
    folder = target.parent / "images"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"mine")
    target.write_bytes(gzip.compress(tar(member("a.png", b"A"), member("b.png", b"B"), member("again/b.png", b"C"))))
    assert extract(target, folder) == Extracted(1, 2, [])
    assert (folder / "a.png").read_bytes() == b"mine"
    assert (folder / "b.png").read_bytes() == b"B"


def flip(data: bytes) -> bytes:
    """Its checksum is then wrong."""
    return data[:-8] + bytes([data[-8] ^ 1]) + data[-7:]


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(images(1, 2, 3)[:-3000], id="truncated"),
        pytest.param(flip(images(1, 2, 3)), id="wrong checksum"),
        pytest.param(gzip.compress(gzip.decompress(images(1, 2, 3))[:9000]), id="truncated before it was compressed"),
        pytest.param(gzip.compress(b"no tar" * 1000), id="no tar"),
        pytest.param(b"<html>over quota</html>", id="no gzip"),
        pytest.param(b"", id="empty"),
    ],
)
def test_a_damaged_archive_is_removed_and_nothing_of_it_stays(target: Path, data: bytes) -> None:
    target.write_bytes(data)
    with pytest.raises(DownloadError, match=rf"'{target}' \({len(data)} bytes\) is damaged: .*the next run downloads"):
        extract(target, target.parent / "images")
    assert members(target.parent) == set()


def test_an_archive_without_images_is_an_error(target: Path) -> None:
    target.write_bytes(gzip.compress(tar(member("a.txt", b"A"))))
    with pytest.raises(DownloadError, match=f"'{target}' has no PNG files"):
        extract(target, target.parent / "images")


def test_an_extraction_that_fails_leaves_the_archive_alone(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: object, file: Any) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    target.write_bytes(images(1))
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfileobj", full)
        with pytest.raises(OSError, match="No space left"):
            extract(target, target.parent / "images")
    assert members(target.parent) == {"a.tar.gz"}
    assert extract(target, target.parent / "images").new == 1


@pytest.fixture
def nih_site(site: Site, monkeypatch: pytest.MonkeyPatch) -> Site:
    """The site with NIH's archives of one image each, image 1 in the first."""
    site.files = {f"/{i}.gz": images(i) for i in range(1, 13)}
    urls = {f"images_{i:03}.tar.gz": f"{site.url}/{i}.gz" for i in range(1, 13)}
    monkeypatch.setitem(ARCHIVES, "nih", urls)
    return site


def test_the_command(nih_site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "data" / "nih"
    command = ["nih", "--batches", "2-3", "--out", str(out)]
    assert main(command) == 0
    assert nih_site.asked == [("/2.gz", None), ("/3.gz", None)]
    done = {"images_002.tar.gz.done", "images_003.tar.gz.done"}
    assert members(out) == {"images/00000002_000.png", "images/00000003_000.png", *done}
    assert "images_002.tar.gz: 1 images extracted, 0 already existed\n" in capsys.readouterr().out

    (out / "images" / "00000002_000.png").write_bytes(b"mine")
    assert main(command) == 0
    assert len(nih_site.asked) == 2, "what is done is not downloaded again"
    assert "images_002.tar.gz: already done" in capsys.readouterr().out
    assert (out / "images" / "00000002_000.png").read_bytes() == b"mine"

    assert main(["nih", "--out", str(out), "--keep"]) == 0
    assert len(nih_site.asked) == 12
    assert (out / "images_012.tar.gz").read_bytes() == images(12)
    assert len(list((out / "images").glob("*.png"))) == 12


def test_a_run_killed_while_extracting_does_not_download_again(nih_site: Site, tmp_path: Path) -> None:
    (tmp_path / "images_001.tar.gz").write_bytes(images(1))
    staging = tmp_path / ".images_001.tar.gz.partial"
    staging.mkdir()
    (staging / "half.png").touch()
    assert main(["nih", "--batches", "1", "--out", str(tmp_path)]) == 0
    assert nih_site.asked == []
    assert members(tmp_path) == {"images/00000001_000.png", "images_001.tar.gz.done"}


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    err = capsys.readouterr().err
    assert "Traceback" not in err
    return err.splitlines()[-1]


def test_a_damaged_archive_is_downloaded_anew_by_the_next_run(
    nih_site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, nih_site.files["/1.gz"] = nih_site.files["/1.gz"], images(1)[:-1000]
    command = ["nih", "--batches", "1", "--out", str(tmp_path)]
    assert main(command) == 1
    assert error_of(capsys).startswith(f"error: '{tmp_path / 'images_001.tar.gz'}' ({len(whole) - 1000} bytes) is")
    assert members(tmp_path) == set()
    nih_site.files["/1.gz"] = whole
    assert main(command) == 0


def test_what_was_left_out_is_said(nih_site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nih_site.files["/1.gz"] = gzip.compress(tar(member("../evil.png", b"evil"), member("a.png", b"A")))
    assert main(["nih", "--batches", "1", "--out", str(tmp_path)]) == 0
    assert "skipped 1 members that are not PNG files or not safe to extract, such as '../evil.png'" in (
        capsys.readouterr().out
    )


def test_errors_are_one_line(nih_site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    del nih_site.files["/1.gz"]
    assert main(["nih", "--batches", "1", "--out", str(tmp_path)]) == 1
    assert error_of(capsys) == f"error: '{nih_site.url}/1.gz' returned 404 Not Found"
    (tmp_path / "file").touch()
    assert main(["nih", "--batches", "1", "--out", str(tmp_path / "file")]) == 1
    assert error_of(capsys) == f"error: '{tmp_path / 'file'}': File exists"


def test_ctrl_c(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "download", lambda *_: interrupt(0))
    assert main(["nih", "--batches", "1", "--out", str(tmp_path)]) == 130
    assert capsys.readouterr().err == "interrupted; run the same command to continue\n"


@pytest.mark.parametrize(
    ("text", "batches"),
    [("1", [1]), ("1-3", [1, 2, 3]), ("1,4,7-9", [1, 4, 7, 8, 9]), ("12,1-2,2", [1, 2, 12]), ("5-5", [5])],
)
def test_batches(text: str, batches: list[int]) -> None:
    assert parse_batches(text) == batches


@pytest.mark.parametrize("text", ["0", "13", "3-1", "1-13", "", "1,", "a", "1-", "-1", "1--3", "1.5", "٣"])
def test_other_batches_are_refused(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["nih", f"--batches={text}", "--out", str(tmp_path)])
    assert "must be within 1-12, such as 1 or 1-3 or 1,4,7-9, got " in error_of(capsys)


def test_openi_has_no_batches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["openi", "--batches", "1", "--out", str(tmp_path)])
    assert error_of(capsys).endswith("error: argument --batches: only for nih; openi is one archive")


def test_the_archives_are_the_published_ones() -> None:
    assert list(ARCHIVES["nih"]) == [f"images_{i:03}.tar.gz" for i in range(1, 13)]
    assert len(set(ARCHIVES["nih"].values())) == 12
    assert ARCHIVES["nih"]["images_012.tar.gz"].endswith("/shared/static/ioqwiy20ihqwyr8pf4c24eazhh281pbu.gz")
    assert all(url.startswith("https://") for urls in ARCHIVES.values() for url in urls.values())


def test_help_shows_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert "  python -m train.download openi --out data/openi\n" in capsys.readouterr().out
