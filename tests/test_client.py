"""The client library against the real server, on both protocols."""

from __future__ import annotations

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import numpy as np
import pytest

from client import BadRequest, Client, ServerError, ServerLost, ServerUnavailable, UpscaleError
from pipeline.local_server import free_ports
from pipeline.request import Options
from pipeline.serve import ROOT
from pipeline.spec import DEFAULT
from tests.conftest import RunningServer, StartServer

Protocol = Literal["grpc", "http"]
PROTOCOLS: list[Protocol] = ["grpc", "http"]
REPOSITORY = ROOT / "model_repository"
IMAGE = np.random.default_rng(0).random((16, 20))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_upscales_and_says_how(server: RunningServer, protocol: Protocol) -> None:
    with Client(server.url(protocol), protocol=protocol) as client:
        result = client.upscale(IMAGE, seed=4, steps=3, sampler="ddim")
        again = client.upscale(IMAGE, seed=4, steps=3, sampler="ddim", denoiser="onnx")
    assert result.image.shape == (64, 80)
    assert result.image.dtype == np.float32
    assert (result.preset, result.seed) == (DEFAULT.name, 4)
    assert result.options == Options.of(DEFAULT, steps=3, sampler="ddim")
    assert result.spread is None
    assert 0 <= result.lr_error < 1
    assert 0 < result.seconds < 60
    np.testing.assert_array_equal(result.image, again.image)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_several_samples_come_with_their_spread(server: RunningServer, protocol: Protocol) -> None:
    with Client(server.url(protocol), protocol=protocol) as client:
        mean = client.upscale(IMAGE, samples=3, output="mean")
        first = client.upscale(IMAGE, samples=3)
        one = client.upscale(IMAGE)
    assert mean.spread is not None
    assert first.spread is not None
    assert mean.spread.shape == mean.image.shape
    assert (mean.spread > 0).all()
    np.testing.assert_allclose(first.spread, mean.spread, atol=1e-4)
    np.testing.assert_allclose(first.image, one.image, atol=1e-4)
    assert not np.allclose(first.image, mean.image, atol=1e-4)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_server_of_an_unknown_preset(
    server: RunningServer, protocol: Protocol, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.api.PRESETS", {"other": DEFAULT})
    with pytest.raises(ServerError, match=f"runs preset '{DEFAULT.name}', known here are other"):
        Client(server.url(protocol), protocol=protocol)


def test_protocols_agree(server: RunningServer) -> None:
    images = []
    for protocol in PROTOCOLS:
        with Client(server.url(protocol), protocol=protocol) as client:
            images.append(client.upscale(IMAGE, steps=3).image)
    np.testing.assert_array_equal(images[0], images[1])


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_works_from_many_threads(server: RunningServer, protocol: Protocol) -> None:
    with Client(server.url(protocol), protocol=protocol) as client:
        with ThreadPoolExecutor(6) as pool:
            results = list(pool.map(lambda seed: client.upscale(IMAGE, seed=seed, steps=3), range(12)))
        for seed in (0, 11):
            expected = client.upscale(IMAGE, seed=seed, steps=3).image
            np.testing.assert_allclose(results[seed].image, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("image", "options", "message"),
    [
        (np.zeros((1, 16, 16)), {}, r"'image' has shape \(1, 16, 16\), needed is \[H, W\]"),
        (np.zeros((16, 16), np.uint8), {}, "'image' is uint8, needed is floating point from 0 to 1"),
        (np.zeros((1, 16)), {}, "'image' is 1×16 pixels"),
        (np.full((16, 16), np.nan), {}, "NaN or infinite"),
        (np.full((16, 16), 7.0), {}, "values from 7 to 7, allowed are 0 to 1"),
        (IMAGE, {"steps": 301}, "'steps' is 301, allowed are 1 to 300"),
        (IMAGE, {"sampler": "x"}, "'sampler' is 'x', allowed are ddpm, ddim"),
        (IMAGE, {"seed": -1}, "'seed' is -1"),
        (IMAGE, {"samples": 17}, "'samples' is 17, allowed are 1 to 16"),
        (IMAGE, {"output": "mean"}, "'output' is 'mean', which needs 'samples' of 2 or more"),
    ],
)
def test_bad_requests_are_found_before_sending(
    server: RunningServer, image: Any, options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Client(server.url("grpc")) as client:
        monkeypatch.setattr(client, "_infer", lambda *_: pytest.fail("was sent"))
        with pytest.raises(BadRequest, match=message):
            client.upscale(image, **options)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_servers_refusal_is_a_bad_request(server: RunningServer, protocol: Protocol) -> None:
    with Client(server.url(protocol), protocol=protocol) as client:
        with pytest.raises(BadRequest, match="the server runs no TensorRT plan"):
            client.upscale(IMAGE, denoiser="trt")
        assert client.upscale(IMAGE, steps=1).image.shape == (64, 80)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_no_server(protocol: Protocol) -> None:
    (port,) = free_ports(1)
    began = time.monotonic()
    with pytest.raises(ServerUnavailable, match=rf"no server ready at localhost:{port} \({protocol}\) within 0.5 s"):
        Client(f"localhost:{port}", protocol=protocol, wait=0.5)
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_server_that_accepts_and_never_answers(protocol: Protocol) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        began = time.monotonic()
        with pytest.raises(ServerUnavailable, match="nothing answers"):
            Client(f"127.0.0.1:{silent.getsockname()[1]}", protocol=protocol, wait=0.5)
        assert time.monotonic() - began < 10


@pytest.mark.parametrize("url", ["no-such-host.invalid:8001", "nonsense"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_wrong_address(url: str, protocol: Protocol) -> None:
    with pytest.raises(ServerUnavailable, match=f"no server ready at {url}"):
        Client(url, protocol=protocol, wait=0.2)


def test_the_other_protocols_port(server: RunningServer) -> None:
    with pytest.raises(ServerUnavailable):
        Client(server.url("http"), protocol="grpc", wait=0.5)
    with pytest.raises(ServerUnavailable):
        Client(server.url("grpc"), protocol="http", wait=0.5)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_answer_that_takes_too_long_is_not_asked_for_again(server: RunningServer, protocol: Protocol) -> None:
    with Client(server.url(protocol), protocol=protocol, timeout=0.3) as client:
        with pytest.raises(ServerError, match="no answer from .* within 0.3 s"):
            client.upscale(np.zeros((96, 96)), sampler="ddpm")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_server_that_dies_during_a_request(start_server: StartServer, protocol: Protocol) -> None:
    server = start_server(REPOSITORY)
    with Client(server.url(protocol), protocol=protocol, wait=1) as client:
        threading.Timer(0.5, server.kill).start()
        with pytest.raises(ServerLost, match="went away during a request"):
            client.upscale(np.zeros((256, 256)), sampler="ddpm")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_request_survives_the_servers_restart(start_server: StartServer, protocol: Protocol) -> None:
    server = start_server(REPOSITORY)
    with Client(server.url(protocol), protocol=protocol, wait=60) as client, ThreadPoolExecutor(1) as pool:
        expected = client.upscale(IMAGE, steps=2).image
        running = pool.submit(client.upscale, np.zeros((64, 64)), sampler="ddpm")
        time.sleep(0.5)
        server.kill()
        start_server(REPOSITORY, ports=[server.http, server.grpc, free_ports(1)[0]])
        assert running.result().image.shape == (256, 256)
        np.testing.assert_array_equal(client.upscale(IMAGE, steps=2).image, expected)


def test_every_error_is_an_upscale_error() -> None:
    for error in (BadRequest, ServerError, ServerLost, ServerUnavailable):
        assert issubclass(error, UpscaleError)
