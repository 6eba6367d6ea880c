"""The web page, in Chromium, against the real server."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image as PILImage
from pydicom.uid import generate_uid

from client import Client, NotAllowed
from client.files import read_image
from client.formats.source import Source
from client.pictures import CAUTION
from client.results import Event
from pipeline import ROOT
from pipeline.method.images import to_integers
from pipeline.serving.local_server import free_ports
from tests.conftest import RunningServer, wait_for
from tests.dicom_files import make_dataset, to_bytes

CHROMIUM = shutil.which("chromium")
MISSING = [name for name in ("gradio", "playwright") if find_spec(name) is None] + ([] if CHROMIUM else ["chromium"])
if MISSING:
    pytest.skip(
        f"the web page is not tested without {', '.join(MISSING)}: pip install '.[web,dev]', apt-get install chromium",
        allow_module_level=True,
    )

from playwright.sync_api import (  # noqa: E402
    Browser,
    BrowserContext,
    FilePayload,
    Locator,
    Page,
    ViewportSize,
    expect,
    sync_playwright,
)

pytestmark = pytest.mark.slow
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
DESK: ViewportSize = {"width": 1280, "height": 900}
PHONE: ViewportSize = {"width": 390, "height": 844}
expect.set_options(timeout=20_000)


@dataclass
class Site:
    """A running page."""

    process: subprocess.Popen[str]
    url: str
    folder: Path
    """Its folder for temporary files."""
    log: Path

    def files(self) -> list[Path]:
        """All files that it keeps on disk."""
        return [path for path in self.folder.rglob("*") if path.is_file()]


@contextlib.contextmanager
def serving(folder: Path, *options: str) -> Iterator[Site]:
    """Serve the page with temporary files in ``folder``; stop it at the end, when they must be gone."""
    temporary, log = folder / "tmp", folder / "log"
    temporary.mkdir()
    command = [sys.executable, "-m", "client.web", "--port", "0", "--wait", "1", *options]
    with open(log, "w") as file:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
            cwd=ROOT,
            env={**os.environ, "TMPDIR": str(temporary)},
        )
    assert process.stdout is not None
    with process, process.stdout:
        line = process.stdout.readline()
        assert line.startswith("page: http://127.0.0.1:"), log.read_text()
        try:
            yield Site(process, line.removeprefix("page: ").strip(), temporary, log)
            assert list(temporary.iterdir())
        finally:
            process.send_signal(signal.SIGINT)
            status = process.wait(30)
        assert (status, list(temporary.iterdir())) == (128 + signal.SIGINT, [])


@pytest.fixture(scope="module")
def site(server: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with serving(tmp_path_factory.mktemp("web"), "--url", server.url("grpc"), "--rate", "1000") as site:
        yield site
        assert "Traceback" not in site.log.read_text()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@contextlib.contextmanager
def visiting(browser: Browser) -> Iterator[BrowserContext]:
    with browser.new_context(viewport=DESK) as context:
        context.set_default_timeout(60_000)
        yield context


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    with visiting(browser) as context:
        yield context


@pytest.fixture(scope="module")
def visitor(browser: Browser) -> Iterator[BrowserContext]:
    """Keeps what the page loads, as a browser does that comes again."""
    with visiting(browser) as context:
        yield context


@pytest.fixture
def page(visitor: BrowserContext, site: Site) -> Iterator[Page]:
    with opened(visitor, site) as page:
        yield page


def opened(context: BrowserContext, site: Site) -> Page:
    page = context.new_page()
    page.goto(site.url)
    expect(state(page)).to_have_text("Drop an image, or choose one.")
    return page


def state(page: Page) -> Locator:
    return page.locator("#state .state")


def upload(page: Page, path: Path) -> None:
    page.set_input_files("#file input[type=file]", path)


def upscale(page: Page, path: Path) -> None:
    """Upload a file and wait for its result."""
    upload(page, path)
    expect(state(page)).to_contain_text(f"{path.stem}: ")
    page.click("#upscale")
    expect(page.locator(".viewer img.after")).to_be_visible()
    expect(page.locator("#cancel")).to_be_disabled()


def slide(page: Page, name: str, value: str) -> None:
    page.locator(f".viewer input[name={name}]").fill(value)


def downloaded(page: Page, link: str) -> bytes:
    with page.expect_download() as found:
        page.get_by_role("link", name=link, exact=True).click()
    return Path(found.value.path()).read_bytes()


def gray(height: int = 40, width: int = 48, seed: int = 0) -> NDArray[np.uint8]:
    """A smooth image."""
    small = np.random.default_rng(seed).integers(0, 256, (height // 4, width // 4), dtype=np.uint8)
    return np.asarray(PILImage.fromarray(small).resize((width, height), PILImage.Resampling.BICUBIC))


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scans") / "scan.png"
    PILImage.fromarray(gray()).save(path)
    return path


def write(path: Path) -> Path:
    """Write an image in the format of the file's suffix."""
    if path.suffix == ".npy":
        np.save(path, gray())
    elif path.suffix == ".tif":
        tifffile.imwrite(path, gray().astype(np.uint16) * 257)
    elif path.suffix == ".dcm":
        dataset = make_dataset(gray().astype(np.uint16) * 16, 12)
        uids = {name: generate_uid(entropy_srcs=[name]) for name in ("StudyInstanceUID", "SeriesInstanceUID")}
        path.write_bytes(to_bytes(dataset, WindowCenter=2048, WindowWidth=4096, PatientID="1", **uids))
    else:
        PILImage.fromarray(gray()).save(path)
    return path


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".dcm", ".npy"])
def test_every_format_becomes_what_the_client_makes_of_it(
    page: Page, server: RunningServer, tmp_path: Path, suffix: str
) -> None:
    path = write(tmp_path / f"scan{suffix}")
    upscale(page, path)
    expect(state(page)).to_contain_text("scan: 192×160 pixels in ")
    source = read_image(path)
    with Client(server.url("grpc")) as client:
        result = client.upscale(source.image, pixel_mm=source.pixel_mm).image
    for link, bits in (("Download PNG", 8), ("Download 16-bit PNG", 16)):
        with PILImage.open(io.BytesIO(downloaded(page, link))) as picture:
            np.testing.assert_array_equal(np.asarray(picture), to_integers(result, bits))
            assert CAUTION in picture.info["Description"]
    if suffix != ".dcm":
        expect(page.locator(".viewer .hint")).to_have_text("No DICOM: the image is not DICOM.")
        expect(page.get_by_role("link", name="Download DICOM")).to_have_count(0)
        return
    derived = pydicom.dcmread(io.BytesIO(downloaded(page, "Download DICOM")))
    assert (derived.Rows, derived.Columns) == (160, 192)
    assert derived.ImageType[:2] == ["DERIVED", "SECONDARY"]
    assert CAUTION in derived.SeriesDescription
    assert derived.PatientID == "1"


