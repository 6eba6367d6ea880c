"""Model ``superres_stream``: progress, intermediate images, large images, cancellation."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import textwrap
import urllib.request
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from client import BadRequest, Client, Event
from client.files import read_image
from client.png import write_png
from client.upscale import main
from pipeline import ROOT
from pipeline.presets import BEST
from tests.conftest import RunningServer, wait_for
from tests.test_tiles import radiograph

pytestmark = pytest.mark.slow


@pytest.fixture
def client(server: RunningServer) -> Iterator[Client]:
    with Client(server.url("grpc")) as client:
        yield client


@pytest.mark.parametrize(
    "options",
    [{}, {"steps": 4}, {"samples": 3, "output": "mean", "steps": 2}, {"sampler": "ddpm", "steps": 20}],
    ids=str,
)
def test_the_last_event_has_the_result_of_superres_to_the_bit(client: Client, options: dict[str, Any]) -> None:
    image = radiograph(60, 75)
    *_, last = client.stream(image, seed=7, previews=2, **options)
    expected = client.upscale(image, seed=7, **options)
    assert last.result is not None
    np.testing.assert_array_equal(last.result.image, expected.image)
    assert last.result.spread is not None
    assert expected.spread is not None
    np.testing.assert_array_equal(last.result.spread, expected.spread)
    for name in ("lr_error", "degradation", "noise", "expected_error", "model", "options", "seed", "preset"):
        assert getattr(last.result, name) == getattr(expected, name)


def test_events_tell_the_steps_in_turn_and_end_with_all_of_them(client: Client) -> None:
    events = list(client.stream(radiograph(128, 128), steps=100))
    steps = [event.step for event in events]
    assert steps == sorted(steps)
    assert steps[-1] == 100
    assert len(events) > 2
    assert {event.steps for event in events} == {100}
    assert [event.result is not None for event in events] == [False] * (len(events) - 1) + [True]


def test_intermediate_images_approach_the_result(client: Client) -> None:
    events = list(client.stream(radiograph(64, 48), steps=30, previews=5))
    shown, result = [event.image for event in events if event.image is not None], events[-1].result
    assert len(shown) == 5
    assert result is not None
    assert all(image.shape == (256, 192) for image in shown)
    differences = [float(np.abs(image - result.image).mean()) for image in shown]
    assert differences[-1] < differences[0]


@pytest.mark.parametrize("shape", [(513, 64), (330, 520)])
def test_images_above_512_pixels_come_in_tiles(client: Client, shape: tuple[int, int]) -> None:
    image = radiograph(*shape)
    events = list(client.stream(image, degradation="area"))
    result = events[-1].result
    assert result is not None
    assert result.image.shape == (4 * shape[0], 4 * shape[1])
    assert result.spread is not None
    assert result.spread.shape == result.image.shape
    assert result.lr_error < 1e-3
    assert 0 < (result.expected_error or 0) < 0.05
    assert events[-1].step == events[-1].steps


def test_upscale_gives_what_the_events_end_with(client: Client) -> None:
    image = radiograph(513, 64)
    *_, last = client.stream(image, degradation="area")
    assert last.result is not None
    np.testing.assert_array_equal(client.upscale(image, degradation="area").image, last.result.image)


@pytest.mark.parametrize(
    ("image", "options", "problem"),
    [
        (np.zeros((2049, 8)), {}, r"'image' must be 2–2048 pixels per side, got 2049×8"),
        (np.zeros((16, 16)), {"previews": -1}, r"'previews' must be 0–300, got -1"),
        (np.zeros((16, 16)), {"steps": 0}, r"'steps' must be 1–300, got 0"),
        (np.zeros((1024, 1024)), {"steps": 300}, r"at most 134,217,728, got 314,572,800"),
    ],
)
def test_what_is_not_allowed_is_named(
    client: Client, image: np.ndarray[tuple[int, int], np.dtype[np.float64]], options: dict[str, int], problem: str
) -> None:
    with pytest.raises(BadRequest, match=problem):
        list(client.stream(image, **options))


def test_progress_and_large_images_need_grpc(server: RunningServer) -> None:
    with Client(server.url("http"), protocol="http") as client:
        for call in (lambda: client.stream(np.zeros((16, 16))), lambda: client.upscale(np.zeros((600, 16)))):
            with pytest.raises(BadRequest, match="'protocol' must be 'grpc' .*, got 'http'"):
                call()
    with pytest.raises(SystemExit):
        main(["scan.png", "--progress", "--protocol", "http"])


def metrics(server: RunningServer) -> str:
    with urllib.request.urlopen(f"http://localhost:{server.metrics}/metrics") as answer:
        text: str = answer.read().decode()
    return text


def unet_calls(server: RunningServer) -> int:
    found = re.search(r'nv_inference_exec_count\{model="unet_onnx",version="1"\} (\d+)', metrics(server))
    return int(found[1]) if found else 0


def cancelled(server: RunningServer, model: str = "superres_stream") -> float:
    """How many requests the server has ended because nobody waited for them."""
    found = re.findall(
        rf'cxr_superres_failures_total\{{[^}}]*model="{model}"[^}}]*reason="cancelled"[^}}]*\}} (\d+)', metrics(server)
    )
    return sum(map(float, found))


def test_closing_the_events_ends_the_work(client: Client, server: RunningServer) -> None:
    before = cancelled(server)
    events = cast(Generator[Event, None, None], client.stream(radiograph(256, 256), sampler="ddpm"))
    assert next(events).step < BEST.diffusion.T
    events.close()
    wait_for(lambda: cancelled(server) == before + 1, 10)


@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGINT], ids=["SIGKILL", "SIGINT"])
def test_work_ends_with_a_client_that_is_killed(server: RunningServer, kill: signal.Signals) -> None:
    before = cancelled(server)
    script = f"""
        import numpy as np
        from client import Client
        with Client("{server.url("grpc")}") as client:
            for event in client.stream(np.full((256, 256), 0.5), sampler="ddpm"):
                print(event.step, flush=True)
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        process.send_signal(kill)
        process.wait()
    wait_for(lambda: cancelled(server) == before + 1, 10)


