"""The client library against the real server, on both protocols."""

from __future__ import annotations

import inspect
import math
import signal
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import tritonclient.grpc as triton
from PIL import Image

from client import (
    BadRequest,
    Client,
    ClientClosed,
    NotAllowed,
    ServerError,
    ServerLost,
    ServerUnavailable,
    UpscaleError,
    wire,
)
from client.api import MODEL
from pipeline import ROOT
from pipeline.hashes import file_hash
from pipeline.method.options import Options
from pipeline.presets import DEFAULT
from pipeline.serving.local_server import free_ports
from pipeline.spec import MAX_SEED
from tests.conftest import RunningServer, StartServer, wait_for

Protocol = Literal["grpc", "http"]
PROTOCOLS: list[Protocol] = ["grpc", "http"]
REPOSITORY = ROOT / "model_repository"
IMAGE = np.random.default_rng(0).random((16, 20))
MASKED = np.ma.masked_greater(IMAGE, 0.5)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_upscales_and_says_how(server: RunningServer, protocol: Protocol) -> None:
    with Client(server.url(protocol), protocol=protocol) as client:
        result = client.upscale(IMAGE, seed=4, steps=3, sampler="ddim")
        again = client.upscale(IMAGE, seed=4, steps=3, sampler="ddim", denoiser="onnx")
    assert result.image.shape == (64, 80)
    assert result.image.dtype == np.float32
    assert (result.preset, result.seed) == (DEFAULT.name, 4)
    assert result.options == Options.of(DEFAULT, steps=3, sampler="ddim")
    assert result.spread is not None and result.spread.shape == result.image.shape
    assert result.expected_error is not None and 0 < result.expected_error < 1
    assert result.degradation == "cubic"
    assert result.noise == 0, "so few pixels tell of none"
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
def test_the_answer_tells_which_model_files_made_it(server: RunningServer, protocol: Protocol) -> None:
    with Client(server.url(protocol), protocol=protocol) as client:
        assert client.upscale(IMAGE).model == file_hash(REPOSITORY / "SHA256SUMS")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_older_server_is_not_asked_for_its_model(
    server: RunningServer, protocol: Protocol, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Client(server.url(protocol), protocol=protocol) as client:
        config = client._wire.config("superres", 10)
        assert config is not None
        older = {**config, "output": [output for output in config["output"] if output["name"] != "model"]}
        monkeypatch.setattr(client._wire, "config", lambda *_: older)
        client.wait_until_ready()
        assert client.upscale(IMAGE).model == ""


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_server_of_an_unknown_preset(
    server: RunningServer, protocol: Protocol, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.api.PRESETS", {"other": DEFAULT})
    with pytest.raises(ServerError, match=f"must run one of the presets other, got '{DEFAULT.name}'"):
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


def connections(port: int) -> int:
    """How many lead from this machine to a port."""
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path("/proc/net", name).read_text().splitlines()[1:]]
    return sum(state == "01" and remote.endswith(f":{port:04X}") for _, _, remote, state, *_ in rows)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_threads_that_ended_leave_no_connections(server: RunningServer, protocol: Protocol) -> None:
    port = server.grpc if protocol == "grpc" else server.http
    before = connections(port)
    with Client(server.url(protocol), protocol=protocol) as client:
        threads = [threading.Thread(target=client.upscale, args=(IMAGE,)) for _ in range(50)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert connections(port) <= before + 1
    wait_for(lambda: connections(port) <= before, 5)  # gRPC closes its own in the background


@pytest.mark.parametrize(
    "image",
    [
        IMAGE.tolist(),
        tuple(map(tuple, IMAGE)),
        IMAGE.view(np.matrix),
        Image.fromarray(IMAGE.astype(np.float32)),
        np.ma.array(IMAGE),  # type: ignore[no-untyped-call]
        IMAGE.T.copy().T,
    ],
    ids=["list", "tuple", "matrix", "PIL", "masked array with no value masked", "Fortran order"],
)
def test_whatever_numpy_takes_for_an_image(server: RunningServer, image: Any) -> None:
    with Client(server.url("grpc")) as client:
        np.testing.assert_array_equal(client.upscale(image).image, client.upscale(IMAGE.astype(np.float32)).image)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_numpys_numbers_are_options(server: RunningServer, protocol: Protocol) -> None:
    options = {"seed": np.int64(3), "steps": np.int32(2), "samples": np.uint8(2), "faithful": np.bool_(False)}
    with Client(server.url(protocol), protocol=protocol) as client:
        result = client.upscale(IMAGE, **options)  # type: ignore[arg-type]
    assert result.seed == 3
    assert result.options == Options.of(DEFAULT, steps=2, samples=2, faithful=False)
    assert type(result.options.steps) is int


@pytest.mark.parametrize(
    ("image", "options", "message"),
    [
        (np.zeros((1, 16, 16)), {}, r"'image' must be one gray image \[H, W\], got shape \(1, 16, 16\)"),
        (np.zeros((16, 16), np.uint8), {}, "'image' must be floating point, 0–1, got uint8"),
        (np.zeros((1, 16)), {}, "'image' must be 2–2048 pixels per side, got 1×16"),
        (np.full((16, 16), np.nan), {}, "NaN or infinite"),
        (np.full((16, 16), 7.0), {}, "'image' must be 0–1, got values from 7 to 7"),
        (IMAGE, {"steps": 301}, "'steps' must be 1–300, got 301"),
        (IMAGE, {"sampler": "x"}, "'sampler' must be one of ddpm, ddim, got 'x'"),
        (IMAGE, {"seed": -1}, "'seed' must be 0–.*, got -1"),
        (IMAGE, {"samples": 17}, "'samples' must be 1–16, got 17"),
        (IMAGE, {"output": "mean"}, "'output' is 'mean', which needs 'samples' of 2 or more"),
        (IMAGE, {"seed": MAX_SEED + 1}, "'seed' must be 0–"),
        (IMAGE, {"seed": False}, "'seed' must be 0–"),
        (IMAGE, {"steps": True}, "'steps' must be 1–300, got True"),
        (IMAGE, {"samples": 2.0}, "'samples' must be 1–16, got 2.0"),
        (IMAGE, {"sampler": b"ddim"}, "'sampler' must be one of ddpm, ddim, got b'ddim'"),
        (IMAGE, {"faithful": 1}, "'faithful' must be true or false, got 1"),
        (None, {}, "'image' must be floating point, 0–1, got a NoneType without numbers"),
        ("scan.png", {}, "'image' must be floating point, 0–1, got a str without numbers"),
        ({"image": IMAGE}, {}, "'image' must be floating point, 0–1, got a dict without numbers"),
        (IMAGE.astype(object), {}, "'image' must be floating point, 0–1, got a ndarray without numbers"),
        ([[0.1, 0.2], [0.3]], {}, r"'image' must be floating point \[H, W\], 0–1, got a list"),
        (IMAGE * 1j, {}, "'image' must be floating point, 0–1, got complex128"),
        (IMAGE > 0.5, {}, "'image' must be floating point, 0–1, got bool"),
        (MASKED, {}, "'image' must not have masked values"),
        (Image.new("L", (16, 16)), {}, "'image' must be floating point, 0–1, got uint8: divide by 255"),
        (Image.new("I;16", (16, 16)), {}, "'image' must be .*, got uint16: divide by 65535"),
        (0.5, {}, r"'image' must be one gray image \[H, W\], got shape \(\)"),
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
        with pytest.raises(BadRequest, match="TensorRT"):
            client.upscale(IMAGE, denoiser="trt")
        assert client.upscale(IMAGE, steps=1).image.shape == (64, 80)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        *(
            ({name: value}, f"'{name}' must be .* seconds")
            for name in ("wait", "timeout")
            for value in (-1, math.nan, "5", None, True)
        ),
        ({"timeout": 0}, "'timeout' must be more than 0 seconds .*, got 0"),
        ({"protocol": "ftp"}, "'protocol' must be 'grpc' or 'http', got 'ftp'"),
        ({"url": 8001}, "'url' must be host:port, .*, got 8001"),
        ({"url": b"localhost:8001"}, "'url' must be host:port, .*, got b'localhost:8001'"),
    ],
)
def test_bad_arguments_are_refused_before_connecting(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        Client(**arguments)


@pytest.mark.parametrize("limit", [math.inf, 1e10, 1e300, 10**400, np.float32(1e12)])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_limits_without_end(server: RunningServer, protocol: Protocol, limit: float) -> None:
    with Client(server.url(protocol), protocol=protocol, wait=limit, timeout=limit) as client:
        assert client.upscale(IMAGE).image.shape == (64, 80)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_no_wait_is_one_attempt(server: RunningServer, protocol: Protocol) -> None:
    with Client(server.url(protocol), protocol=protocol, wait=0) as client:
        assert client.upscale(IMAGE).image.shape == (64, 80)
        sent = fail_from_now_on(client)
        with pytest.raises(ServerLost, match="did not serve it within 0 s: gone"):
            client.upscale(IMAGE)
        assert len(sent) == 1
    (port,) = free_ports(1)
    began = time.monotonic()
    with pytest.raises(ServerUnavailable, match=f"localhost:{port}.*refused"):
        Client(f"localhost:{port}", protocol=protocol, wait=0)
    assert time.monotonic() - began < 2


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_no_server(protocol: Protocol) -> None:
    (port,) = free_ports(1)
    began = time.monotonic()
    with pytest.raises(
        ServerUnavailable,
        match=rf"^no server ready at localhost:{port} \({protocol}\) within 0.5 s: connection refused[^\n]*$",
    ):
        Client(f"localhost:{port}", protocol=protocol, wait=0.5)
    assert 0.4 < time.monotonic() - began < 5


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_server_that_accepts_and_never_answers(protocol: Protocol) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        began = time.monotonic()
        with pytest.raises(ServerUnavailable, match="nothing answers, though something accepts connections there"):
            Client(f"127.0.0.1:{silent.getsockname()[1]}", protocol=protocol, wait=0.5)
        assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("no-such-host.invalid:8001", "cannot be resolved"),
        ("nonsense", "it has no port"),
        ("http://h:1", "give only host:"),
    ],
)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_wrong_address(url: str, problem: str, protocol: Protocol) -> None:
    with pytest.raises(ServerUnavailable, match=f"no server ready at {url} .*{problem}"):
        Client(url, protocol=protocol, wait=0.2)


def test_the_other_protocols_port_and_that_of_metrics(server: RunningServer) -> None:
    for protocol, other in (("grpc", "http"), ("http", "grpc")):
        with pytest.raises(ServerUnavailable, match=f"or choose protocol {other}"):
            Client(server.url(other), protocol=protocol, wait=0.2)  # type: ignore[arg-type]
        with pytest.raises(ServerUnavailable, match=f"localhost:{server.metrics}.*metrics"):
            Client(f"localhost:{server.metrics}", protocol=protocol, wait=0.2)  # type: ignore[arg-type]


def test_a_proxy_in_the_way_is_named_but_not_shown(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://somebody:secret@127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    with pytest.raises(ServerUnavailable, match="variable http_proxy: add localhost to no_proxy") as error:
        Client(server.url("grpc"), wait=0.2)
    assert "secret" not in str(error.value)
    Client(server.url("http"), protocol="http", wait=0.2).close()
    monkeypatch.setenv("no_proxy", "example.org,localhost")
    Client(server.url("grpc"), wait=1).close()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_server_of_other_models(server: RunningServer, protocol: Protocol, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.api.MODEL", replace(MODEL, name="other"))
    with pytest.raises(ServerUnavailable, match="it has no model 'other'$"):
        Client(server.url(protocol), protocol=protocol, wait=0)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_answer_that_takes_too_long_is_not_asked_for_again(server: RunningServer, protocol: Protocol) -> None:
    with Client(server.url(protocol), protocol=protocol, timeout=0.3) as client:
        with pytest.raises(ServerError, match="no answer from .* within 0.3 s"):
            client.upscale(np.zeros((96, 96)), sampler="ddpm")


def test_ten_seconds_are_waited_for_a_server_unless_told() -> None:
    assert inspect.signature(Client).parameters["wait"].default == 10


def watch(client: Client) -> tuple[list[Any], list[Exception]]:
    """What requests ``client`` sends from now on, and the errors that they come back with."""
    sent: list[Any] = []
    errors: list[Exception] = []
    infer = client._wire.infer

    def watched(*arguments: Any, **options: Any) -> Any:
        sent.append(arguments)
        try:
            return infer(*arguments, **options)
        except Exception as error:
            errors.append(error)
            raise

    client._wire.infer = watched  # type: ignore[method-assign]
    return sent, errors


def calls_of(server: RunningServer, model: str) -> int:
    """How often the server has called a model."""
    with triton.InferenceServerClient(server.url("grpc")) as client:
        (statistics,) = client.get_inference_statistics(model).model_stats
    return int(statistics.execution_count)


def test_server_that_dies_during_a_request(start_server: StartServer) -> None:
    server = start_server(REPOSITORY)
    with (
        Client(server.url("grpc"), wait=1) as grpc,
        Client(server.url("http"), protocol="http", wait=1) as http,
        ThreadPoolExecutor(2) as pool,
    ):
        sent = [watch(client)[0] for client in (grpc, http)]
        before = calls_of(server, "unet_onnx")
        running = [pool.submit(client.upscale, np.zeros((256, 256)), sampler="ddpm") for client in (grpc, http)]
        wait_for(lambda: all(sent) and calls_of(server, "unet_onnx") > before)
        server.kill()
        began = time.monotonic()
        for future in running:
            with pytest.raises(ServerLost, match="went away during a request and was not back within 1 s: "):
                future.result()
        assert time.monotonic() - began < 5


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL], ids=["restarted", "crashed"])
def test_no_image_is_lost_to_a_restart(start_server: StartServer, end: signal.Signals) -> None:
    """Whatever phase of its stop and start a request meets, from several threads on both protocols."""
    server = start_server(REPOSITORY)
    with (
        Client(server.url("grpc"), wait=60) as grpc,
        Client(server.url("http"), protocol="http", wait=60) as http,
        ThreadPoolExecutor(8) as pool,
    ):
        images = [IMAGE, IMAGE[:12], IMAGE[:, :12], IMAGE[:8]]  # each waits for the other shapes
        expected = [grpc.upscale(image, steps=20).image for image in images]
        done = threading.Event()
        sent = 0

        def one(i: int) -> Any:
            nonlocal sent
            result = (grpc, http)[i % 2].upscale(images[i // 2 % 4], steps=20).image
            sent += 1
            if sent == 8:
                done.set()
            return result

        running = [pool.submit(one, i) for i in range(40)]
        done.wait()
        if end == signal.SIGTERM:
            server.process.terminate()
            assert server.process.wait(35) == 0, "neither dead of a question nor kept from its end by a connection"
        else:
            server.kill()
        assert not all(future.done() for future in running)
        back = start_server(REPOSITORY, ports=[server.http, server.grpc, server.metrics])
        for i, future in enumerate(running):
            np.testing.assert_allclose(future.result(), expected[i // 2 % 4], atol=2e-3)
    back.kill()


def fail_from_now_on(client: Client, error: Exception | None = None) -> list[Any]:
    """Have every request of ``client`` fail; returns the list that each leaves something in."""
    sent: list[Any] = []

    def infer(*arguments: Any) -> Any:
        sent.append(arguments)
        raise error or wire.NotServing("gone")

    client._wire.infer = infer  # type: ignore[method-assign, assignment]
    return sent


def test_it_is_sent_again_until_the_wait_is_over(server: RunningServer) -> None:
    with Client(server.url("grpc"), wait=0.6) as client:
        sent = fail_from_now_on(client)
        began = time.monotonic()
        with pytest.raises(ServerLost, match="did not serve it within 0.6 s: gone"):
            client.upscale(IMAGE)
        assert 0.6 <= time.monotonic() - began < 2
        assert 3 <= len(sent) <= 10


@pytest.mark.parametrize(
    ("raised", "error"),
    [(ServerError("x"), ServerError), (BadRequest("x"), BadRequest)],
)
def test_other_errors_are_not_tried_again(server: RunningServer, raised: Exception, error: type[Exception]) -> None:
    with Client(server.url("grpc")) as client:
        sent = fail_from_now_on(client, raised)
        with pytest.raises(error):
            client.upscale(IMAGE)
        assert len(sent) == 1


def test_a_server_that_comes_back_with_another_preset(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with Client(server.url("grpc")) as client:
        fail_from_now_on(client)
        other = {"parameters": {"preset": {"string_value": "paper"}}}
        monkeypatch.setattr(client._wire, "config", lambda *_: other)
        with pytest.raises(ServerLost, match=f"went away .* and runs preset 'paper' now, not '{DEFAULT.name}'"):
            client.upscale(IMAGE)


def test_models_that_are_unloaded_are_waited_for(start_server: StartServer) -> None:
    flags = ["--model-control-mode=explicit", "--load-model=unet_onnx"]
    server = start_server(REPOSITORY, *flags, ready="unet_onnx")
    with triton.InferenceServerClient(server.url("grpc")) as control:
        for protocol in PROTOCOLS:
            with pytest.raises(ServerUnavailable, match="its model 'superres' is not ready"):
                Client(server.url(protocol), protocol=protocol, wait=0)
        for model in ("superres_onnx", "superres"):
            control.load_model(model)
        with (
            Client(server.url("grpc"), wait=30) as grpc,
            Client(server.url("http"), protocol="http", wait=30) as http,
            ThreadPoolExecutor(2) as pool,
        ):
            expected = grpc.upscale(IMAGE).image
            for model in ("superres_onnx", "superres"):  # called by the other; asked directly
                control.unload_model(model)
                refused = [watch(client)[1] for client in (grpc, http)]
                running = [pool.submit(client.upscale, IMAGE) for client in (grpc, http)]
                wait_for(lambda refused=refused: all(refused))  # type: ignore[misc]
                assert not any(future.done() for future in running)
                control.load_model(model)
                for future in running:
                    np.testing.assert_allclose(future.result().image, expected, atol=2e-3)
            control.unload_model("superres_onnx")
            for client in (grpc, http):
                client.wait = 0.3
                with pytest.raises(ServerLost, match="'superres_onnx' is not ready"):
                    client.upscale(IMAGE)
    server.kill()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_closed_client_says_so(server: RunningServer, protocol: Protocol) -> None:
    client = Client(server.url(protocol), protocol=protocol)
    client.close()
    client.close()
    use: list[Callable[[], Any]] = [lambda: client.upscale(IMAGE), client.wait_until_ready]
    for function in use:
        with pytest.raises(ClientClosed, match=server.url(protocol)):
            function()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_interactive_requests_overtake_bulk_ones(server: RunningServer, protocol: Protocol) -> None:
    with (
        Client(server.url(protocol), protocol=protocol, priority="bulk") as bulk,
        Client(server.url(protocol), protocol=protocol) as interactive,
        ThreadPoolExecutor(16) as pool,
    ):
        sent, _ = watch(bulk)
        # of different shapes, which no batch holds together
        images = [np.zeros((64, 16 + 2 * i)) for i in range(16)]
        waiting = [pool.submit(bulk.upscale, image, steps=60, sampler="ddpm") for image in images]
        wait_for(lambda: any(future.done() for future in waiting))
        interactive.upscale(np.zeros((64, 64)))
        assert len(sent) == 16
        assert sum(future.done() for future in waiting) < 10


def test_a_priority_that_is_none() -> None:
    with pytest.raises(BadRequest, match=r"'priority' must be 'interactive' or 'bulk', got 'high'"):
        Client(priority="high")  # type: ignore[arg-type]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_closing_ends_the_requests_of_other_threads(server: RunningServer, protocol: Protocol) -> None:
    client = Client(server.url(protocol), protocol=protocol)
    with ThreadPoolExecutor(3) as pool:
        sent, _ = watch(client)
        running = [pool.submit(client.upscale, np.zeros((64, 64)), sampler="ddpm", seed=i) for i in range(3)]
        wait_for(lambda: len(sent) == 3)
        client.close()
        for future in running:
            assert isinstance(future.exception(timeout=5), ClientClosed)


def test_closing_ends_the_wait_for_a_server(server: RunningServer) -> None:
    client = Client(server.url("grpc"), wait=60)
    sent = fail_from_now_on(client)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(client.upscale, IMAGE)
        wait_for(lambda: len(sent) > 1)
        client.close()
        assert isinstance(running.exception(timeout=5), ClientClosed)


def test_every_error_is_an_upscale_error() -> None:
    for error in (BadRequest, ClientClosed, NotAllowed, ServerError, ServerLost, ServerUnavailable):
        assert issubclass(error, UpscaleError)
