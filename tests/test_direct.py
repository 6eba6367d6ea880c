"""One call of the server's fused model: the same images, and one clear line for whatever is wrong."""

from __future__ import annotations

import numpy as np
import pytest

from client import Client
from client.api import BadRequest, ServerUnavailable
from client.direct import connect
from pipeline.local_server import free_ports
from tests.conftest import RunningServer


@pytest.mark.parametrize(("height", "width"), [(64, 64), (17, 40)])
def test_images_are_those_of_the_client(server: RunningServer, height: int, width: int) -> None:
    images = list(np.random.default_rng(0).random((3, height, width), dtype=np.float32))
    with connect(server.url("grpc")) as upscale, Client(server.url("grpc")) as client:
        for found, image, seed in zip(upscale(images, [5, 6, 7]), images, [5, 6, 7], strict=True):
            expected = client.upscale(image, seed=seed)
            np.testing.assert_allclose(found.upscaled, expected.image, atol=1e-5)
            assert found.lr_error == pytest.approx(expected.lr_error, abs=1e-5)


def test_an_image_that_is_not_allowed(server: RunningServer) -> None:
    with connect(server.url("grpc")) as upscale, pytest.raises(BadRequest, match="NaN or infinite"):
        upscale([np.full((16, 16), np.nan, np.float32)], [0])


def test_no_server() -> None:
    (port,) = free_ports(1)
    with pytest.raises(ServerUnavailable, match="no server ready"), connect(f"localhost:{port}", wait=0.5):
        pass