def test_dicom_that_cannot_be_derived_from_says_why(page: Page, tmp_path: Path) -> None:
    path = tmp_path / "scan.dcm"
    path.write_bytes(to_bytes(make_dataset(gray().astype(np.uint16))))
    upscale(page, path)
    expect(page.locator(".viewer .hint")).to_have_text(
        "No DICOM: 'scan.dcm' has no SeriesInstanceUID, which a derived image must name."
    )


def cut(page: Page) -> float:
    """Where the upscaled image begins, in percent of the width."""
    clip = page.locator(".viewer img.after").evaluate("image => getComputedStyle(image).clipPath")
    found = re.fullmatch(r"inset\(0px 0px 0px ([\d.]+)%\)", clip)
    assert found
    return float(found[1])


def test_the_line_between_bicubic_and_upscaled_moves(page: Page, scan: Path) -> None:
    upscale(page, scan)
    assert cut(page) == 50
    stage = page.locator(".viewer .stage").bounding_box()
    handle = page.locator(".viewer .line b").bounding_box()
    assert stage and handle
    page.mouse.move(handle["x"] + handle["width"] / 2, handle["y"] + handle["height"] / 2)
    page.mouse.down()
    page.mouse.move(stage["x"] + stage["width"] / 4, handle["y"], steps=3)
    page.mouse.up()
    assert cut(page) == pytest.approx(25, abs=1)
    page.mouse.move(stage["x"], handle["y"])
    assert cut(page) == pytest.approx(25, abs=1)


