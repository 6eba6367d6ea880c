"""One call of the server's fused model: the same images, and one clear line for whatever is wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from client import Client
from client.direct import connect
from client.errors import BadRequest, ClientClosed, ServerError, ServerUnavailable
from pipeline.serving.local_server import free_ports
from tests.conftest import RunningServer


@pytest.mark.parametrize(("height", "width"), [(64, 64), (17, 40)])
def test_images_are_those_of_the_client(server: RunningServer, height: int, width: int) -> None:
    images = list(np.random.default_rng(0).random((3, height, width), dtype=np.float32))
    with connect(server.url("grpc")) as upscale, Client(server.url("grpc")) as client:
        for found, image, seed in zip(upscale(images, [5, 6, 7]), images, [5, 6, 7], strict=True):
            expected = client.upscale(image, seed=seed)
            np.testing.assert_allclose(found.upscaled, expected.image, atol=1e-5)
            assert found.lr_error == pytest.approx(expected.lr_error, abs=1e-5)


IMAGE = np.full((16, 16), 0.5, np.float32)


@pytest.mark.parametrize(
    ("images", "seeds", "message"),
    [
        ([IMAGE * np.nan], [0], "NaN or infinite"),
        ([(IMAGE * 255).astype(np.uint8)], [0], "'image' must be .*, got uint8: divide by 255"),
        (None, [0], "'images' must be a list, got a NoneType"),
        ([IMAGE], 0, "'seeds' must be a list, got a int"),
        (IMAGE, [0], r"'image' must be one gray image \[H, W\], got shape \(16,\)"),
        ([], [], "there must be at least one image, got none"),
        ([IMAGE], [0, 1], "there must be one seed per image, got 2 for 1"),
        ([IMAGE, IMAGE], [0], "there must be one seed per image, got 1 for 2"),
        ([IMAGE], [-1], "'seed' must be 0–"),
        ([IMAGE], [True], "'seed' must be 0–.*, got True"),
        ([IMAGE, IMAGE[:8]], [0, 1], "all images must have the same shape, got 8×16, 16×16 pixels"),
    ],
)
def test_arguments_that_are_not_allowed(server: RunningServer, images: Any, seeds: Any, message: str) -> None:
    with connect(server.url("grpc")) as upscale, pytest.raises(BadRequest, match=message):
        upscale(images, seeds)


def test_lists_will_do(server: RunningServer) -> None:
    with connect(server.url("grpc"), wait=np.inf, timeout=np.inf) as upscale:
        (found,), (expected,) = upscale([IMAGE.tolist()], (1,)), upscale([IMAGE], [1])
    np.testing.assert_array_equal(found.upscaled, expected.upscaled)


def test_an_answer_that_takes_too_long(server: RunningServer) -> None:
    with connect(server.url("grpc"), timeout=0.01) as upscale:
        with pytest.raises(ServerError, match="no answer from .* within 0.01 s"):
            upscale([np.zeros((256, 256))], [0])


def test_after_its_block_it_is_closed(server: RunningServer) -> None:
    with connect(server.url("grpc")) as upscale:
        pass
    with pytest.raises(ClientClosed, match=server.url("grpc")):
        upscale([IMAGE], [0])


def test_no_server() -> None:
    (port,) = free_ports(1)
    with pytest.raises(ServerUnavailable, match=f"localhost:{port}"), connect(f"localhost:{port}", wait=0.5):
        pass