def test_the_command_shows_steps_and_writes_what_it_writes_without(server: RunningServer, tmp_path: Path) -> None:
    write_png(tmp_path / "scan.png", radiograph(64, 64))
    command = [sys.executable, "client/upscale.py", str(tmp_path / "scan.png"), "--url", server.url("grpc")]
    outputs = []
    for name, more in (("plain.png", []), ("watched.png", ["--progress"])):
        done = subprocess.run(
            [*command, "--steps", "50", "-o", str(tmp_path / name), *more],
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        )
        assert ("50/50" in done.stderr) == bool(more)
        outputs.append(read_image(tmp_path / name).image)
    np.testing.assert_array_equal(outputs[0], outputs[1])


@pytest.mark.parametrize("more", [[], ["--progress"]], ids=["superres", "superres_stream"])
def test_an_interrupted_command_cancels_on_the_server(server: RunningServer, tmp_path: Path, more: list[str]) -> None:
    model = "superres_stream" if more else "superres"
    before, calls = cancelled(server, model), unet_calls(server)
    write_png(tmp_path / "scan.png", radiograph(400, 400))
    command = [sys.executable, "client/upscale.py", str(tmp_path / "scan.png"), "--url", server.url("grpc"), *more]
    with subprocess.Popen(
        [*command, "--sampler", "ddpm", "--timeout", "inf"], cwd=ROOT, stderr=subprocess.PIPE, text=True
    ) as process:
        wait_for(lambda: unet_calls(server) > calls)
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        assert "interrupted" in process.stderr.read()
        assert process.wait(30) == 130
    wait_for(lambda: cancelled(server, model) == before + 1, 10)
    assert [path.name for path in tmp_path.iterdir()] == ["scan.png"]