def pixels(page: Page, image: str) -> list[int]:
    """Red, green and blue in the middle of a picture, as decoded by the browser."""
    found: list[int] = page.locator(f".viewer img.{image}").evaluate(
        """async image => {
            await image.decode();
            const context = new OffscreenCanvas(1, 1).getContext("2d");
            context.drawImage(image, image.naturalWidth / 2, image.naturalHeight / 2, 1, 1, 0, 0, 1, 1);
            return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3);
        }"""
    )
    return found


def test_window_and_level(page: Page, scan: Path) -> None:
    upscale(page, scan)
    viewer = page.locator(".viewer")
    usual = pixels(page, "after")
    slide(page, "width", "20")
    slide(page, "center", "10")
    expect(viewer).to_have_attribute("data-shown", "?center=10&width=20")
    share = np.clip((np.array(usual) / 255 - 0.1) / 0.2 + 0.5, 0, 1)
    np.testing.assert_allclose(pixels(page, "after"), 255 * share, atol=4)
    page.get_by_role("button", name="Reset view").click()
    expect(viewer).to_have_attribute("data-shown", "?center=50&width=100")
    assert pixels(page, "after") == usual


def test_zoom_keeps_the_middle(page: Page, scan: Path) -> None:
    upscale(page, scan)
    slide(page, "zoom", "4")
    width, height, left, top = page.locator(".viewer .frame").evaluate(
        "f => [f.scrollWidth / f.clientWidth, f.scrollHeight / f.clientHeight,"
        " (f.scrollLeft + f.clientWidth / 2) / f.scrollWidth, (f.scrollTop + f.clientHeight / 2) / f.scrollHeight]"
    )
    assert width > 2 and height > 3
    assert (left, top) == (pytest.approx(0.5, abs=0.02), pytest.approx(0.5, abs=0.02))


def test_uncertainty_is_laid_over_with_a_colour_bar(page: Page, scan: Path) -> None:
    upscale(page, scan)
    expect(page.locator(".viewer .legend")).to_be_hidden()
    slide(page, "doubt", "80")
    expect(page.locator(".viewer .legend")).to_be_visible()
    expect(page.locator(".viewer img.doubt")).to_have_css("opacity", "0.8")
    ticks = [float(tick) for tick in page.locator(".viewer .ticks span").all_inner_texts()]
    assert ticks[0] == 0 and ticks == sorted(ticks) and ticks[-1] > 1


def prepare(page: Page, path: Path, **options: str) -> None:
    """Upload a file and fill in options by their labels."""
    # they get their first values when they are first shown: before the upload has been answered
    page.get_by_role("button", name="Options").click()
    expect(page.get_by_label("Seed")).to_have_value("0")
    upload(page, path)
    expect(state(page)).to_contain_text(f"{path.stem}: ")
    for label, value in options.items():
        page.get_by_label(label).fill(value)


def test_options_reach_the_server(page: Page, server: RunningServer, scan: Path) -> None:
    prepare(page, scan, Steps="3", Seed="7")
    page.click("#upscale")
    expect(page.locator(".viewer img.after")).to_be_visible()
    with Client(server.url("grpc")) as client:
        result = client.upscale(read_image(scan).image, steps=3, seed=7).image
    with PILImage.open(io.BytesIO(downloaded(page, "Download PNG"))) as picture:
        np.testing.assert_array_equal(np.asarray(picture), to_integers(result, 8))
        assert "steps=3" in picture.info["Parameters"]


def test_options_that_are_not_allowed(page: Page, scan: Path) -> None:
    prepare(page, scan, Steps="400")
    page.click("#upscale")
    expect(state(page)).to_have_text("'steps' must be 1–300, got 400.")
    expect(page.locator("#upscale")).to_be_enabled()


