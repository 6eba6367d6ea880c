"""The mixture of requests of the endurance test: every format is read, answers are compared, callers give up."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.mixture import FORMATS, SHAPES, make_mixture
from client import Client, ServerError
from client.files import read_image
from tests.conftest import RunningServer


def test_every_request_is_answered_alike_or_given_up(server: RunningServer, tmp_path: Path) -> None:
    with Client(server.url("grpc")) as client:
        mixture = make_mixture(client, tmp_path, tolerance=0.01)
        for number in (*range(4), *range(4)):
            mixture.call(number)
        assert mixture.outcomes.total() == 8
        assert mixture.outcomes["cancelled"] + mixture.outcomes["timed out"] == 2


def test_files_are_of_every_shape_and_format(server: RunningServer, tmp_path: Path) -> None:
    with Client(server.url("grpc")) as client:
        files = make_mixture(client, tmp_path).files
    assert [read_image(path).image.shape for path in files] == [shape for shape in SHAPES for _ in FORMATS]


def test_a_wrong_answer_is_an_error(server: RunningServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Client(server.url("grpc")) as client:
        mixture = make_mixture(client, tmp_path)
        mixture.call(1)
        upscale = client.upscale
        monkeypatch.setattr(client, "upscale", lambda image, **options: upscale(1 - image, **options))
        with pytest.raises(ServerError, match=r"differs by \d+"):
            mixture.call(1)