def test_an_image_above_512_pixels_is_upscaled_in_tiles(page: Page, server: RunningServer, tmp_path: Path) -> None:
    path = tmp_path / "tiles.png"
    PILImage.fromarray(gray(64, 600)).save(path)
    upscale(page, path)
    with Client(server.url("grpc")) as client:
        result = client.upscale(read_image(path).image).image
    with PILImage.open(io.BytesIO(downloaded(page, "Download PNG"))) as picture:
        np.testing.assert_array_equal(np.asarray(picture), to_integers(result, 8))


def test_without_streams_there_is_no_progress_but_a_result(
    scan: Path, context: BrowserContext, server: RunningServer, tmp_path: Path
) -> None:
    with serving(tmp_path, "--url", server.url("http"), "--protocol", "http") as site:
        upscale(opened(context, site), scan)


RESULT: Any = object()


class WithoutStreams:
    """A client of a server behind a proxy that allows no streams."""

    protocol = "grpc"

    def stream(self, *_: Any, **__: Any) -> Iterator[Event]:
        raise NotAllowed("no streams")

    def upscale(self, *_: Any, **__: Any) -> Any:
        return RESULT


def test_nor_through_a_proxy_that_allows_no_streams() -> None:
    from client.web.site import Site as Actions

    source = Source(np.zeros((4, 4), np.float32), 8)
    events = list(Actions._events(WithoutStreams(), source, {}))  # type: ignore[arg-type]
    assert [(event.step, event.steps) for event in events] == [(0, 1), (1, 1)]
    assert events[-1].result is RESULT


def test_a_large_image_is_offered_reduced(page: Page, tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    PILImage.fromarray(gray(64, 4000)).save(path)
    prepare(page, path)
    expect(state(page)).to_contain_text("large: 4000×64 pixels")
    factor = page.get_by_label("Reduce the image first by").first
    assert int(factor.input_value()) >= 2
    factor.fill("8")
    page.click("#upscale")
    expect(page.locator(".viewer img.after")).to_be_visible()
    expect(state(page)).to_contain_text("large: 2000×32 pixels in ")
    expect(state(page)).to_contain_text("downscaled ×8 to 500×8")
    factor.fill("1")
    page.click("#upscale")
    expect(state(page)).to_contain_text("got 4000×64: change 'Reduce the image first by'")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scans") / "large.png"
    PILImage.fromarray(gray(512, 512)).save(path)
    return path


def start_long(page: Page, large: Path) -> None:
    """Start a long job and wait until the server is at it."""
    prepare(page, large, Steps="300")
    page.click("#upscale")
    expect(page.locator("#state progress")).to_be_visible()


def cancelled(server: RunningServer) -> float:
    """The number of jobs that the server has given up because their callers cancelled them."""
    with urllib.request.urlopen(f"http://localhost:{server.metrics}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    name = 'cxr_superres_failures_total{model="superres_stream",reason="cancelled"}'
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


def test_cancel_ends_the_work_on_the_server(page: Page, server: RunningServer, scan: Path, large: Path) -> None:
    before = cancelled(server)
    start_long(page, large)
    expect(state(page)).to_have_text(re.compile(r"Step \d+ of 300"))
    page.click("#cancel")
    expect(state(page)).to_have_text("Cancelled.")
    expect(page.locator("#cancel")).to_be_disabled()
    wait_for(lambda: cancelled(server) == before + 1)
    page.get_by_label("Steps").fill("1")
    upscale(page, scan)


def test_closing_the_tab_ends_the_work_on_the_server(page: Page, server: RunningServer, large: Path) -> None:
    before = cancelled(server)
    start_long(page, large)
    page.close()
    wait_for(lambda: cancelled(server) == before + 1)


def test_images_wait_for_each_other_and_too_many_are_refused(
    browser: Browser, server: RunningServer, scan: Path, large: Path, tmp_path: Path
) -> None:
    limits = ("--at-once", "1", "--queue", "2")
    with serving(tmp_path, "--url", server.url("grpc"), *limits) as site, contextlib.ExitStack() as stack:
        first, second, third = (opened(stack.enter_context(browser.new_context()), site) for _ in range(3))
        start_long(first, large)
        for page in (second, third):
            upload(page, scan)
            expect(page.locator("#upscale")).to_be_enabled()
            page.click("#upscale")
            words = "Waiting for other images …" if page == second else "2 images are being upscaled or waiting"
            expect(state(page)).to_contain_text(words)
        second.click("#cancel")
        expect(state(second)).to_have_text("Cancelled.")
        third.click("#upscale")
        expect(state(third)).to_contain_text("Waiting for other images …")
        first.click("#cancel")
        expect(third.locator(".viewer img.after")).to_be_visible()


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("notes.png", b"no image", "'notes.png' is not a readable PNG, JPEG, TIFF, DICOM or .npy image."),
        ("empty.png", b"", "'empty.png' is empty."),
        ("half.dcm", b"\0" * 128 + b"DICM" + b"\x08\0", "'half.dcm' "),
        ("<b>scan.jpg", b"\xff\xd8\xff" + bytes(100), "scan.jpg' "),
    ],
)
def test_bad_files(page: Page, site: Site, name: str, data: bytes, words: str) -> None:
    file: FilePayload = {"name": name, "mimeType": "application/octet-stream", "buffer": data}
    page.set_input_files("#file input[type=file]", file)
    expect(page.locator("#state [role=alert]")).to_contain_text(words)
    text = state(page).inner_text()
    assert str(site.folder) not in text and "Traceback" not in text
    expect(page.locator("#upscale")).to_be_disabled()
    assert site.files() == []


def test_a_server_that_is_down(context: BrowserContext, scan: Path, tmp_path: Path) -> None:
    url = f"localhost:{free_ports(1)[0]}"
    with serving(tmp_path, "--url", url) as site:
        page = opened(context, site)
        upload(page, scan)
        expect(page.locator("#upscale")).to_be_enabled()
        page.click("#upscale")
        expect(page.locator("#state [role=alert]")).to_contain_text(f"No server ready at {url} (grpc) within 1 s: ")
        expect(page.locator("#upscale")).to_be_enabled()


def test_several_users_at_once(browser: Browser, site: Site, scan: Path, tmp_path: Path) -> None:
    """Two of them upload the same file, which Gradio puts at the same place."""
    other = tmp_path / "other.png"
    PILImage.fromarray(gray(seed=1)).save(other)
    with contextlib.ExitStack() as stack:
        pages = [opened(stack.enter_context(browser.new_context()), site) for _ in range(3)]
        for page, path in zip(pages, (scan, scan, other), strict=True):
            upload(page, path)
        for page in pages:
            expect(page.locator("#upscale")).to_be_enabled()
            page.click("#upscale")
        for page in pages:
            expect(page.locator(".viewer img.after")).to_be_visible()
        addresses = [page.locator(".viewer").get_attribute("data-address") for page in pages]
        results = [downloaded(page, "Download PNG") for page in pages]
    assert len(set(addresses)) == 3
    assert results[0] == results[1] != results[2]


def test_everything_fits_a_phone(browser: Browser, site: Site, scan: Path) -> None:
    with browser.new_context(viewport=PHONE, has_touch=True, is_mobile=True) as context:
        page = opened(context, site)
        upscale(page, scan)
        page.get_by_role("button", name="Options").click()
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        for element in (".viewer .stage", "#upscale", ".viewer [name=cut]", ".viewer [name=reset]", ".downloads a"):
            box = page.locator(element).first.bounding_box()
            assert box and box["x"] >= 0 and box["x"] + box["width"] <= PHONE["width"], element
        page.locator(".downloads a").first.scroll_into_view_if_needed()
        expect(page.locator(".caution")).to_be_in_viewport()
        expect(page.locator(".caution")).to_contain_text(CAUTION.capitalize())


def tab_to(page: Page, element: str) -> None:
    """Press the tabulator until an element has the focus."""
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("name => document.activeElement.matches(name)", element):
            return
    raise AssertionError(f"{element} is out of the keyboard's reach")


def test_keyboard_only(page: Page, scan: Path) -> None:
    with page.expect_file_chooser() as chooser:
        tab_to(page, "#file button")
        page.keyboard.press("Enter")
    chooser.value.set_files(scan)
    expect(page.locator("#upscale")).to_be_enabled()
    tab_to(page, "#upscale")
    page.keyboard.press("Enter")
    expect(page.locator(".viewer img.after")).to_be_visible()
    tab_to(page, ".viewer .frame")
    tab_to(page, ".viewer [name=cut]")
    page.keyboard.press("ArrowRight")
    assert cut(page) == 51
    tab_to(page, ".viewer [name=doubt]")
    page.keyboard.press("End")
    expect(page.locator(".viewer .legend")).to_be_visible()
    tab_to(page, ".viewer [name=zoom]")
    page.keyboard.press("ArrowRight")
    expect(page.locator(".viewer")).to_have_attribute("style", re.compile("--zoom: 1.5"))
    with page.expect_download():
        tab_to(page, ".downloads a")
        page.keyboard.press("Enter")


def test_nothing_is_kept_on_disk_and_results_end_with_the_tab(page: Page, site: Site, scan: Path) -> None:
    upscale(page, scan)
    assert site.files() == []
    address = f"{site.url}{page.locator('.viewer').get_attribute('data-address')}/after.png"
    assert page.request.get(address).ok
    assert page.request.get(address).headers["cache-control"] == "no-store"
    page.close()
    wait_for(lambda: requested(address) == 404)


def requested(address: str) -> int:
    """The status of an answer to a request without a browser."""
    host, port, path = re.fullmatch(r"http://([^:]+):(\d+)(/.*)", address).groups()  # type: ignore[union-attr]
    with socket.create_connection((host, int(port)), 60) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        return int(connection.recv(100).split()[1])


def test_the_page_calls_no_other_server(context: BrowserContext, site: Site, scan: Path) -> None:
    asked: list[str] = []
    context.on("request", lambda request: asked.append(request.url))
    upscale(opened(context, site), scan)
    assert len(asked) > 10
    assert [url for url in asked if not url.startswith((site.url, "data:", "blob:"))] == []


def test_limits(context: BrowserContext, server: RunningServer, scan: Path, tmp_path: Path) -> None:
    large = tmp_path / "large.npy"
    np.save(large, np.zeros((100, 100), np.uint8))
    with serving(tmp_path, "--url", server.url("grpc"), "--max-upload", "8KB", "--rate", "2") as site:
        page = opened(context, site)
        upload(page, large)
        expect(page.get_by_text(re.compile("maximum allowed size", re.IGNORECASE))).to_be_visible()
        upscale(page, scan)
        first = page.locator(".viewer").get_attribute("data-address")
        assert first is not None
        page.click("#upscale")
        expect(page.locator(".viewer")).not_to_have_attribute("data-address", first)
        expect(page.locator("#cancel")).to_be_disabled()
        page.click("#upscale")
        expect(state(page)).to_contain_text("The limit is 2 images per minute: try again in ")
        assert site.files() == []


def test_a_server_is_started_if_none_answers(context: BrowserContext, scan: Path, tmp_path: Path) -> None:
    with serving(tmp_path, "--url", f"localhost:{free_ports(1)[0]}", "--start-server") as site:
        upscale(opened(context, site), scan)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--port", "70000"], "--port: must be 0 to 65535, got 70000"),
        (["--max-upload", "much"], "--max-upload: must be a size such as 64MB, got 'much'"),
        (["--rate", "0"], "--rate: must be a whole number of 1 or more, got '0'"),
        (["--token-file", "/nonexistent"], "the token file '/nonexistent' cannot be read"),
    ],
)
def test_options_of_the_command(options: list[str], words: str) -> None:
    done = subprocess.run([sys.executable, "-m", "client.web", *options], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert words in done.stderr


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "client.web", "--port", str(port)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == f"error: 127.0.0.1:{port}: Address already in use\n"
